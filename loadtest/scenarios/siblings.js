// Writers who have seen nothing: every write becomes a sibling. Readers see them all, and now and then merge them.
// At the end nothing is lost, and one write with the clock leaves one value.
import { check } from 'k6';
import { after, before } from '../lib/cluster.js';
import { Carts, union } from '../lib/cart.js';
import { sliceOf, Store } from '../lib/client.js';
import { count } from '../lib/metrics.js';
import { fraction } from '../lib/random.js';
import { afterwards, options as build, plan, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('siblings');
const carts = new Carts(p, new Store('loadtest-siblings', () => sliceOf(p.total)));
const looking = new Store('loadtest-siblings');
const scenarios = { write: steady(p, 'write') };

export const options = build(
  p,
  Object.assign({ check: afterwards(p, scenarios, 'look') }, scenarios),
  { ops: ['blind_put', 'cart_get', 'merge_put', 'check'] },
);

export function setup() {
  return before(p);
}

export function write() {
  const old = carts.oldest();
  if (old) carts.lookFor(old);
  else if (fraction() < p.spec.merges) carts.merge();
  else carts.blind();
}

export function look() {
  carts.store = looking;
  carts.lookForAll();
}

/** Nobody else writes any more: two siblings are made on a key of this run, seen, merged, and gone. */
function mergeAlone(run) {
  const key = `${run}/alone`;
  for (const item of ['first', 'second', 'third']) looking.put(key, JSON.stringify({ items: [item] }), { op: 'blind_put' });
  const seen = looking.get(key, { op: 'check' });
  check(seen, { 'three blind writes are three siblings': (s) => s.status === 300 && s.values.length === 3 });
  if (!seen.ok) return;
  const items = union(seen.values);
  looking.put(key, JSON.stringify({ items }), { op: 'merge_put', clock: seen.clock });
  count.merges.add(1);
  const merged = looking.get(key, { op: 'check' });
  check(merged, {
    'a write with the clock leaves one value': (m) => m.status === 200 && union(m.values).join() === 'first,second,third',
  });
}

export function teardown(data) {
  mergeAlone(data.facts.run);
  after(data);
}
