// Numbers and names as people read them.

export function escape(text) {
  return String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;').replace(/"/g, '&quot;');
}

/** Milliseconds as `0.42 ms`, `12 ms`, `1.3 s`, `5 min`, `2 h`. */
export function time(ms) {
  if (ms === undefined || ms === null) return '–';
  if (ms === 0) return '0';
  const short = (n) => (n >= 100 ? n.toFixed(0) : String(Number(n.toPrecision(2))));
  if (ms < 1000) return `${short(ms)} ms`;
  if (ms < 120000) return `${short(ms / 1000)} s`;
  return ms < 7200000 ? `${short(ms / 60000)} min` : `${short(ms / 3600000)} h`;
}

/** A count with thin groups of three; fractions keep two digits. */
export function amount(n) {
  if (n === undefined || n === null) return '–';
  if (!Number.isInteger(n)) return String(Number(n.toFixed(n < 10 ? 2 : 1)));
  return String(n).replace(/\B(?=(\d{3})+$)/g, '\u202f');
}

export function percent(share) {
  return `${Number((share * 100).toFixed(3))}%`;
}
