// Every metric of our own. What each means is said in README.md, and in the report by `ABOUT`.
import { Counter, Gauge, Rate, Trend } from 'k6/metrics';

const counters = {
  acknowledged_writes: 'writes that the store said yes to and that are looked for afterwards',
  checked_writes: 'of these, looked for',
  lost_writes: 'looked for and not found: must be 0',
  late_writes: 'not there at the first look, but there a little later',
  unsure_writes: 'errors after which the write may have happened: allowed to be there, and to be missing',
  stale_reads: 'reads that did not show an own acknowledged write',
  checked_users: 'virtual users that looked for what they wrote',
  sibling_reads: 'reads that showed siblings (300)',
  merges: 'writes that replaced siblings by what they add up to',
  degraded_answers: 'answers that came from the bucket for lack of replicas',
  fallback_answers: 'answers that counted a stand-in for a home',
  wrong_values: 'values that belong to another key: must be 0',
  server_errors: 'answers with a status of 500 or above',
};

const kinds = {
  errors_overloaded: '503: too much at once',
  errors_quorum_not_met: '503: too few replicas in reach',
  errors_bucket_unavailable: '503: the bucket takes nothing',
  errors_not_ready: '503: the gateway can\'t serve yet',
  errors_deadline_passed: '504: too few replicas in time',
  errors_too_many_siblings: '409: a key has as many siblings as it may',
  errors_connection: 'no answer: refused, reset or timed out',
  errors_other: 'any other answer that was not expected',
};

const gauges = {
  offered_rate: 'iterations per second asked for at the last moment',
  cluster_nodes: 'storage nodes',
  cluster_reachable: 'of these, in reach at the end',
  restarted_nodes: 'storage nodes that are not the process any more that they were before the run',
  restarted_gateways: 'gateways that began during the run',
  cluster_keys: 'keys on all nodes at the end, each replica counted',
  hints_left: 'hints still kept for other nodes at the end',
  unflushed_bytes: 'bytes that wait for the bucket at the end',
  index_bytes: 'bytes of the clock index at the end',
  bucket_requests: 'requests that the storage nodes sent to the bucket during the run',
  bucket_reads: 'of these, reads of parts of segments',
  cache_hits: 'reads that a storage node answered from a cache',
  cache_misses: 'reads for which a storage node had to go to a segment',
};

function make(Kind, names) {
  return Object.fromEntries(Object.keys(names).map((name) => [name, new Kind(name)]));
}

/** What each metric means, in words. */
export const ABOUT = Object.assign({}, counters, kinds, gauges);
/** Names of the error counters. */
export const ERRORS = Object.keys(kinds);
/** Names of the other counters and of the gauges. */
export const COUNTERS = Object.keys(counters);
export const GAUGES = Object.keys(gauges);

export const count = make(Counter, counters);
export const errors = make(Counter, kinds);
export const gauge = make(Gauge, gauges);
export const quorumHeader = new Rate('quorum_header');
export const siblingsPerRead = new Trend('siblings_per_read');
export const server = {
  gateway: new Trend('server_gateway_ms'),
  replicas: new Trend('server_replicas_ms'),
  bucket: new Trend('server_bucket_ms'),
};
