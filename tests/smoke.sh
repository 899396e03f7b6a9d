#!/usr/bin/env bash
# A whole cluster in one process, as a new user starts it: write, read, replace, delete, kill -9, start again,
# and find everything as it was. Usage: tests/smoke.sh target/release/cartwheel
set -euo pipefail

binary=${1:?usage: tests/smoke.sh PATH_OF_CARTWHEEL}
scratch=$(mktemp -d)
log=$scratch/log
pid=

finish() {
  local status=$?
  if [ -n "$pid" ]; then
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  fi
  if [ "$status" -ne 0 ] && [ -s "$log" ]; then
    echo "---- the end of the log"
    tail -n 60 "$log"
  fi
  rm -rf "$scratch"
}
trap finish EXIT

fail() {
  printf 'smoke: FAILED: %s\n' "$1"
  exit 1
}

# A port of this machine that nobody listens at, below those that the system hands out by itself.
free_port() {
  local port
  while true; do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}

port=$(free_port)
s3_port=$(free_port)
while [ "$s3_port" = "$port" ]; do
  s3_port=$(free_port)
done
url=http://127.0.0.1:$port/v1/kv/smoke

start() {
  "$binary" dev --listen "127.0.0.1:$port" --s3-listen "127.0.0.1:$s3_port" --data-dir "$scratch/data" \
    >>"$log" 2>&1 &
  pid=$!
  for _ in $(seq 600); do
    if curl --silent --fail --max-time 2 --output /dev/null "http://127.0.0.1:$port/readyz"; then
      return
    fi
    kill -0 "$pid" 2>/dev/null || fail "the process ended before it was ready"
    sleep 0.1
  done
  fail "not ready after a minute"
}

# request STATUS CURL_ARGUMENTS... leaves body and headers in files; fails at any other status.
request() {
  local wanted=$1 got
  shift
  got=$(curl --silent --show-error --max-time 30 --output "$scratch/body" --dump-header "$scratch/headers" \
    --write-out '%{http_code}' "$@") || fail "curl $*"
  if [ "$got" != "$wanted" ]; then
    cat "$scratch/headers" "$scratch/body"
    fail "wanted $wanted, got $got: $*"
  fi
}

header() {
  tr -d '\r' <"$scratch/headers" | sed -n "s/^$1: //Ip"
}

same_body() {
  cmp "$scratch/body" "$1" || fail "the bytes of $2 differ"
}

check_all() {
  request 200 "$url/alice"
  same_body "$scratch/second" "alice"
  [ "$(header content-type)" = "application/x-smoke" ] || fail "the content type of alice is lost"
  request 404 "$url/bob"
  [ "$(header cartwheel-deleted)" = "?1" ] || fail "bob is not told as deleted"
  request 300 "$url/carol"
  grep --quiet milk "$scratch/body" || fail "a sibling of carol is lost"
  grep --quiet bread "$scratch/body" || fail "a sibling of carol is lost"
  request 404 "$url/nobody"
}

head --bytes=100000 /dev/urandom >"$scratch/first"
head --bytes=70000 /dev/urandom >"$scratch/second"

start
request 204 --request PUT --data-binary "@$scratch/first" "$url/alice"
[ -n "$(header vector-clock)" ] || fail "no Vector-Clock after a PUT"
request 200 "$url/alice"
same_body "$scratch/first" "alice"
clock=$(header vector-clock)
[ -n "$clock" ] || fail "no Vector-Clock after a GET"
request 204 --request PUT --header "Vector-Clock: $clock" --header "Content-Type: application/x-smoke" \
  --data-binary "@$scratch/second" "$url/alice"

request 204 --request PUT --data-binary gone "$url/bob"
request 204 --request DELETE --header "Vector-Clock: $(header vector-clock)" "$url/bob"

request 204 --request PUT --data-binary milk "$url/carol"
request 204 --request PUT --data-binary bread "$url/carol"

request 400 --request PUT --header "Vector-Clock: node-a.1=99, mac=:AAAAAAAAAAAAAAAAAAAAAA==:" \
  --data-binary forged "$url/alice"
check_all
echo "smoke: writes, reads, siblings and deletes are as they should be"

kill -9 "$pid"
wait "$pid" 2>/dev/null || true
start
check_all
echo "smoke: and after kill -9 too"

kill -TERM "$pid"
wait "$pid" || fail "SIGTERM: the process ended with status $?"
pid=
start
check_all
echo "smoke: and after a clean end too"
