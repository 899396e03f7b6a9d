// Drawings of the report, as inline SVG that follows the page's colours.
import { escape, time } from './words.js';

const WIDTH = 1040;
const LEFT = 150;
const RIGHT = 34;

function log(value) {
  return Math.log10(Math.max(value, 0.01));
}

/** An axis of powers of ten that covers all values. */
function scale(values, from, to) {
  const some = values.filter((v) => v > 0);
  const low = Math.floor(log(some.length ? Math.min(...some) : 1));
  const high = Math.max(low + 1, Math.ceil(log(some.length ? Math.max(...some) : 10)));
  const at = (value) => from + ((Math.min(Math.max(log(value), low), high) - low) / (high - low)) * (to - from);
  const ticks = [];
  for (let power = low; power <= high; power += 1) ticks.push(Math.pow(10, power));
  return { at, ticks };
}

function svg(height, title, parts) {
  return `<svg viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${escape(title)}">${parts.join('')}</svg>`;
}

function text(x, y, words, anchor = 'start', kind = '') {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" class="${kind}">${escape(words)}</text>`;
}

function line(x1, y1, x2, y2, kind) {
  return `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" class="${kind}"/>`;
}

/** One bar a row, from the median over p95, p99 and p99.9 to the maximum, on an axis of powers of ten. */
export function ranges(rows) {
  const all = rows.flatMap(({ values }) => [values.med, values.max]);
  const { at, ticks } = scale(all, LEFT, WIDTH - RIGHT);
  const height = rows.length * 34 + 34;
  const parts = ticks.map((tick) => line(at(tick), 8, at(tick), height - 26, 'grid') + text(at(tick), height - 8, time(tick), 'middle', 'faint'));
  rows.forEach(({ name, values }, row) => {
    const y = 22 + row * 34;
    const bar = (from, to, kind) => {
      const width = Math.max(1, at(to) - at(from));
      return `<rect x="${at(from).toFixed(1)}" y="${y - 8}" width="${width.toFixed(1)}" height="16" class="${kind}"/>`;
    };
    parts.push(text(LEFT - 12, y + 5, name, 'end'));
    parts.push(bar(values.med, values['p(95)'], 'b1'), bar(values['p(95)'], values['p(99)'], 'b2'));
    parts.push(bar(values['p(99)'], values['p(99.9)'], 'b3'));
    parts.push(line(at(values['p(99.9)']), y, at(values.max), y, 'whisker'), line(at(values.max), y - 6, at(values.max), y + 6, 'whisker'));
  });
  return svg(height, 'Latency by operation', parts);
}

function curve(points, kind) {
  const drawn = points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(' ');
  return `<polyline points="${drawn}" class="${kind}"/>`;
}

/** The phases of the run behind a chart over time. */
function bands(timeline, total, top, bottom) {
  if (!timeline) return [];
  const at = (ms) => LEFT + (ms / total) * (WIDTH - LEFT - RIGHT);
  return timeline.map(([name, from], i) => {
    const to = i + 1 < timeline.length ? timeline[i + 1][1] : total;
    const shade = `<rect x="${at(from).toFixed(1)}" y="${top}" width="${Math.max(0, at(to) - at(from)).toFixed(1)}" height="${bottom - top}" class="band ${i % 2 ? 'odd' : 'even'}"/>`;
    return shade + text((at(from) + at(to)) / 2, top - 5, name, 'middle', 'faint');
  });
}

/** Latency over time: `columns` holds for each slice of the run `{ values, failed, share }`, or null. */
export function overTime(columns, total, timeline) {
  const top = 24;
  const bottom = 200;
  const bars = 290;
  const width = (WIDTH - LEFT - RIGHT) / columns.length;
  const middle = (i) => LEFT + (i + 0.5) * width;
  const some = columns.map((column, i) => ({ column, i })).filter(({ column }) => column);
  const { at, ticks } = scale(some.flatMap(({ column }) => [column.values.med, column.values.max]), bottom, top);
  const parts = bands(timeline, total, top, bars);
  for (const tick of ticks) parts.push(line(LEFT, at(tick), WIDTH - RIGHT, at(tick), 'grid'), text(LEFT - 12, at(tick) + 4, time(tick), 'end', 'faint'));
  const kinds = [['max', 'c4'], ['p(99.9)', 'c3'], ['p(99)', 'c2'], ['med', 'c1']];
  for (const [name, kind] of kinds) parts.push(curve(some.map(({ column, i }) => [middle(i), at(column.values[name])]), kind));
  const perSecond = some.map(({ column }) => (column.values.count * 1000 * columns.length) / total);
  const most = Math.max(1, ...perSecond);
  some.forEach(({ column, i }, n) => {
    const height = (perSecond[n] / most) * 60;
    const bad = height * column.failed;
    const x = (LEFT + i * width + 1.5).toFixed(1);
    const w = (width - 3).toFixed(1);
    parts.push(`<rect x="${x}" y="${(bars - height).toFixed(1)}" width="${w}" height="${height.toFixed(1)}" class="b1"><title>${perSecond[n].toFixed(0)} requests/s, ${(column.failed * 100).toFixed(2)}% failed</title></rect>`);
    if (bad > 0) parts.push(`<rect x="${x}" y="${(bars - Math.max(2, bad)).toFixed(1)}" width="${w}" height="${Math.max(2, bad).toFixed(1)}" class="bad"/>`);
  });
  parts.push(text(LEFT - 12, bars - 52, `${most.toFixed(0)}/s`, 'end', 'faint'), text(LEFT - 12, bars, '0', 'end', 'faint'));
  for (let i = 0; i <= 4; i += 1) {
    parts.push(text(LEFT + ((WIDTH - LEFT - RIGHT) * i) / 4, bars + 20, time((total * i) / 4), i === 0 ? 'start' : i === 4 ? 'end' : 'middle', 'faint'));
  }
  return svg(bars + 28, 'Latency and requests over time', parts);
}
