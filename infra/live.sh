#!/usr/bin/env bash
# Starts a cluster and a Prometheus on this machine, and asks every expression of rules and dashboards while the cluster
# is well and while storage nodes are gone (lib/live.py says what must come of it). Takes about a minute.
# CARTWHEEL_BINARY: the program (default: target/release/cartwheel); LIVE_PORT: first of 30 free ports of loopback
# (default: 17000); PROMETHEUS: the server (default: prometheus on the PATH); PYTHON: a Python with PyYAML.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath "${CARTWHEEL_BINARY:-$here/../target/release/cartwheel}")
prometheus=${PROMETHEUS:-$(command -v prometheus || true)}
[ -x "$binary" ] || { echo "FAILED: there is no program $binary" >&2; exit 1; }
[ -n "$prometheus" ] || { echo "FAILED: there is no prometheus; set PROMETHEUS" >&2; exit 1; }
command -v curl >/dev/null || { echo "FAILED: curl is needed" >&2; exit 1; }

scratch=$(mktemp -d)
child=
finish() {
  local status=$?
  trap - EXIT
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  if [ "$status" -ne 0 ]; then
    tail -n 5 "$scratch"/*.log 2>/dev/null || true
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

python=${PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install --quiet 'PyYAML==6.0.3'
  python=$scratch/venv/bin/python
fi
mkdir "$scratch/run"
export PYTHONDONTWRITEBYTECODE=1
timeout 300 "$python" "$here/lib/live.py" "$here" "$binary" "$prometheus" "$scratch/run" "${LIVE_PORT:-17000}" &
child=$!
status=0
wait "$child" || status=$?
child=
[ "$status" -eq 0 ] || cp "$scratch"/run/*.log "$scratch" 2>/dev/null || true
[ "$status" -eq 0 ]
