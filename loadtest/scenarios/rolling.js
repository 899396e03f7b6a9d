// Every storage node and then every gateway is restarted, one after the other, while carts are filled and keys are
// read and written through a load balancer. No request may fail. run.sh does the restarting, by the times that setup
// writes to a key of this run; the phases are those times.
import { after, before, countRestarts, processes } from '../lib/cluster.js';
import { Carts } from '../lib/cart.js';
import { elapsed, sliceOf, Store } from '../lib/client.js';
import { fill, Mix } from '../lib/mix.js';
import { afterwards, options as build, plan, run, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('rolling');
p.timeline = [
  ['before', 0],
  ['nodes', p.total * p.spec.nodes_at],
  ['gateways', p.total * p.spec.gateways_at],
  ['after', p.total * p.spec.after_at],
];
const [, nodes, gateways] = p.timeline.map(([, from]) => from);
const phases = p.timeline.map(([name]) => name);

function tags() {
  const now = elapsed();
  const [phase] = p.timeline.filter(([, from]) => now >= from).pop();
  return Object.assign({ phase }, sliceOf(p.total));
}

const told = { told: true };
const mix = new Mix(p, 'loadtest-rolling', tags, told);
const store = new Store('loadtest-rolling', tags, told);
// Writes that wait for the bucket: they take long enough to be under way whenever a process is told to end.
const slow = new Store('loadtest-rolling', tags, { told: true, durability: 'bucket' });
const looking = new Store('loadtest-rolling', () => ({}), told);
const carts = new Carts(p, store);
const scenarios = {
  everyday: steady(p, 'everyday', 0.5),
  shop: steady(p, 'shop', 0.4),
  shop_slowly: steady(p, 'shopSlowly', 0.1),
};
// A run in which not all was restarted proves nothing.
p.spec.thresholds.restarted_nodes = `value==${run.nodes}`;
p.spec.thresholds.restarted_gateways = `value==${run.gatewayCount}`;

export const options = build(
  p,
  Object.assign({ check: afterwards(p, scenarios, 'look') }, scenarios),
  { ops: ['get', 'put', 'delete', 'cart_get', 'cart_put', 'check'], phases, filled: true },
);

export function setup() {
  const data = before(p);
  fill('loadtest-rolling', 0, p.spec.keys, p.spec.value_bytes);
  data.processes = processes();
  const now = Date.now();
  const times = [nodes, gateways, p.total].map((ms) => Math.round(now + ms));
  const written = looking.put(`${run.id}/faults`, times.join(' '), { op: 'control' });
  if (!written.ok) throw new Error(`can't write down when to restart what: ${written.status}`);
  return data;
}

export function everyday() {
  mix.once();
}

export function shop() {
  carts.store = store;
  carts.shop();
}

export function shopSlowly() {
  carts.store = slow;
  carts.shop();
}

export function look() {
  carts.store = looking;
  carts.lookForAll();
}

export function teardown(data) {
  after(data);
  countRestarts(data.processes);
}
