// Shopping carts: read, merge the siblings, write with the clock. Each virtual user remembers which of its items
// were acknowledged, and looks for them at the end: an acknowledged item that is nowhere is a lost write.
import { check, sleep } from 'k6';
import exec from 'k6/execution';
import { elapsed } from './client.js';
import { count } from './metrics.js';
import { below, fraction } from './random.js';
import { milliseconds, run } from './settings.js';

/** How often an item that is not there is looked for again. */
const LOOK_EVERY = 0.5;

/** The items of all values together, in order of their names. */
export function union(values) {
  const items = new Set();
  for (const value of values) for (const item of JSON.parse(value).items) items.add(item);
  return Array.from(items).sort();
}

function encode(cart, items) {
  return JSON.stringify({ cart, items });
}

/** The carts of one virtual user: those it shares with all others, and its own memory of what it put there. */
export class Carts {
  constructor(plan, store) {
    this.spec = plan.spec;
    this.store = store;
    this.rotate = milliseconds(plan.spec.rotate);
    this.patience = milliseconds(plan.spec.patience);
    this.think = milliseconds(plan.spec.think) / 1000;
    this.made = 0;
    /** cart → items that were acknowledged and not removed since */
    this.ledger = new Map();
  }

  epoch() {
    return Math.floor(elapsed() / this.rotate);
  }

  name() {
    return `${run.id}/${this.epoch()}/cart-${below(this.spec.carts)}`;
  }

  item() {
    this.made += 1;
    return `u${exec.vu.idInTest}-${this.made}`;
  }

  remember(cart, item) {
    if (!this.ledger.has(cart)) this.ledger.set(cart, new Set());
    this.ledger.get(cart).add(item);
    count.acknowledged_writes.add(1);
  }

  missingOf(cart, items) {
    const there = new Set(items);
    return Array.from(this.ledger.get(cart) || []).filter((item) => !there.has(item));
  }

  /** Adds an item to a cart (or, seldom, takes an own one out), as a shop does. */
  shop() {
    const old = this.oldest();
    if (old) {
      this.lookFor(old);
      return;
    }
    const cart = this.name();
    const seen = this.store.get(cart, { op: 'cart_get', missing: true });
    if (!seen.ok) return;
    const items = union(seen.values);
    if (this.missingOf(cart, items).length > 0) count.stale_reads.add(1);
    if (seen.status === 300) count.merges.add(1);
    // People think; meanwhile others write to the same cart, and so siblings come about.
    sleep(this.think);
    const own = Array.from(this.ledger.get(cart) || []).filter((item) => items.includes(item));
    if (own.length > 1 && fraction() < this.spec.removes) {
      const gone = own[below(own.length)];
      // From here on nobody asks for it: the answer may be lost.
      this.ledger.get(cart).delete(gone);
      this.store.put(cart, encode(cart, items.filter((item) => item !== gone)), { op: 'cart_put', clock: seen.clock });
      return;
    }
    const item = this.item();
    this.note(cart, item, this.store.put(cart, encode(cart, items.concat(item)), { op: 'cart_put', clock: seen.clock }));
  }

  /** Adds an item without having looked: others' writes must stay, so this one becomes a sibling. */
  blind() {
    const cart = this.name();
    const item = this.item();
    this.note(cart, item, this.store.put(cart, encode(cart, [item]), { op: 'blind_put' }));
  }

  /** Replaces the siblings of a cart by what they add up to. */
  merge(cart = this.name()) {
    const seen = this.store.get(cart, { op: 'cart_get', missing: true });
    if (!seen.ok || seen.values.length < 2) return seen;
    const answer = this.store.put(cart, encode(cart, union(seen.values)), { op: 'merge_put', clock: seen.clock });
    if (answer.ok) count.merges.add(1);
    return seen;
  }

  note(cart, item, answer) {
    if (answer.ok) this.remember(cart, item);
    else if (answer.applied !== 'no') count.unsure_writes.add(1);
  }

  /** A cart of an epoch long over, if any is left to be looked at. */
  oldest() {
    const cart = this.ledger.keys().next().value;
    return cart !== undefined && Number(cart.split('/')[1]) + 1 < this.epoch() ? cart : undefined;
  }

  /** Looks for every acknowledged item of a cart, once and again until that moment, and forgets the cart. */
  lookFor(cart, until = Date.now() + this.patience) {
    const wanted = this.ledger.get(cart).size;
    let missing = null;
    let first = null;
    while (true) {
      const seen = this.store.get(cart, { op: 'check', missing: true });
      if (seen.ok) missing = this.missingOf(cart, union(seen.values));
      if (first === null && missing !== null) first = missing.length;
      if ((missing !== null && missing.length === 0) || Date.now() > until) break;
      sleep(LOOK_EVERY);
    }
    const lost = missing === null ? wanted : missing.length;
    count.checked_writes.add(wanted);
    count.lost_writes.add(lost);
    count.late_writes.add(Math.max(0, (first === null ? wanted : first) - lost));
    if (lost > 0) {
      const which = missing === null ? 'it could not be read' : missing.slice(0, 10).join(' ');
      console.error(`${lost} lost writes in ${cart}: ${which}`);
    }
    check(lost, { 'an acknowledged item is found at the end': (n) => n === 0 });
    this.ledger.delete(cart);
  }

  /** Looks for all that this virtual user wrote. Patience is for all carts together: many may have lost something. */
  lookForAll() {
    const until = Date.now() + this.patience;
    for (const cart of Array.from(this.ledger.keys())) this.lookFor(cart, until);
    count.checked_users.add(1);
  }
}
