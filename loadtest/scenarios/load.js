// The everyday load: reads, updates and deletions at a constant rate.
import { after, before } from '../lib/cluster.js';
import { fill, Mix } from '../lib/mix.js';
import { options as build, plan, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('load');
const mix = new Mix(p, 'loadtest-load');

export const options = build(p, { load: steady(p, 'load') }, { ops: ['get', 'put', 'delete'], filled: true });

export function setup() {
  const data = before(p);
  fill('loadtest-load', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function load() {
  mix.once();
}

export function teardown(data) {
  after(data);
}
