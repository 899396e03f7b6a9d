// Everybody wants the same: keys by Zipf's law, and one key above all.
import { after, before } from '../lib/cluster.js';
import { fill, Mix } from '../lib/mix.js';
import { fraction, zipf } from '../lib/random.js';
import { options as build, plan, steady } from '../lib/settings.js';

export { handleSummary } from '../lib/report.js';

const p = plan('hotkey');
const mix = new Mix(p, 'loadtest-hotkey');
const rank = zipf(p.spec.keys, p.spec.zipf);
mix.draw = () => (fraction() < p.spec.hot_share ? 0 : rank());

export const options = build(p, { hot: steady(p, 'hot') }, { ops: ['get', 'put'], filled: true });

export function setup() {
  const data = before(p);
  fill('loadtest-hotkey', 0, p.spec.keys, p.spec.value_bytes);
  return data;
}

export function hot() {
  mix.once();
}

export function teardown(data) {
  after(data);
}
