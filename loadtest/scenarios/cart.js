// Shopping carts that everybody shares: read, merge siblings, write with the clock. At the end every acknowledged
// item must be found.
import { after, before } from '../lib/cluster.js';
import { Carts } from '../lib/cart.js';
import { sliceOf, Store } from '../lib/client.js';
import { afterwards, options as build, plan, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('cart');
const carts = new Carts(p, new Store('loadtest-cart', () => sliceOf(p.total)));
const looking = new Store('loadtest-cart');
const scenarios = { shop: steady(p, 'shop') };

export const options = build(
  p,
  Object.assign({ check: afterwards(p, scenarios, 'look') }, scenarios),
  { ops: ['cart_get', 'cart_put', 'check'] },
);

export function setup() {
  return before(p);
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
