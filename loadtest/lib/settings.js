// What run.sh hands over in the environment, and how a profile becomes k6 options.

/** Settings of this run. `out` is the folder that gets summary.json and report.html. */
export const run = {
  scenario: __ENV.LOADTEST_SCENARIO || '',
  profile: __ENV.LOADTEST_PROFILE || 'ci',
  gateways: (__ENV.LOADTEST_GATEWAYS || 'http://127.0.0.1:8080').split(',').map((url) => url.replace(/\/+$/, '')),
  id: __ENV.LOADTEST_RUN || 'by-hand',
  out: __ENV.LOADTEST_OUT || '.',
  seed: Number(__ENV.LOADTEST_SEED || 1),
  trace: __ENV.LOADTEST_TRACE === '1',
  tool: __ENV.LOADTEST_K6_VERSION || 'k6',
  header: __ENV.LOADTEST_HEADER || '',
  /** How many storage nodes and gateways `run.sh` started. */
  nodes: Number(__ENV.LOADTEST_NODES || 5),
  gatewayCount: Number(__ENV.LOADTEST_GATEWAY_COUNT || 2),
};

/** How many columns the charts over time have. */
export const SLICES = 24;

/** A threshold that always holds: it only makes k6 report the metric by this tag. */
export const SHOWN = { trend: 'max>=0', rate: 'rate>=0' };

const UNITS = { ms: 1, s: 1000, m: 60000, h: 3600000 };

/** Milliseconds of a duration such as `90s`, `1m30s` or `2h`. */
export function milliseconds(text) {
  const parts = String(text).match(/\d+(?:\.\d+)?(?:ms|s|m|h)/g) || [];
  if (parts.length === 0 || parts.join('') !== String(text)) {
    throw new Error(`not a duration: "${text}" (write 300ms, 30s, 5m, 1h)`);
  }
  return parts.reduce((sum, part) => sum + parseFloat(part) * UNITS[part.replace(/[\d.]/g, '')], 0);
}

function seconds(ms) {
  return `${Math.max(1, Math.round(ms / 1000))}s`;
}

function read(profile) {
  if (!/^[a-z0-9-]+$/.test(profile)) throw new Error(`not the name of a profile: "${profile}"`);
  return JSON.parse(open(import.meta.resolve(`../profiles/${profile}.json`)));
}

function number(name, value) {
  if (value === undefined || value === '') return undefined;
  const parsed = Number(value);
  if (!(parsed > 0)) throw new Error(`--${name}: "${value}" is not a number above 0`);
  return parsed;
}

/**
 * The plan of a scenario: its numbers from the profile, with what the command line overrides.
 * `vus` is a limit: an iteration that finds all of them busy is dropped, and counted as dropped.
 */
export function plan(name) {
  const profile = read(run.profile);
  const own = profile.scenarios[name];
  if (!own) throw new Error(`profile ${run.profile} has no scenario ${name}`);
  const spec = Object.assign({}, profile.defaults, own);
  for (const key of ['rate', 'vus', 'keys']) {
    const given = number(key, __ENV[`LOADTEST_${key.toUpperCase()}`]);
    if (given !== undefined) spec[key] = given;
  }
  if (__ENV.LOADTEST_DURATION) spec.duration = __ENV.LOADTEST_DURATION;
  spec.thresholds = Object.assign({}, profile.thresholds, own.thresholds);
  const total = milliseconds(spec.duration);
  return { name, spec, total };
}

/** Iterations begin at a constant rate, whether earlier ones are answered or not. */
export function steady(p, exec, share = 1) {
  return {
    executor: 'constant-arrival-rate',
    exec,
    rate: Math.max(1, Math.round(p.spec.rate * share)),
    timeUnit: '1s',
    duration: p.spec.duration,
    preAllocatedVUs: Math.max(2, Math.round(p.spec.vus * share)),
    maxVUs: Math.max(2, Math.round(p.spec.vus * share)),
    gracefulStop: p.spec.grace,
  };
}

/** The stages of the profile: `[share of the duration, share of the rate]`. The rate moves in straight lines. */
export function ramp(p, exec) {
  const stages = p.spec.stages.map(([time, rate]) => ({
    duration: seconds(p.total * time),
    target: Math.max(1, Math.round(p.spec.rate * rate)),
  }));
  return {
    executor: 'ramping-arrival-rate',
    exec,
    startRate: Math.max(1, Math.round(p.spec.rate * (p.spec.start || 0.1))),
    timeUnit: '1s',
    stages,
    preAllocatedVUs: p.spec.vus,
    maxVUs: p.spec.vus,
    gracefulStop: p.spec.grace,
  };
}

/** The rate that `ramp` asks for at a moment, per second. */
export function rateAt(p, elapsed) {
  let from = Math.max(1, p.spec.rate * (p.spec.start || 0.1));
  let begun = 0;
  for (const [time, rate] of p.spec.stages) {
    const length = p.total * time;
    const to = p.spec.rate * rate;
    if (elapsed < begun + length) return from + ((to - from) * (elapsed - begun)) / length;
    [from, begun] = [to, begun + length];
  }
  return from;
}

/**
 * One last iteration in each virtual user, after all others have ended: each looks for what it wrote. k6 keeps
 * the memory of a virtual user from one scenario to the next, and takes each of them once; `checked_users` counts.
 */
export function afterwards(p, scenarios, exec) {
  const users = Object.values(scenarios).reduce((sum, one) => sum + one.maxVUs, 0);
  return {
    executor: 'per-vu-iterations',
    exec,
    vus: users,
    iterations: 1,
    startTime: seconds(p.total + milliseconds(p.spec.grace) + 1000),
    maxDuration: p.spec.check_limit,
    gracefulStop: '1s',
  };
}

/**
 * k6 options: the thresholds of the profile, and those that only make k6 report by operation, phase and time.
 * `shown`: the operations and phases to tell of, and whether keys were `filled` with values to compare.
 */
export function options(p, scenarios, shown) {
  const thresholds = {};
  for (const [metric, rules] of Object.entries(p.spec.thresholds)) {
    if (rules !== null) thresholds[metric] = [].concat(rules);
  }
  const show = (metric, rule) => {
    if (!thresholds[metric]) thresholds[metric] = [rule];
  };
  for (const op of shown.ops) {
    show(`http_req_duration{op:${op}}`, SHOWN.trend);
    show(`http_req_failed{op:${op}}`, SHOWN.rate);
  }
  for (const phase of shown.phases || []) {
    show(`http_req_duration{phase:${phase}}`, SHOWN.trend);
    show(`http_req_failed{phase:${phase}}`, SHOWN.rate);
  }
  for (let slice = 0; slice < SLICES; slice += 1) {
    show(`http_req_duration{slice:${slice}}`, SHOWN.trend);
    show(`http_req_failed{slice:${slice}}`, SHOWN.rate);
  }
  const last = Object.values(scenarios).find((one) => one.executor === 'per-vu-iterations');
  if (last) {
    // A check that looked for nothing proves nothing.
    thresholds.checked_users = [`count==${last.vus}`];
    thresholds.checked_writes = ['count>0'];
  } else {
    delete thresholds.lost_writes;
  }
  p.filled = Boolean(shown.filled);
  if (!p.filled) delete thresholds.wrong_values;
  return {
    scenarios,
    thresholds,
    summaryTrendStats: ['count', 'min', 'avg', 'med', 'p(90)', 'p(95)', 'p(99)', 'p(99.9)', 'max'],
    systemTags: ['scenario', 'group', 'name', 'method', 'status', 'expected_response', 'check', 'error_code'],
    setupTimeout: '10m',
    teardownTimeout: '2m',
    noConnectionReuse: false,
    userAgent: 'cartwheel-loadtest',
  };
}
