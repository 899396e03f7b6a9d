#!/bin/sh
# What is done on a host, as root.
#   host install NAME UNIT ID GATEWAY...   puts what lies beside this script in its place and starts the service; of a node
#                                          that ran already, waits until it counts again
#   host leave ID UNIT GATEWAY...          hands over what the node holds, and waits until it has
#   host share ID WEIGHT ZONE GATEWAY...   waits until the node counts, and sees to its weight and zone in the ring
#   host remove NAME UNIT [DATA]           ends the service and deletes what was installed for it
set -eu
program=/usr/local/bin/cartwheel
patience=300

die() {
  echo "cartwheel: $*" >&2
  exit 1
}

# The first gateway that answers.
gateway() {
  tries=0
  while [ "$tries" -lt 30 ]; do
    for url in "$@"; do
      if "$program" status --gateway "$url" --timeout 3s >/dev/null 2>&1; then
        echo "$url"
        return 0
      fi
    done
    tries=$((tries + 1))
    sleep 1
  done
  die "none of these gateways answers: $*"
}

# What the ring says of a node: zone, weight, state, reachable, standing.
member() {
  "$program" status --gateway "$1" 2>/dev/null | awk -v id="$2" '
    $1 == "ID" { for (i = 1; i <= NF; i++) at[$i] = i; next }
    $1 == id && at["STANDING"] { print $at["ZONE"], $at["WEIGHT"], $at["STATE"], $at["REACHABLE"], $at["STANDING"]; exit }'
}

# wait_counts ID GATEWAY...: every gateway has to see it.
wait_counts() {
  id=$1
  shift
  for url in "$@"; do
    waited=0
    until member "$url" "$id" | grep -q ' active yes counting$'; do
      waited=$((waited + 1))
      [ "$waited" -lt "$patience" ] || die "$id does not count after $patience s ($url): $(member "$url" "$id")"
      sleep 1
    done
  done
}

# change GATEWAY ARGUMENT...: again while others' changes are in the way.
change() {
  url=$1
  shift
  tries=0
  until output=$("$program" node "$@" --gateway "$url" --yes --wait 2>&1); do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ] || ! echo "$output" | grep -Eqi 'pending|is at version|newer|409'; then
      echo "$output" >&2
      die "'cartwheel node $*' did not do it"
    fi
    sleep 2
  done
  echo "$output" | tail -n 1
}

wait_active() {
  waited=0
  until systemctl is-active --quiet "$1"; do
    waited=$((waited + 1))
    if [ "$waited" -ge 60 ]; then
      journalctl --unit "$1" --lines 5 --no-pager >&2 || true
      die "$1 does not run"
    fi
    sleep 1
  done
}

install_all() {
  name=$1 unit=$2 id=$3
  shift 3
  here=$(dirname "$0")
  ran=no
  if systemctl is-active --quiet "$unit"; then ran=yes; fi
  mkdir -p /etc/cartwheel /usr/local/lib/cartwheel
  install -m 0755 "$here/host" /usr/local/lib/cartwheel/host
  install -m 0755 "$here/install" "/usr/local/lib/cartwheel/install-$name"
  install -m 0755 "$here/secrets" /usr/local/lib/cartwheel/secrets
  install -m 0644 "$here/env" "/etc/cartwheel/$name.env"
  install -m 0644 "$here/unit" "/etc/systemd/system/$unit"
  # A program that runs can't be written over, but another can take its name.
  install -m 0755 "$here/cartwheel" "$program.$name"
  mv "$program.$name" "$program"
  rm -rf "$here"
  rmdir "$(dirname "$here")" 2>/dev/null || true
  "/usr/local/lib/cartwheel/install-$name"
  wait_active "$unit"
  if [ "$id" = - ]; then
    gateway "$@" >/dev/null
  elif [ "$ran" = yes ]; then
    gateway "$@" >/dev/null
    wait_counts "$id" "$@"
  fi
}

command=$1
shift
case $command in
  install) install_all "$@" ;;
  leave)
    id=$1 unit=$2
    shift 2
    url=$(gateway "$@")
    if [ -n "$(member "$url" "$id")" ]; then
      # A node that is down can't hand over anything.
      systemctl start "$unit"
      wait_counts "$id" "$url"
      change "$url" leave "$id"
    fi
    ;;
  share)
    id=$1 weight=$2 zone=$3
    shift 3
    url=$(gateway "$@")
    wait_counts "$id" "$url"
    # shellcheck disable=SC2046 # five words
    set -- $(member "$url" "$id")
    [ "$2" = "$weight" ] || change "$url" weight "$id" "$weight"
    [ "$1" = "$zone" ] || change "$url" zone "$id" "$zone"
    wait_counts "$id" "$url"
    ;;
  remove)
    name=$1 unit=$2 data=${3:-}
    systemctl disable --now "$unit" || true
    rm -f "/etc/systemd/system/$unit" "/etc/cartwheel/$name.env" "/usr/local/lib/cartwheel/install-$name"
    systemctl daemon-reload
    case $data in
      /var/lib/cartwheel/?*) rm -rf "$data" ;;
    esac
    # The last one takes the rest along; secrets that you put there stay.
    if [ -z "$(find /etc/cartwheel -name '*.env' ! -name secrets.env)" ]; then
      rm -rf "$program" /usr/local/lib/cartwheel
      rmdir /etc/cartwheel /var/lib/cartwheel 2>/dev/null || true
    fi
    ;;
  *) die "there is no command '$command'" ;;
esac
