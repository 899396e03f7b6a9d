// Every kind of request once, a few times a second: does the store keep its word at all?
import { check } from 'k6';
import http from 'k6/http';
import exec from 'k6/execution';
import { after, before } from '../lib/cluster.js';
import { dictionary, gateway, headers, sliceOf, Store } from '../lib/client.js';
import { hex } from '../lib/random.js';
import { options as build, plan, run, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('smoke');
const store = new Store('loadtest-smoke', () => sliceOf(p.total));

export const options = build(p, { smoke: steady(p, 'smoke') }, { ops: ['get', 'put', 'delete', 'other'] });

export function setup() {
  return before(p);
}

function raw(method, key, body, more, expected, query = '') {
  return http.request(method, `${gateway()}/v1/kv/loadtest-smoke/${encodeURIComponent(key)}${query}`, body, {
    headers: headers(more),
    timeout: '7s',
    responseCallback: http.expectedStatuses(expected),
    tags: Object.assign({ op: 'other', name: `${method} /v1/kv/{namespace}/{key}` }, sliceOf(p.total)),
  });
}

export function smoke() {
  // Bytes that must be encoded, and a slash that must not be one of the path.
  const key = `${run.id}/a b%ü/${exec.scenario.iterationInTest}`;
  const value = `first ${hex(8)}`;

  check(store.get(key, { missing: true }), { 'a key nobody wrote is 404': (a) => a.status === 404 });

  const first = store.put(key, value);
  check(first, {
    'a first write is 204 with a clock, a dot and an entity tag': (a) =>
      a.status === 204 && a.clock && a.response.headers.Dot && a.response.headers.Etag,
  });
  const read = store.get(key);
  check(read, {
    'a read shows what was written': (a) => a.status === 200 && a.values[0] === value,
    'a read shows its type': (a) => a.response.headers['Content-Type'] === 'text/plain',
  });
  const tag = read.response.headers.Etag;
  const head = raw('HEAD', key, null, {}, 200);
  check(head, { 'HEAD is GET without a body': (a) => a.status === 200 && a.headers.Etag === tag && !a.body });
  const same = raw('GET', key, null, { 'If-None-Match': tag }, 304);
  check(same, { 'an unchanged value is 304': (a) => a.status === 304 });

  const blind = store.put(key, 'second');
  const both = store.get(key);
  check(both, {
    'a write that saw nothing is a sibling': (a) => blind.ok && a.status === 300 && a.values.length === 2,
  });
  const merged = store.put(key, 'merged', { clock: both.clock });
  check(merged, { 'a merge has seen both': (a) => Object.keys(dictionary(a.clock)).length >= 2 });
  check(store.get(key), { 'a merge leaves one value': (a) => a.status === 200 && a.values[0] === 'merged' });

  const refused = raw('PUT', key, 'never', { 'If-Match': tag }, 412);
  check(refused, { 'a write whose If-Match is old is 412': (a) => a.status === 412 && a.json('applied') === 'no' });
  const wrong = raw('GET', key, null, {}, 400, '?r=9');
  check(wrong, { 'a quorum that can\'t be is 400': (a) => a.status === 400 && a.json('title') === 'Bad request' });

  const gone = store.delete(key, { clock: merged.clock });
  check(gone, { 'a deletion is 204': (a) => a.status === 204 });
  const after404 = store.get(key, { missing: true });
  check(after404, {
    'a deleted key is 404 with a clock': (a) =>
      a.status === 404 && a.clock && a.response.headers['Cartwheel-Deleted'] === '?1',
  });
}

export function teardown(data) {
  after(data);
}
