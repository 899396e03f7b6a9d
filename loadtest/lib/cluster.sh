#!/usr/bin/env bash
# A cluster of real processes on this machine: object storage, storage nodes, gateways. Sourced by run.sh.
set -euo pipefail

cluster_dir=
cluster_binary=
cluster_base=
cluster_nodes=0
cluster_gateways=0
cluster_urls=
declare -a cluster_pids=() node_pids=() node_flags=() gateway_pids=() gateway_flags=()

port_is_free() {
  ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# The first of 40 ports in a row that nobody listens at, between 19000 and 19999.
free_ports() {
  local base port tries
  for tries in 1 2 3 4 5 6 7 8 9 10; do
    base=$((19000 + (RANDOM % 24) * 40))
    for ((port = base; port < base + 40; port++)); do
      port_is_free "$port" || continue 2
    done
    echo "$base"
    return
  done
  echo "no 40 free ports in a row between 19000 and 19999, in $tries tries" >&2
  return 1
}

# start_node NUMBER: storage node 1, 2, …
start_node() {
  "$cluster_binary" storage-node --id "node-$1" --bucket s3://loadtest/run \
    --listen "127.0.0.1:$((cluster_base + $1))" --data-dir "$cluster_dir/node-$1" \
    ${node_flags[@]+"${node_flags[@]}"} >>"$cluster_dir/node-$1.log" 2>&1 &
  node_pids[$1]=$!
}

# start_gateway NUMBER: gateway 1, 2, …
start_gateway() {
  "$cluster_binary" gateway --bucket s3://loadtest/run --listen "127.0.0.1:$((cluster_base + 29 + $1))" \
    ${gateway_flags[@]+"${gateway_flags[@]}"} >>"$cluster_dir/gateway-$1.log" 2>&1 &
  gateway_pids[$1]=$!
}

# end_process NAME PID SIGNAL: waits up to a minute for its end; by TERM it must end in good order, with status 0.
end_process() {
  local name=$1 pid=$2 signal=$3 tries status=0
  kill -s "$signal" "$pid" 2>/dev/null || { echo "$name is not there any more" >&2; return 1; }
  for ((tries = 0; tries < 1200; tries++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  if kill -0 "$pid" 2>/dev/null; then
    echo "$name goes on a minute after SIG$signal" >&2
    return 1
  fi
  wait "$pid" 2>/dev/null || status=$?
  if [ "$signal" = TERM ] && [ "$status" != 0 ]; then
    echo "$name ended with status $status after SIGTERM" >&2
    return 1
  fi
}

# kill_node NUMBER: kill -9, as a power cut would.
kill_node() {
  kill -9 "${node_pids[$1]}" && wait "${node_pids[$1]}" 2>/dev/null
  ! kill -0 "${node_pids[$1]}" 2>/dev/null
}

make_bucket() {
  local empty=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
  curl --silent --fail --max-time 5 --output /dev/null --request PUT \
    --header "x-amz-content-sha256: $empty" --aws-sigv4 aws:amz:us-east-1:s3 \
    --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$AWS_ENDPOINT_URL_S3/loadtest"
}

# until_true WHAT COMMAND...: once a fifth of a second for a minute.
until_true() {
  local what=$1 tries
  shift
  for ((tries = 0; tries < 300; tries++)); do
    if "$@"; then return 0; fi
    sleep 0.2
  done
  echo "the cluster does not get ready within a minute: $what; its logs are in $cluster_dir" >&2
  tail -n 3 "$cluster_dir"/*.log >&2 || true
  return 1
}

is_ready() {
  curl --silent --fail --max-time 2 --output /dev/null "$1/readyz"
}

# All nodes are members, in reach, and count.
is_whole() {
  local cluster
  cluster=$(curl --silent --max-time 5 "$1/v1/cluster") || true
  [ "$(grep -c '"reachable": *true' <<<"$cluster")" = "$cluster_nodes" ] &&
    [ "$(grep -c '"standing": *"counting"' <<<"$cluster")" = "$cluster_nodes" ]
}

# start_cluster BINARY DIRECTORY NODES GATEWAYS; storage nodes also get node_flags, gateways gateway_flags.
# Sets cluster_urls.
start_cluster() {
  cluster_binary=$1 cluster_dir=$2 cluster_nodes=$3 cluster_gateways=$4
  local at
  cluster_base=$(free_ports) || return 1
  mkdir -p "$cluster_dir"
  export AWS_ACCESS_KEY_ID=loadtest AWS_SECRET_ACCESS_KEY=loadtest-secret AWS_REGION=us-east-1
  export AWS_ENDPOINT_URL_S3=http://127.0.0.1:$cluster_base
  "$cluster_binary" s3-server --listen "127.0.0.1:$cluster_base" --data-dir "$cluster_dir/s3" --no-sync \
    >>"$cluster_dir/s3.log" 2>&1 &
  cluster_pids+=("$!")
  until_true 'no bucket' make_bucket || return 1
  for ((at = 1; at <= cluster_nodes; at++)); do start_node "$at"; done
  for ((at = 1; at <= cluster_gateways; at++)); do
    start_gateway "$at"
    cluster_urls=${cluster_urls:+$cluster_urls,}http://127.0.0.1:$((cluster_base + 29 + at))
  done
  local url
  for url in ${cluster_urls//,/ }; do
    until_true "$url" is_ready "$url" || return 1
    until_true "$url does not reach $cluster_nodes nodes" is_whole "$url" || return 1
  done
}

# Ends every process that was started here. Nothing is to be kept, so none need to be asked politely.
stop_cluster() {
  local pid all
  all=(${node_pids[@]+"${node_pids[@]}"} ${gateway_pids[@]+"${gateway_pids[@]}"} ${cluster_pids[@]+"${cluster_pids[@]}"})
  for pid in ${all[@]+"${all[@]}"}; do
    kill -9 "$pid" 2>/dev/null || true
  done
  for pid in ${all[@]+"${all[@]}"}; do
    wait "$pid" 2>/dev/null || true
  done
  node_pids=() gateway_pids=() cluster_pids=()
}
