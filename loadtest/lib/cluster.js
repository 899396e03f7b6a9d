// What the cluster says of itself before and after a run.
import exec from 'k6/execution';
import http from 'k6/http';
import { headers } from './client.js';
import { gauge } from './metrics.js';
import { run } from './settings.js';

function ask() {
  const tags = { op: 'status', name: 'GET /v1/cluster' };
  const answer = http.request('GET', `${run.gateways[0]}/v1/cluster`, null, { headers: headers(), timeout: '20s', tags });
  if (answer.status !== 200) throw new Error(`${run.gateways[0]}/v1/cluster: ${answer.status} ${answer.error || answer.body}`);
  return answer.json();
}

function sum(members, pick) {
  return members.reduce((total, member) => total + (pick(member) || 0), 0);
}

function sums({ members }) {
  const usage = (pick) => sum(members, (m) => Object.values(m.bucket_usage || {}).reduce((n, one) => n + pick(one), 0));
  return {
    requests: usage((u) => u.create + u.delete + u.get + u.get_range + u.list + u.put),
    reads: usage((u) => u.get_range),
    hits: sum(members, (m) => (m.row_cache_hits || 0) + (m.block_cache_hits || 0)),
    misses: sum(members, (m) => m.block_cache_misses),
  };
}

/** Stops the run if a gateway can't serve. Returns facts for the report, and counts to compare with afterwards. */
export function before(plan) {
  for (const url of run.gateways) {
    const ready = http.request('GET', `${url}/readyz`, null, { headers: headers(), timeout: '20s', tags: { op: 'status' } });
    if (ready.status !== 200) exec.test.abort(`${url}/readyz: ${ready.status || ready.error}: the gateway can't serve`);
  }
  const cluster = ask();
  return {
    counts: sums(cluster),
    facts: {
      scenario: plan.name,
      profile: run.profile,
      started: new Date().toISOString(),
      tool: run.tool,
      gateways: run.gateways,
      nodes: cluster.members.length,
      replicas: cluster.replicas,
      partitions: cluster.partitions,
      ring_version: cluster.ring_version,
      rate: plan.spec.rate,
      duration: plan.spec.duration,
      total: plan.total,
      vus: plan.spec.vus,
      keys: plan.filled ? plan.spec.keys : undefined,
      value_bytes: plan.filled ? plan.spec.value_bytes : undefined,
      seed: run.seed,
      run: run.id,
      timeline: plan.timeline || null,
    },
  };
}

/** Writes down what changed in the cluster since `before`. */
export function after(data) {
  const cluster = ask();
  const now = sums(cluster);
  const { members } = cluster;
  const memory = (name) => sum(members, (m) => m.memory && m.memory[name]);
  gauge.cluster_nodes.add(members.length);
  gauge.cluster_reachable.add(members.filter((m) => m.reachable).length);
  gauge.cluster_keys.add(sum(members, (m) => m.keys));
  gauge.hints_left.add(sum(members, (m) => (m.hints || []).reduce((n, hints) => n + (hints.keys || 0), 0)));
  gauge.unflushed_bytes.add(memory('unflushed'));
  gauge.index_bytes.add(memory('index'));
  // A node that was started again counts from 0.
  gauge.bucket_requests.add(Math.max(0, now.requests - data.counts.requests));
  gauge.bucket_reads.add(Math.max(0, now.reads - data.counts.reads));
  gauge.cache_hits.add(Math.max(0, now.hits - data.counts.hits));
  gauge.cache_misses.add(Math.max(0, now.misses - data.counts.misses));
}

/** Which process is behind each storage node, and when each gateway behind the load balancer began. */
export function processes() {
  const gateways = new Set();
  // In turn, as the balancer goes round; twice, as it also goes round for others.
  for (let turn = 0; turn < 2 * run.gatewayCount; turn += 1) {
    const tags = { op: 'status', name: 'GET /metrics' };
    const answer = http.request('GET', `${run.gateways[0]}/metrics`, null, { headers: headers(), timeout: '20s', tags });
    const began = String(answer.body).match(/^process_start_time_seconds ([\d.e+]+)$/m);
    if (answer.status !== 200 || !began) throw new Error(`${run.gateways[0]}/metrics: ${answer.status}, no start time`);
    gateways.add(began[1]);
  }
  const nodes = Object.fromEntries(ask().members.map(({ id, incarnation }) => [id, incarnation]));
  return { nodes, gateways: Array.from(gateways) };
}

/** Counts the processes that are not those of `before` any more. */
export function countRestarts(before) {
  const { nodes, gateways } = processes();
  const other = Object.keys(before.nodes).filter((id) => nodes[id] && nodes[id] !== before.nodes[id]);
  gauge.restarted_nodes.add(other.length);
  gauge.restarted_gateways.add(gateways.filter((began) => !before.gateways.includes(began)).length);
}
