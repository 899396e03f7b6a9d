#!/usr/bin/env bash
# Starts and stops the processes of a cluster on this machine, for the provisioners of this root.
#
#   local.sh COMMAND [ARGUMENT...]   with STATE_DIR, and BINARY where something is started or asked
#
# STATE_DIR holds all there is: credentials.env, lock, env/ log/ run/ data/ s3/. A process NAME has run/NAME.pid (its pid,
# when it was started, the program, the kind), env/NAME.env and log/NAME.log; a gateway has run/NAME.url as long as it is
# meant to be there.
set -euo pipefail

patience=${PATIENCE:-120}

die() {
  printf 'cartwheel: %s\n' "$*" >&2
  exit 1
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is needed on this machine, and not there"
  done
}

: "${STATE_DIR:?}"
marker=$STATE_DIR/.cartwheel-state
need setsid flock curl jq

need_binary() {
  [ -f "${BINARY:?}" ] && [ -x "$BINARY" ] ||
    die "binary: $BINARY is no program; build it with 'cargo build --release', or set the variable binary"
}

# Only one of the provisioners, which Terraform runs side by side, may change the cluster at a time: so an upgrade
# restarts one process after the other, and ring changes are staged one by one.
take_lock() {
  exec 9>"$STATE_DIR/lock"
  flock --wait 900 9 || die "another change of this cluster has gone on for 15 minutes"
}

# ---- processes

# When the process was started, in ticks since boot; fails if there is none. Tells a process from a later one of that pid.
started_at() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The second field is a name in parentheses and may hold anything.
  read -r -a fields <<<"${stat##*) }"
  [ "${fields[0]}" != Z ] && echo "${fields[19]}"
}

# The pid of NAME if it runs and is ours; else nothing. By its file, when it was started, and what its command line says.
pid_of() {
  local file=$STATE_DIR/run/$1.pid pid start program kind words
  [ -f "$file" ] || return 0
  { read -r pid && read -r start && read -r program && read -r kind; } <"$file" || return 0
  [ "$(started_at "$pid" || true)" = "$start" ] || return 0
  mapfile -d '' -t words 2>/dev/null <"/proc/$pid/cmdline" || return 0
  [ "${words[0]:-}" = "$program" ] && [ "${words[1]:-}" = "$kind" ] || return 0
  echo "$pid"
}

listens() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# launch NAME KIND PORT VARIABLE ARGUMENT... starts the process in a session of its own and waits until it listens.
# VARIABLE is the one that sets the port, for whoever finds it taken.
launch() {
  local name=$1 kind=$2 port=$3 variable=$4 file=$STATE_DIR/run/$1.pid log=$STATE_DIR/log/$1.log pid
  shift 4
  if listens "$port"; then
    die "port $port of this machine is taken by somebody else, $name can't have it; choose another one (variable $variable)"
  fi
  rm -f "$file"
  # shellcheck disable=SC2016 # this is for the inner shell
  setsid --fork bash -c '
    file=$1
    shift
    stat=$(cat /proc/$$/stat)
    stat=${stat##*) }
    set -- "$stat" "$@"
    fields=($1)
    shift
    printf "%s\n" "$$" "${fields[19]}" "$1" "$2" >"$file.new"
    mv "$file.new" "$file"
    exec "$@"
  ' launch "$file" "$BINARY" "$kind" "$@" </dev/null >>"$log" 2>&1 9>&-
  local end=$((SECONDS + 30))
  until [ -s "$file" ]; do
    [ $SECONDS -lt $end ] || die "$name did not start"
    sleep 0.05
  done
  pid=$(head -n 1 "$file")
  end=$((SECONDS + patience))
  until listens "$port"; do
    if ! started_at "$pid" >/dev/null; then
      tail -n 5 "$log" >&2
      rm -f "$file"
      die "$name ended before it served; the last lines of its log are above"
    fi
    [ $SECONDS -lt $end ] || { end_process "$name"; die "$name does not listen on port $port after ${patience} s; see $log"; }
    sleep 0.05
  done
}

# Ends NAME, if it runs: SIGTERM, which drains, and after a minute SIGKILL.
end_process() {
  local name=$1 pid end=$((SECONDS + 60))
  pid=$(pid_of "$name")
  if [ -n "$pid" ]; then
    kill -TERM "$pid" 2>/dev/null || true
    while [ -n "$(pid_of "$name")" ]; do
      if [ $SECONDS -ge $end ]; then
        echo "$name (pid $pid) did not end within a minute; killing it" >&2
        kill -KILL "$pid" 2>/dev/null || true
        end=$((SECONDS + 60))
      fi
      sleep 0.1
    done
  fi
  rm -f "$STATE_DIR/run/$name.pid"
}

# ---- what the cluster says

# Sets gateway_url to a gateway that answers; to nothing if none is meant to be there. Ends the script if there should be
# one and none answers.
find_gateway() {
  local file url any='' end=$((SECONDS + 20))
  while true; do
    for file in "$STATE_DIR"/run/*.url; do
      [ -f "$file" ] || continue
      any=yes
      url=$(cat "$file")
      if curl --silent --fail --max-time 3 --output /dev/null "$url/readyz"; then
        gateway_url=$url
        return
      fi
    done
    if [ -z "$any" ]; then
      gateway_url=''
      return
    fi
    [ $SECONDS -lt $end ] || die "no gateway answers, so nobody can be asked to change the ring; start one again first:" \
      "terraform apply -replace='terraform_data.gateway_process[\"NAME\"]'"
    sleep 0.3
  done
}

need_gateway() {
  find_gateway
  [ -n "$gateway_url" ] || die "there is no gateway to ask"
}

members() {
  curl --silent --fail --max-time 10 "$1/v1/cluster"
}

is_member() {
  local document
  document=$(members "$1") || die "$1/v1/cluster does not answer"
  jq --exit-status --arg id "$2" 'any(.members[]; .id == $id)' >/dev/null <<<"$document"
}

# Waits until node ID counts and no ring change is pending, in the eyes of every gateway that answers.
wait_settled() {
  local id=$1 end=$((SECONDS + patience)) file document seen='' behind
  while true; do
    behind=yes
    for file in "$STATE_DIR"/run/*.url; do
      document=$(members "$(cat "$file")") || continue
      seen=$(jq --compact-output --arg id "$id" '
        {change, member: ([.members[] | select(.id == $id) | {state, reachable, standing}] | first)}' <<<"$document")
      behind=''
      [ "$seen" = '{"change":null,"member":{"state":"active","reachable":true,"standing":"counting"}}' ] || {
        behind=yes
        break
      }
    done
    [ -n "$behind" ] || return 0
    [ $SECONDS -lt $end ] || die "$id does not count after ${patience} s: ${seen:-no gateway answers}"
    sleep 0.2
  done
}

# change ARGUMENT... runs `cartwheel node ARGUMENT... --yes --wait`; again if another change was in the way.
change() {
  local url=$1 try output
  shift
  for try in 1 2 3 4 5; do
    if output=$(timeout "$((patience * 5))" "$BINARY" node "$@" --gateway "$url" --yes --wait 2>&1 9>&-); then
      tail -n 1 <<<"$output"
      return 0
    fi
    # A change that others made between plan and apply, or one of theirs that is still pending: 409.
    grep -Eqi 'pending|is at version|newer|409' <<<"$output" || break
    sleep "$try"
  done
  printf '%s\n' "$output" >&2
  die "'cartwheel node $*' did not do it"
}

# ---- commands

folder_make() {
  if [ -e "$STATE_DIR" ] && [ ! -e "$marker" ] && [ -n "$(ls -A "$STATE_DIR")" ]; then
    die "state_dir: $STATE_DIR is there already and is not ours; choose another one"
  fi
  mkdir -p "$STATE_DIR"/{env,log,run,data,s3}
  chmod 0700 "$STATE_DIR"
  touch "$marker"
  if [ ! -s "$STATE_DIR/credentials.env" ]; then
    (
      umask 077
      printf 'AWS_ACCESS_KEY_ID="local"\nAWS_SECRET_ACCESS_KEY="%s"\n' \
        "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" >"$STATE_DIR/credentials.env"
    )
  fi
}

folder_remove() {
  local file name
  [ -e "$STATE_DIR" ] || return 0
  [ -e "$marker" ] || die "state_dir: $STATE_DIR is not ours; nothing was deleted"
  for file in "$STATE_DIR"/run/*.pid; do
    [ -f "$file" ] || continue
    name=$(basename "$file" .pid)
    [ -z "$(pid_of "$name")" ] || die "$name (pid $(pid_of "$name")) still runs; $STATE_DIR was not deleted"
  done
  rm -rf "$STATE_DIR"
}

load_credentials() {
  set -a
  # shellcheck disable=SC1091 # made by folder_make
  . "$STATE_DIR/credentials.env"
  set +a
}

# s3-start PORT BUCKET
s3_start() {
  need_binary
  take_lock
  load_credentials
  end_process s3
  launch s3 s3-server "$1" s3_port --listen "127.0.0.1:$1" --data-dir "$STATE_DIR/s3"
  # The checksum is that of an empty body. The secret goes to curl by its standard input, where no one else sees it.
  local status
  status=$(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
    curl --config - --silent --show-error --max-time 10 --output "$STATE_DIR/run/answer" --write-out '%{http_code}' \
      --request PUT --aws-sigv4 aws:amz:us-east-1:s3 \
      --header x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 \
      "http://127.0.0.1:$1/$2")
  case $status in
    200 | 409) rm -f "$STATE_DIR/run/answer" ;;
    *) die "the bucket $2 could not be made: $status $(cat "$STATE_DIR/run/answer")" ;;
  esac
}

# process-start KIND NAME PORT MACHINE, with the settings in ENVIRONMENT: starts it, or again with these settings.
process_start() {
  local kind=$1 name=$2 port=$3 machine=$4
  need_binary
  take_lock
  end_process "$name"
  printf '%s' "${ENVIRONMENT:?}" >"$STATE_DIR/env/$name.env"
  printf '%s\n' "$kind" "$port" "$machine" >"$STATE_DIR/env/$name.how"
  if [ "$kind" = gateway ]; then
    echo "http://127.0.0.1:$port" >"$STATE_DIR/run/$name.url"
  fi
  run_again "$name"
  if [ "$kind" = gateway ]; then
    wait_ready "http://127.0.0.1:$port" "$name"
    return
  fi
  find_gateway
  [ -n "$gateway_url" ] || return 0
  wait_settled "$name"
  # A disk that another machine had is of no use any more.
  find "$STATE_DIR/data/$name" -mindepth 1 -maxdepth 1 ! -name "$machine" -exec rm -rf {} +
}

# Starts NAME as it was started last.
run_again() {
  local name=$1 kind port machine
  { read -r kind && read -r port && read -r machine; } <"$STATE_DIR/env/$name.how" || die "$name was never started"
  (
    load_credentials
    set -a
    # shellcheck disable=SC1090 # made by process_start
    . "$STATE_DIR/env/$name.env"
    set +a
    if [ "$kind" = gateway ]; then
      launch "$name" gateway "$port" gateway_base_port
    else
      mkdir -p "$STATE_DIR/data/$name"
      launch "$name" storage-node "$port" node_base_port --data-dir "$STATE_DIR/data/$name/$machine"
    fi
  )
}

wait_ready() {
  local url=$1 name=$2 end=$((SECONDS + patience))
  until curl --silent --fail --max-time 3 --output /dev/null "$url/readyz"; do
    [ -n "$(pid_of "$name")" ] || die "$name ended: $(tail -n 1 "$STATE_DIR/log/$name.log")"
    [ $SECONDS -lt $end ] || die "$url/readyz is not ready after ${patience} s: $(curl --silent --max-time 3 "$url/readyz" || true)"
    sleep 0.1
  done
}

# gateway-remove NAME
gateway_remove() {
  [ -e "$marker" ] || return 0
  take_lock
  rm -f "$STATE_DIR/run/$1.url"
  end_process "$1"
  rm -f "$STATE_DIR/env/$1".* "$STATE_DIR/log/$1.log"
}

# member-remove ID: the node hands over what it holds, then its process ends and its data go. Where no gateway is meant to
# be there any more, the whole cluster is being taken down, and there is nobody to hand over to.
member_remove() {
  local id=$1
  [ -e "$marker" ] || return 0
  take_lock
  find_gateway
  if [ -n "$gateway_url" ]; then
    need_binary
    if is_member "$gateway_url" "$id"; then
      # A node that is down can't hand over anything.
      [ -n "$(pid_of "$id")" ] || run_again "$id"
      wait_settled "$id"
      change "$gateway_url" leave "$id"
    fi
  fi
  end_process "$id"
  rm -rf "$STATE_DIR/data/$id" "$STATE_DIR/env/$id".* "$STATE_DIR/log/$id.log"
}

# share ID WEIGHT ZONE: sees to it that the ring has the node at this weight and in this zone.
share() {
  local id=$1 weight=$2 zone=$3 url member
  need_binary
  take_lock
  need_gateway
  url=$gateway_url
  wait_settled "$id"
  member=$(members "$url" | jq --arg id "$id" '.members[] | select(.id == $id)')
  [ "$(jq .weight <<<"$member")" = "$weight" ] || change "$url" weight "$id" "$weight"
  [ "$(jq --raw-output .zone <<<"$member")" = "$zone" ] || change "$url" zone "$id" "$zone"
  wait_settled "$id"
}

# namespace-set NAME OPTION...
namespace_set() {
  need_binary
  take_lock
  need_gateway
  "$BINARY" namespace set "$@" --gateway "$gateway_url" 9>&-
}

command=${1:?}
shift
case $command in
  folder-make) folder_make ;;
  folder-remove) folder_remove ;;
  s3-start) s3_start "$@" ;;
  s3-stop) [ ! -e "$marker" ] || end_process s3 ;;
  process-start) process_start "$@" ;;
  gateway-remove) gateway_remove "$@" ;;
  member-remove) member_remove "$@" ;;
  share) share "$@" ;;
  namespace-set) namespace_set "$@" ;;
  *) die "there is no command '$command'" ;;
esac
