// The report as one HTML page that needs nothing else: no script, no font, no image from outside.
import { overTime, ranges } from './charts.js';
import { amount, escape, percent, time } from './words.js';

const STYLE = `
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --text: #1c2126; --faint: #68727d; --rule: #e2e5e8;
  --good: #1a7f45; --good-back: #e4f4ea; --bad: #c0322b; --bad-back: #fbe9e7;
  --b1: #4a8fd4; --b2: #8a6fd1; --b3: #d98a2b; --band: #0000000a; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --text: #e3e6e9; --faint: #98a2ad;
  --rule: #31373d; --good: #5cc98a; --good-back: #17301f; --bad: #ff8177; --bad-back: #3a1d1b;
  --b1: #5fa3e6; --b2: #a58cf0; --b3: #e9a04a; --band: #ffffff0d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0; } section > :last-child { margin-bottom: 0; } h2 { font-size: 17px; margin: 0 0 12px; }
p { margin: 4px 0 12px; } .faint, .about { color: var(--faint); }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px; margin-top: 18px; }
header { display: flex; gap: 18px; align-items: center; flex-wrap: wrap; }
.verdict { font-weight: 700; padding: 6px 16px; border-radius: 20px; }
.pass { color: var(--good); background: var(--good-back); } .fail { color: var(--bad); background: var(--bad-back); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--faint); font-weight: 600; font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; } .n { text-align: right; white-space: nowrap; } th.n { text-align: right; }
code { font: 13px ui-monospace, monospace; } .mark { font-weight: 700; white-space: nowrap; padding: 1px 8px; border-radius: 6px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px 24px; }
.facts div span { display: block; color: var(--faint); font-size: 13px; } .facts div { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--text); font: 13px system-ui, sans-serif; }
svg text.faint { fill: var(--faint); font-size: 12px; }
.grid { stroke: var(--rule); } .whisker { stroke: var(--faint); stroke-width: 1.5; }
.b1 { fill: var(--b1); } .b2 { fill: var(--b2); } .b3 { fill: var(--b3); } rect.bad { fill: var(--bad); }
polyline { fill: none; stroke-width: 2; } .c1 { stroke: var(--b1); } .c2 { stroke: var(--b2); } .c3 { stroke: var(--b3); }
.c4 { stroke: var(--faint); stroke-dasharray: 3 3; stroke-width: 1.2; } .band.odd { fill: var(--band); } .band.even { fill: none; }
.key { display: flex; gap: 18px; flex-wrap: wrap; font-size: 13px; color: var(--faint); margin: 6px 0 14px; }
.key i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
`;

const PHASES = {
  failover: 'before: all nodes live. detect: nodes are killed, and the gateways find out. down: they are known to be dead. back: they start again. after: they count again.',
  rolling: 'before: nothing happens. nodes: storage nodes are restarted, one after the other. gateways: so are the gateways, behind the load balancer. after: all have been.',
};

function legend(entries) {
  return `<div class="key">${entries.map(([colour, name]) => `<span><i style="background:var(${colour})"></i>${name}</span>`).join('')}</div>`;
}

function mark(ok) {
  return `<span class="mark ${ok ? 'pass' : 'fail'}">${ok ? 'pass' : 'FAIL'}</span>`;
}

function table(head, rows) {
  const cell = (tag) => (content, i) => `<${tag}${head[i].startsWith('#') ? ' class="n"' : ''}>${content}</${tag}>`;
  const titles = head.map((title) => title.replace('#', ''));
  const body = rows.map((row) => `<tr>${row.map(cell('td')).join('')}</tr>`).join('\n');
  return `<div class="wide"><table><thead><tr>${titles.map(cell('th')).join('')}</tr></thead>\n<tbody>${body}</tbody></table></div>`;
}

function section(title, content, about = '') {
  return `<section><h2>${title}</h2>${about ? `<p class="about">${about}</p>` : ''}${content}</section>`;
}

function latencies(groups, name) {
  const told = groups.some(({ failed }) => failed !== undefined);
  const share = (failed) => (failed > 0 ? `<span class="mark fail">${percent(failed)}</span>` : '0');
  const rows = groups.map(({ name: group, values, failed }) => [
    `<code>${escape(group)}</code>`,
    amount(values.count),
    ...(told ? [share(failed)] : []),
    ...['med', 'p(90)', 'p(95)', 'p(99)', 'p(99.9)', 'max'].map((stat) => time(values[stat])),
  ]);
  return table([name, '#requests', ...(told ? ['#failed'] : []), '#median', '#p90', '#p95', '#p99', '#p99.9', '#max'], rows);
}

function numbers(entries) {
  return table(['metric', '#value', 'what it is'], entries.map(({ name, value, about, bad }) => [
    `<code>${name}</code>`,
    bad ? `<span class="mark fail">${amount(value)}</span>` : amount(value),
    `<span class="faint">${escape(about)}</span>`,
  ]));
}

/** The page of a model that report.js made. */
export function page(model) {
  const { facts } = model;
  const failed = model.thresholds.filter((t) => !t.ok).length;
  const verdict = failed === 0 ? `passed: ${model.thresholds.length} of ${model.thresholds.length} thresholds hold` : `failed: ${failed} of ${model.thresholds.length} thresholds do not hold`;
  const parts = [];
  parts.push(section('Thresholds', table(['', 'metric', 'must be', '#was'], model.thresholds.map((t) => [
    mark(t.ok), `<code>${escape(t.metric)}</code>`, `<code>${escape(t.rule)}</code>`, t.was,
  ]))));
  parts.push(section('This run', `<div class="facts">${model.run.map(([name, value]) => `<div><span>${name}</span>${escape(value)}</div>`).join('')}</div>`));
  if (model.slices.some((slice) => slice)) {
    const key = legend([['--b1', 'median, and requests a second'], ['--b2', 'p99'], ['--b3', 'p99.9'], ['--faint', 'slowest'], ['--bad', 'failed requests']]);
    parts.push(section('Over time', overTime(model.slices, facts.total, facts.timeline) + key));
  }
  if (model.operations.length > 0) {
    const key = legend([['--b1', 'median to p95'], ['--b2', 'to p99'], ['--b3', 'to p99.9'], ['--faint', 'to the slowest']]);
    parts.push(section('By operation', ranges(model.operations) + key + latencies(model.operations, 'operation')));
  }
  if (model.phases.length > 0) {
    parts.push(section('By phase', latencies(model.phases, 'phase'), PHASES[facts.scenario]));
  }
  if (model.server.length > 0) {
    parts.push(section('Where the time went', latencies(model.server, 'Server-Timing').replace('>requests<', '>answers<'), 'As the gateway says in its answers.'));
  }
  if (model.writes.length > 0) parts.push(section('Writes, siblings and quorums', numbers(model.writes)));
  parts.push(section('Errors by kind', model.errors.length > 0 ? numbers(model.errors) : '<p class="faint">None.</p>'));
  if (model.checks.length > 0) {
    parts.push(section('Checks', table(['', 'check', '#held', '#did not'], model.checks.map((c) => [
      mark(c.fails === 0), escape(c.name), amount(c.passes), amount(c.fails),
    ]))));
  }
  if (model.cluster.length > 0) parts.push(section('The cluster', numbers(model.cluster)));
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>${escape(facts.scenario)}: ${failed === 0 ? 'passed' : 'FAILED'}</title><style>${STYLE}</style></head>
<body><main>
<header><h1>${escape(facts.scenario)}</h1><span class="verdict ${failed === 0 ? 'pass' : 'fail'}">${verdict}</span></header>
<p class="faint">Cartwheel load test, profile ${escape(facts.profile)}, ${escape(facts.started)}</p>
${parts.join('\n')}
</main></body></html>
`;
}
