// Hours of everyday load and carts: what leaks, grows or slows down shows in the charts over time.
import { after, before } from '../lib/cluster.js';
import { Carts } from '../lib/cart.js';
import { sliceOf, Store } from '../lib/client.js';
import { fill, Mix } from '../lib/mix.js';
import { afterwards, options as build, plan, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('soak');
const mix = new Mix(p, 'loadtest-soak');
const carts = new Carts(p, new Store('loadtest-soak-carts', () => sliceOf(p.total)));
const looking = new Store('loadtest-soak-carts');
const scenarios = { everyday: steady(p, 'everyday', 0.5), shop: steady(p, 'shop', 0.5) };

export const options = build(
  p,
  Object.assign({ check: afterwards(p, scenarios, 'look') }, scenarios),
  { ops: ['get', 'put', 'delete', 'cart_get', 'cart_put', 'check'], filled: true },
);

export function setup() {
  const data = before(p);
  fill('loadtest-soak', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function everyday() {
  mix.once();
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
