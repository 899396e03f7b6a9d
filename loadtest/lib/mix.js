// Plain traffic: reads, updates and deletions of single keys that were written beforehand.
import { check } from 'k6';
import http from 'k6/http';
import { gateway, headers, sliceOf, Store } from './client.js';
import { count } from './metrics.js';
import { below, fraction, hex } from './random.js';
import { run } from './settings.js';

const BATCH = 40;

/** The name of the how-many-eth key of this run. */
export function keyOf(at) {
  return `${run.id}/key-${at}`;
}

/** A value of so many bytes that says which key it belongs to. */
export function valueOf(key, bytes) {
  const start = `${key}|${hex(16)}|`;
  return start + 'x'.repeat(Math.max(0, bytes - start.length));
}

/** Writes keys `from` to `to - 1`, in parallel. Throws if one is refused: the run would mean nothing. */
export function fill(namespace, from, to, bytes) {
  for (let at = from; at < to; at += BATCH) {
    const requests = [];
    for (let i = at; i < Math.min(to, at + BATCH); i += 1) {
      const key = keyOf(i);
      const params = {
        headers: headers({ 'Content-Type': 'text/plain' }),
        timeout: '20s',
        tags: { op: 'fill', name: 'PUT /v1/kv/{namespace}/{key}' },
      };
      const url = `${gateway()}/v1/kv/${namespace}/${encodeURIComponent(key)}`;
      requests.push({ method: 'PUT', url, body: valueOf(key, bytes), params });
    }
    for (const answer of http.batch(requests)) {
      if (answer.status !== 204) {
        throw new Error(`can't write the keys to begin with: ${answer.status} ${answer.body || answer.error}`);
      }
    }
  }
}

/** Every value must be one that was written to this key. */
export function belongs(key, answer) {
  const right = answer.values.every((value) => value.startsWith(`${key}|`));
  if (!right) count.wrong_values.add(1);
  check(answer, { 'a value belongs to its key': () => right });
}

/** The traffic of `load`, `stress`, `spike`, `soak` and `breakpoint`: one operation on one key. */
export class Mix {
  constructor(plan, namespace, tags, options) {
    this.spec = plan.spec;
    this.store = new Store(namespace, tags || (() => sliceOf(plan.total)), options);
    this.draw = () => below(this.spec.keys);
  }

  /** One operation, chosen by the shares of the profile. An update is a read and a write with its clock. */
  once() {
    const key = keyOf(this.draw());
    const choice = fraction();
    const seen = this.store.get(key, { missing: true });
    if (!seen.ok) return;
    belongs(key, seen);
    if (choice < this.spec.reads) return;
    if (choice < this.spec.reads + this.spec.deletes && seen.values.length > 0) {
      this.store.delete(key, { clock: seen.clock });
    } else {
      if (seen.status === 300) count.merges.add(1);
      this.store.put(key, valueOf(key, this.spec.value_bytes), { clock: seen.clock });
    }
  }
}
