// What k6 calls at the end: writes summary.json and report.html, and prints what matters.
import { page } from './html.js';
import { ABOUT, COUNTERS, ERRORS, GAUGES } from './metrics.js';
import { run, SHOWN, SLICES } from './settings.js';
import { amount, percent, time } from './words.js';

const MUST_BE_ZERO = ['lost_writes', 'wrong_values'];
const ZERO = { count: 0, rate: 0, value: 0 };

function tagged(metrics, metric, tag) {
  const found = [];
  for (const [name, one] of Object.entries(metrics)) {
    const hit = name.match(/^(\w+)\{(\w+):([^,}]+)\}$/);
    if (hit && hit[1] === metric && hit[2] === tag) found.push([hit[3], one.values]);
  }
  return found;
}

function groups(metrics, tag) {
  const failed = Object.fromEntries(tagged(metrics, 'http_req_failed', tag));
  const rows = tagged(metrics, 'http_req_duration', tag).filter(([, values]) => values.count > 0);
  return rows.map(([name, values]) => ({ name, values, failed: failed[name] ? failed[name].rate : 0 }));
}

function inOrder(rows, names) {
  return rows.sort((a, b) => names.indexOf(a.name) - names.indexOf(b.name));
}

/** What a threshold looked at, in words. */
function was(metric, one, rule) {
  const stat = rule.match(/^\s*([a-z]+(?:\([\d.]+\))?)/);
  const values = one.values || ZERO;
  const value = stat ? values[stat[1]] : undefined;
  if (value === undefined) return '–';
  if (metric.startsWith('http_req_duration')) return values.count === 0 ? 'no request' : time(value);
  if (one.type === 'rate') {
    const seen = values.passes + values.fails;
    return seen === 0 ? 'none seen' : percent(value);
  }
  return amount(value);
}

function thresholdsOf(metrics) {
  const found = [];
  for (const [metric, one] of Object.entries(metrics)) {
    for (const [rule, result] of Object.entries(one.thresholds || {})) {
      if (rule === SHOWN.trend || rule === SHOWN.rate) continue;
      found.push({ metric, rule, ok: result.ok, was: was(metric, one, rule) });
    }
  }
  return found.sort((a, b) => Number(a.ok) - Number(b.ok) || a.metric.localeCompare(b.metric));
}

function checksOf(group) {
  const own = group.checks.map(({ name, passes, fails }) => ({ name, passes, fails }));
  return own.concat(...group.groups.map(checksOf));
}

function numbersOf(metrics, names, stat) {
  const told = names.filter((name) => metrics[name]);
  return told.map((name) => {
    const value = metrics[name].values[stat];
    return { name, value, about: ABOUT[name], bad: MUST_BE_ZERO.includes(name) && value > 0 };
  });
}

/** The numbers of a run in the form that page, text and summary.json share. */
export function model(data) {
  const { metrics } = data;
  const told = data.setup_data && data.setup_data.facts;
  const facts = told || { tool: run.tool, scenario: run.scenario, profile: run.profile, started: 'never: setup failed', gateways: run.gateways, total: 1 };
  const values = (name) => (metrics[name] ? metrics[name].values : ZERO);
  const slices = new Array(SLICES).fill(null);
  for (const { name, values: v, failed } of groups(metrics, 'slice')) slices[Number(name)] = { values: v, failed };
  const siblings = values('siblings_per_read');
  const writes = numbersOf(metrics, COUNTERS, 'count');
  if (siblings.count > 0) {
    writes.push({ name: 'siblings_per_read', value: siblings.max, about: `the most values that one read showed (p99: ${amount(siblings['p(99)'])})` });
  }
  if (metrics.quorum_header) {
    writes.push({ name: 'quorum_header', value: values('quorum_header').rate * 100, about: 'percent of answers that say how their quorum was met' });
  }
  const server = [['gateway', 'server_gateway_ms'], ['slowest needed replica', 'server_replicas_ms'], ['bucket', 'server_bucket_ms']];
  return {
    facts,
    thresholds: thresholdsOf(metrics),
    operations: groups(metrics, 'op').sort((a, b) => a.name.localeCompare(b.name)),
    phases: inOrder(groups(metrics, 'phase'), (facts.timeline || []).map(([name]) => name)),
    slices,
    writes,
    server: server.filter(([, name]) => values(name).count > 0).map(([name, metric]) => ({ name, values: values(metric) })),
    errors: numbersOf(metrics, ERRORS, 'count').filter((e) => e.value > 0).map((e) => Object.assign(e, { bad: true })),
    checks: checksOf(data.root_group).sort((a, b) => b.fails - a.fails),
    cluster: numbersOf(metrics, GAUGES, 'value'),
    run: [
      ['rate', `${facts.rate}/s${facts.scenario === 'breakpoint' ? ' at most' : ''}`], ['for', facts.duration],
      ['rate reached', metrics.offered_rate ? `${amount(Math.round(values('offered_rate').value))}/s` : undefined],
      ['requests', amount(values('http_reqs').count)], ['iterations', amount(values('iterations').count)],
      ['dropped iterations', amount(values('dropped_iterations').count)], ['failed requests', percent(values('http_req_failed').rate)],
      ['virtual users', facts.vus], ['keys to begin with', facts.keys && amount(facts.keys)], ['value', facts.value_bytes && `${amount(facts.value_bytes)} bytes`],
      ['cluster', `${facts.nodes} nodes, N = ${facts.replicas}, ${facts.partitions} partitions`], ['ring version', facts.ring_version],
      ['gateways', (facts.gateways || []).join(', ')], ['received', `${amount(Math.round(values('data_received').count / 1024))} KiB`],
      ['sent', `${amount(Math.round(values('data_sent').count / 1024))} KiB`], ['seed', facts.seed], ['k6', facts.tool.split(' (')[0]],
    ].filter(([, value]) => value !== undefined && !String(value).includes('undefined')),
  };
}

function text(m) {
  const lines = ['', `${m.facts.scenario}, profile ${m.facts.profile}`];
  for (const t of m.thresholds) lines.push(`  ${t.ok ? 'pass' : 'FAIL'}  ${t.metric}: ${t.rule}, was ${t.was}`);
  for (const { name, values, failed } of m.operations.concat(m.phases)) {
    const failures = failed > 0 ? `, ${percent(failed)} failed` : '';
    lines.push(`  ${name.padEnd(10)} ${amount(values.count)} requests, median ${time(values.med)}, p99 ${time(values['p(99)'])}, p99.9 ${time(values['p(99.9)'])}, max ${time(values.max)}${failures}`);
  }
  for (const { name, value } of m.writes.concat(m.errors)) lines.push(`  ${name.padEnd(22)} ${amount(value)}`);
  for (const c of m.checks.filter((one) => one.fails > 0)) lines.push(`  FAIL  ${c.fails} times: ${c.name}`);
  const { length } = m.thresholds;
  const failed = m.thresholds.filter((t) => !t.ok).length;
  lines.push(failed === 0 ? `passed: ${length} thresholds hold` : `FAILED: ${failed} of ${length} thresholds do not hold`, '');
  return lines.join('\n');
}

export function handleSummary(data) {
  const m = model(data);
  return {
    stdout: text(m),
    [`${run.out}/summary.json`]: JSON.stringify(Object.assign({}, m, { metrics: data.metrics }), null, 1),
    [`${run.out}/report.html`]: page(m),
  };
}
