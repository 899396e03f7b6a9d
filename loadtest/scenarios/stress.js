// More and more load, in steps, beyond what is normal, and back: does it bend or break, and does it recover?
import { after, before } from '../lib/cluster.js';
import { fill, Mix } from '../lib/mix.js';
import { options as build, plan, ramp } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('stress');
const mix = new Mix(p, 'loadtest-stress');

export const options = build(p, { stress: ramp(p, 'stress') }, { ops: ['get', 'put', 'delete'], filled: true });

export function setup() {
  const data = before(p);
  fill('loadtest-stress', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function stress() {
  mix.once();
}

export function teardown(data) {
  after(data);
}
