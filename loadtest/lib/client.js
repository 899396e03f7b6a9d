// The data API as a client sees it: clocks, siblings, quorums and errors. Every request goes through here, so
// every request is tagged, counted and checked in one way.
import { check } from 'k6';
import exec from 'k6/execution';
import http from 'k6/http';
import { count, errors, quorumHeader, server, siblingsPerRead } from './metrics.js';
import { hex } from './random.js';
import { run, SLICES } from './settings.js';

/** A little longer than the deadline that a gateway sets when a request names none (5 s). */
const TIMEOUT = '7s';
const found = http.expectedStatuses(200, 204, 300);
const foundOrNot = http.expectedStatuses(200, 204, 300, 404);

let turn = null;

/** The gateways in turn; virtual users begin at different ones. */
export function gateway() {
  if (turn === null) turn = exec.vu.idInTest || 0;
  turn += 1;
  return run.gateways[turn % run.gateways.length];
}

/** Headers that every request carries. */
export function headers(more) {
  const all = Object.assign({}, more);
  const at = run.header.indexOf(':');
  if (at > 0) all[run.header.slice(0, at).trim()] = run.header.slice(at + 1).trim();
  if (run.trace) all.traceparent = `00-${hex(32)}-${hex(16)}-01`;
  return all;
}

/** Milliseconds since this k6 scenario began. */
export function elapsed() {
  return Date.now() - exec.scenario.startTime;
}

/** Tags of a request that is measured, with the column of the charts over time that this moment belongs to. */
export function sliceOf(total) {
  return { measured: 'yes', slice: String(Math.min(SLICES - 1, Math.floor((elapsed() * SLICES) / total))) };
}

/** `op=read, n=3, required=2, …` as an object; numbers where they are some. */
export function dictionary(text) {
  const entries = {};
  for (const part of (text || '').split(',')) {
    const [name, value] = part.trim().split('=');
    if (name && value !== undefined) entries[name] = /^\d+$/.test(value) ? Number(value) : value;
  }
  return entries;
}

function header(response, name) {
  return response.headers ? response.headers[name] : undefined;
}

function timings(text) {
  for (const part of (text || '').split(',')) {
    const hit = part.trim().match(/^(gateway|replicas|bucket);dur=([\d.]+)$/);
    if (hit) server[hit[1]].add(Number(hit[2]));
  }
}

/** The kind of an error: the last word of the problem's type. */
function kindOf(response) {
  if (response.status === 0) return 'connection';
  try {
    return String(response.json('type')).split('/').pop().replace(/-/g, '_');
  } catch (_) {
    return 'other';
  }
}

function appliedOf(response) {
  try {
    return response.json('applied') === 'no' ? 'no' : 'unknown';
  } catch (_) {
    return 'unknown';
  }
}

function sharedSiblings(response) {
  const values = [];
  for (const part of response.json()) if (!part.deleted) values.push(part.value);
  return values;
}

/** All that is to be known of an answer that nobody expected, in a line. */
function tell(method, url, response) {
  const took = Math.round(response.timings.duration);
  const by = header(response, 'X-Served-By') || 'nobody';
  const said = response.status === 0 ? response.error : String(response.body).replace(/\s+/g, ' ').slice(0, 400);
  console.error(`${new Date().toISOString()} ${method} ${url}: ${response.status} from ${by} after ${took} ms: ${said}`);
}

/** Requests about the keys of one namespace. */
export class Store {
  /**
   * `tags` gives the tags of a moment: the slice of the run, the phase. `told`: print each unexpected answer.
   * `durability`: what writes ask for, if not the namespace's.
   */
  constructor(namespace, tags = () => ({}), { told = false, durability = null } = {}) {
    this.namespace = namespace;
    this.tags = tags;
    this.told = told;
    this.query = durability ? `?durability=${durability}` : '';
  }

  request(method, key, op, body, more, missing) {
    const path = encodeURIComponent(key);
    const url = `${gateway()}/v1/kv/${this.namespace}/${path}${method === 'GET' ? '' : this.query}`;
    const response = http.request(method, url, body, {
      headers: headers(more),
      timeout: TIMEOUT,
      responseCallback: missing ? foundOrNot : found,
      tags: Object.assign({ op, name: `${method} /v1/kv/{namespace}/{key}` }, this.tags()),
    });
    const { status } = response;
    const ok = status === 200 || status === 204 || status === 300 || (missing && status === 404);
    timings(header(response, 'Server-Timing'));
    const degraded = header(response, 'Cartwheel-Degraded') !== undefined;
    if (degraded) count.degraded_answers.add(1);
    const quorum = dictionary(header(response, 'Quorum'));
    if (quorum.fallback > 0) count.fallback_answers.add(1);
    if (ok) {
      const told = quorum.n > 0 && quorum.required > 0 && quorum.answered !== undefined;
      quorumHeader.add(told);
      const met = degraded || quorum.answered >= quorum.required;
      check(response, { 'the answer says how its quorum was met': () => told && met });
    } else {
      const kind = `errors_${kindOf(response)}`;
      (errors[kind] || errors.errors_other).add(1);
      if (status >= 500) count.server_errors.add(1);
      if (this.told) tell(method, url, response);
    }
    check(response, { 'the answer is one of those expected': () => ok });
    return { ok, status, response, clock: header(response, 'Vector-Clock'), degraded };
  }

  /**
   * Reads a key. `values` holds what is there: one value, several siblings, or nothing. With `missing`, 404 is
   * an answer like any other.
   */
  get(key, { op = 'get', missing = false } = {}) {
    const answer = this.request('GET', key, op, null, { Accept: 'application/json' }, missing);
    answer.values = [];
    if (answer.status === 200) answer.values = [answer.response.body];
    if (answer.status === 300) {
      answer.values = sharedSiblings(answer.response);
      count.sibling_reads.add(1);
      siblingsPerRead.add(answer.values.length);
    } else if (answer.ok) {
      siblingsPerRead.add(answer.values.length);
    }
    if (answer.ok && answer.status !== 404) {
      check(answer, { 'a read gives a clock to write with': (a) => Boolean(a.clock) });
    }
    return answer;
  }

  /** Writes a key. With a clock it replaces what that clock has seen, without one it replaces nothing. */
  put(key, value, { op = 'put', clock } = {}) {
    const more = { 'Content-Type': 'text/plain' };
    if (clock) more['Vector-Clock'] = clock;
    const answer = this.request('PUT', key, op, value, more, false);
    if (!answer.ok) answer.applied = appliedOf(answer.response);
    return answer;
  }

  /** Deletes what the clock has seen. */
  delete(key, { op = 'delete', clock } = {}) {
    return this.request('DELETE', key, op, null, clock ? { 'Vector-Clock': clock } : {}, false);
  }
}
