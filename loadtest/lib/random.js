// Seeded randomness: a virtual user draws the same numbers in every run of one seed.
import exec from 'k6/execution';
import { run } from './settings.js';

let state = null;

function next() {
  if (state === null) {
    const user = exec.vu.idInTest || 0;
    state = (Math.imul(run.seed, 0x9e3779b1) ^ Math.imul(user + 1, 0x85ebca6b)) >>> 0;
  }
  // mulberry32
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return (t ^ (t >>> 14)) >>> 0;
}

/** A number from 0 to below 1. */
export function fraction() {
  return next() / 4294967296;
}

/** A whole number from 0 to below `limit`. */
export function below(limit) {
  return Math.floor(fraction() * limit);
}

/** So many hexadecimal digits. */
export function hex(digits) {
  let text = '';
  while (text.length < digits) text += next().toString(16).padStart(8, '0');
  return text.slice(0, digits);
}

/** A drawer of ranks from 0 to `count - 1` by Zipf's law: rank k has the weight 1 / (k + 1)^exponent. */
export function zipf(count, exponent) {
  const sums = new Float64Array(count);
  let sum = 0;
  for (let rank = 0; rank < count; rank += 1) {
    sum += 1 / Math.pow(rank + 1, exponent);
    sums[rank] = sum;
  }
  return () => {
    const wanted = fraction() * sum;
    let [low, high] = [0, count - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sums[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  };
}
