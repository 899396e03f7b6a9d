// Storage nodes are killed and come back while carts are filled. run.sh does the killing, by the times that
// setup writes to a key of this run; the phases are those times, with a second's grace before each.
import { after, before } from '../lib/cluster.js';
import { Carts } from '../lib/cart.js';
import { elapsed, sliceOf, Store } from '../lib/client.js';
import { afterwards, milliseconds, options as build, plan, run, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('failover');
const GRACE = 1000;
const kill = p.total * p.spec.kill_at;
const restart = p.total * p.spec.restart_at;
p.timeline = [
  ['before', 0],
  ['detect', kill - GRACE],
  ['down', kill + milliseconds(p.spec.detect)],
  ['back', restart - GRACE],
  ['after', restart + milliseconds(p.spec.settle)],
];
const phases = p.timeline.map(([name]) => name);

function phase() {
  const now = elapsed();
  return p.timeline.filter(([, from]) => now >= from).pop()[0];
}

const carts = new Carts(p, new Store('loadtest-failover', () => Object.assign({ phase: phase() }, sliceOf(p.total))));
const looking = new Store('loadtest-failover');
const scenarios = { shop: steady(p, 'shop') };

export const options = build(
  p,
  Object.assign({ check: afterwards(p, scenarios, 'look') }, scenarios),
  { ops: ['cart_get', 'cart_put', 'check'], phases },
);

export function setup() {
  const data = before(p);
  const times = [Date.now() + kill, Date.now() + restart].map(Math.round);
  const told = looking.put(`${run.id}/faults`, `${times.join(' ')} ${p.spec.kills}`, { op: 'control' });
  if (!told.ok) throw new Error(`can't write down when nodes are killed: ${told.status}`);
  return data;
}

export function shop() {
  carts.shop();
}

export function look() {
  carts.store = looking;
  carts.lookForAll();
}

export function teardown(data) {
  after(data);
}
