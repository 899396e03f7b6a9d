// The rate climbs until a threshold breaks; that ends the run (exit status 99), and `offered_rate` says where.
import { after, before } from '../lib/cluster.js';
import { elapsed } from '../lib/client.js';
import { gauge } from '../lib/metrics.js';
import { fill, Mix } from '../lib/mix.js';
import { options as build, plan, ramp, rateAt } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('breakpoint');
const mix = new Mix(p, 'loadtest-breakpoint');

export const options = build(p, { climb: ramp(p, 'climb') }, { ops: ['get', 'put', 'delete'], filled: true });

export function setup() {
  const data = before(p);
  fill('loadtest-breakpoint', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function climb() {
  gauge.offered_rate.add(rateAt(p, elapsed()));
  mix.once();
}

export function teardown(data) {
  after(data);
}
