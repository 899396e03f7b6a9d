#!/usr/bin/env bash
# A load balancer in front of the gateways: haproxy, from Debian's packages. Sourced by run.sh.
# shellcheck disable=SC2154 # cluster_* are set by cluster.sh
set -euo pipefail

balancer_url=
balancer_state=

# find_haproxy LOG: sets HAPROXY to a haproxy, installed if need be; 1 if there is none to be had.
find_haproxy() {
  if [ -n "${HAPROXY:-}" ]; then
    command -v "$HAPROXY" >/dev/null || { echo "HAPROXY=$HAPROXY can't be run" >&2; return 1; }
    return
  fi
  # Debian puts it where only root's PATH leads to.
  HAPROXY=$(PATH=$PATH:/usr/sbin command -v haproxy) && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  echo 'no haproxy on the PATH; installing the Debian package haproxy' >&2
  local install=(apt-get install --yes --no-install-recommends haproxy)
  export DEBIAN_FRONTEND=noninteractive
  if ! { "${install[@]}" || { apt-get update && "${install[@]}"; }; } >"$1" 2>&1; then
    tail -n 3 "$1" >&2
    return 1
  fi
  HAPROXY=$(PATH=$PATH:/usr/sbin command -v haproxy)
}

# start_balancer: in front of all gateways of the cluster. Sets balancer_url and balancer_state (its figures).
start_balancer() {
  local port=$((cluster_base + 38)) at url config=$cluster_dir/haproxy.cfg
  # What may have been applied is never sent twice: another gateway is tried only if a connection can't be opened.
  cat >"$config" <<TEXT
global
  nbthread 1
  log stdout format raw local0 info
defaults
  mode http
  log global
  option httplog
  option dontlog-normal
  option redispatch 1
  retries 3
  retry-on conn-failure
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  timeout check 2s
listen gateways
  bind 127.0.0.1:$port
  balance roundrobin
  option httpchk
  http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host balancer
  http-check expect status 200
  http-response set-header X-Served-By %[srv_name]
  default-server check inter 300ms fall 1 rise 1
TEXT
  at=0
  for url in ${cluster_urls//,/ }; do
    at=$((at + 1))
    echo "  server gateway-$at ${url#http://}" >>"$config"
  done
  cat >>"$config" <<TEXT
listen state
  bind 127.0.0.1:$((port + 1))
  stats enable
  stats uri /
TEXT
  "$HAPROXY" -db -f "$config" >>"$cluster_dir/haproxy.log" 2>&1 &
  cluster_pids+=("$!")
  balancer_url=http://127.0.0.1:$port balancer_state="http://127.0.0.1:$((port + 1))/;csv"
  until_true 'the load balancer does not serve' is_ready "$balancer_url" || return 1
  for ((at = 1; at <= cluster_gateways; at++)); do
    until_true "the load balancer does not use gateway-$at" is_used "$at" || return 1
  done
}

# is_used NUMBER: does the balancer send requests to that gateway?
is_used() {
  curl --silent --fail --max-time 2 "$balancer_state" | grep --quiet "^gateways,gateway-$1,.*,UP,"
}
