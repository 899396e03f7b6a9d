#!/bin/sh
# Changes the ring through a gateway (CARTWHEEL_GATEWAY) with BINARY; MARKS is a folder for one mark.
#   ring.sh leave ID | share ID WEIGHT ZONE | up | down
set -eu
: "${MARKS:?}"
patience=${PATIENCE:-900}

die() {
  echo "cartwheel: $*" >&2
  exit 1
}

wait_gateway() {
  waited=0
  until "$BINARY" status --timeout 5s >/dev/null 2>&1; do
    command -v "$BINARY" >/dev/null || die "binary: there is no $BINARY on this machine"
    waited=$((waited + 1))
    [ "$waited" -lt "$patience" ] || die "$CARTWHEEL_GATEWAY does not answer after $patience s"
    sleep 1
  done
}

# What the ring says of a node: zone, weight, state, reachable, standing; nothing if it is no member. Fails if nobody says.
member() {
  said=$("$BINARY" status 2>/dev/null) || return 1
  printf '%s\n' "$said" | awk -v id="$1" '
    $1 == "ID" { for (i = 1; i <= NF; i++) at[$i] = i; next }
    $1 == id && at["STANDING"] { print $at["ZONE"], $at["WEIGHT"], $at["STATE"], $at["REACHABLE"], $at["STANDING"]; exit }'
}

wait_counts() {
  waited=0
  until member "$1" | grep -q ' active yes counting$'; do
    waited=$((waited + 1))
    [ "$waited" -lt "$patience" ] || die "$1 does not count after $patience s: $(member "$1")"
    sleep 1
  done
}

# Again while others' changes are in the way.
change() {
  tries=0
  until output=$("$BINARY" node "$@" --yes --wait 2>&1); do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ] || ! echo "$output" | grep -Eqi 'pending|is at version|newer|409'; then
      echo "$output" >&2
      die "'cartwheel node $*' did not do it"
    fi
    sleep 2
  done
  echo "$output" | tail -n 1
}

case $1 in
  leave)
    [ ! -e "$MARKS/teardown" ] || exit 0
    wait_gateway
    known=$(member "$2") || die "$CARTWHEEL_GATEWAY does not say whether $2 is a member"
    [ -z "$known" ] || change leave "$2"
    ;;
  share)
    id=$2 weight=$3 zone=$4
    wait_gateway
    wait_counts "$id"
    # shellcheck disable=SC2046 # five words
    set -- $(member "$id")
    [ "$2" = "$weight" ] || change weight "$id" "$weight"
    [ "$1" = "$zone" ] || change zone "$id" "$zone"
    ;;
  up) rm -rf "$MARKS" ;;
  down) mkdir -p "$MARKS" && touch "$MARKS/teardown" ;;
  *) die "there is no command '$1'" ;;
esac
