// Keys are written, wait in the bucket until the nodes' memory holds them no longer, and are read, each once.
// `bucket_reads` says whether they really came from there: the storage nodes must run with little --memory.
import { check, sleep } from 'k6';
import http from 'k6/http';
import { after, before } from '../lib/cluster.js';
import { headers, sliceOf, Store } from '../lib/client.js';
import { belongs, fill, keyOf } from '../lib/mix.js';
import exec from 'k6/execution';
import { options as build, plan, run, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('coldread');
const store = new Store('loadtest-coldread', () => sliceOf(p.total));
const WAIT = 90;

export const options = build(p, { cold: steady(p, 'cold') }, { ops: ['get'], filled: true });

function unflushed() {
  const answer = http.request('GET', `${run.gateways[0]}/v1/cluster`, null, { headers: headers(), tags: { op: 'status' } });
  return answer.json('members').reduce((sum, member) => sum + ((member.memory && member.memory.unflushed) || 0), 0);
}

export function setup() {
  before(p);
  fill('loadtest-coldread', 0, p.spec.keys, p.spec.value_bytes);
  let left = unflushed();
  for (let i = 0; left > 0 && i < WAIT; i += 1) {
    sleep(1);
    left = unflushed();
  }
  if (left > 0) console.warn(`${left} bytes still wait for the bucket after ${WAIT} s; their reads are not cold`);
  // What the writes cost is no part of the run.
  return before(p);
}

export function cold() {
  // A step that shares no factor with most counts: neighbours in time are no neighbours in a segment.
  const key = keyOf((exec.scenario.iterationInTest * 7919) % p.spec.keys);
  const answer = store.get(key);
  check(answer, { 'the value has its length': (a) => a.values.every((value) => value.length === p.spec.value_bytes) });
  if (answer.ok) belongs(key, answer);
}

export function teardown(data) {
  after(data);
}
