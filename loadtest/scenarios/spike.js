// A sudden many-fold load, and the quiet after it.
import { after, before } from '../lib/cluster.js';
import { fill, Mix } from '../lib/mix.js';
import { options as build, plan, ramp } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('spike');
const mix = new Mix(p, 'loadtest-spike');

export const options = build(p, { spike: ramp(p, 'spike') }, { ops: ['get', 'put', 'delete'], filled: true });

export function setup() {
  const data = before(p);
  fill('loadtest-spike', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function spike() {
  mix.once();
}

export function teardown(data) {
  after(data);
}
