#!/usr/bin/env bash
# What each change of the local root would touch, read out of Terraform's plans, and what its scripts do when things are
# not as they left them. Starts a small cluster and takes it down again.
# Usage: tests/changes.sh BINARY FIRST_PORT   (ports from FIRST_PORT to FIRST_PORT + 29 must be free)
set -euo pipefail

binary=$(realpath "${1:?}")
port=${2:?}
root=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
state=$scratch/state
vars=(
  -var "binary=$binary" -var "state_dir=$state" -var "s3_port=$port"
  -var "node_base_port=$((port + 1))" -var "gateway_base_port=$((port + 20))"
)
export TF_IN_AUTOMATION=1 TF_INPUT=0 TF_CLI_ARGS=-no-color

tf() {
  local command=$1
  shift
  terraform -chdir="$root" "$command" -state="$scratch/terraform.tfstate" "$@"
}

blocker=
finish() {
  local status=$?
  trap - EXIT
  [ -z "$blocker" ] || kill "$blocker" 2>/dev/null || true
  if [ "$status" -ne 0 ]; then
    tail -n 30 "$scratch/out" 2>/dev/null || true
    tf destroy -auto-approve "${vars[@]}" >"$scratch/destroy" 2>&1 || tail -n 30 "$scratch/destroy"
  fi
  rm -rf "$scratch"
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

fail() {
  printf 'changes: FAILED: %s\n' "$*"
  exit 1
}

# touches WHAT WANTED ARGUMENT...: what a plan with these arguments does, as "ADDRESS ACTIONS", is WANTED.
touches() {
  local what=$1 wanted=$2 found
  shift 2
  tf plan -out="$scratch/plan" "${vars[@]}" "$@" >"$scratch/out" 2>&1 || fail "$what: no plan"
  found=$(terraform -chdir="$root" show -json "$scratch/plan" | jq --raw-output '
    .resource_changes[] | select(.change.actions != ["no-op"]) | .address + " " + (.change.actions | join("+"))' | sort)
  [ "$found" = "$wanted" ] || fail "$what touches:
$found
and should touch:
$wanted"
  printf 'changes: %s touches %s\n' "$what" "${wanted//$'\n'/, }"
}

three=(-var node_count=3)

# A port that somebody else has. This shell's own listener, so nothing else is needed.
python3 -c '
import socket, sys, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", int(sys.argv[1]))); s.listen(); time.sleep(120)' "$port" &
blocker=$!
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do sleep 0.05; done
if tf apply -auto-approve "${vars[@]}" "${three[@]}" >"$scratch/out" 2>&1; then
  fail "the S3 server's port was taken, and apply did not mind"
fi
grep -q "port $port of this machine is taken by somebody else" "$scratch/out" || fail "the message does not name the port"
kill "$blocker"
wait "$blocker" 2>/dev/null || true
blocker=
echo "changes: a taken port is named"

tf apply -auto-approve "${vars[@]}" "${three[@]}" >"$scratch/out" 2>&1 || fail "the first apply"
tf plan -detailed-exitcode "${vars[@]}" "${three[@]}" >"$scratch/out" 2>&1 || fail "a second apply would change something"
echo "changes: a second apply changes nothing"

touches "one node more" 'terraform_data.member["node-d"] create
terraform_data.process["node-d"] create
terraform_data.share["node-d"] create' -var node_count=4
touches "another weight" 'terraform_data.share["node-b"] delete+create' "${three[@]}" -var 'weights={node-b=2}'
touches "another machine" 'terraform_data.process["node-c"] delete+create' "${three[@]}" -var 'machines={node-c=2}'
touches "one gateway less" 'terraform_data.gateway["gateway-2"] delete
terraform_data.gateway_process["gateway-2"] delete' "${three[@]}" -var gateway_count=1
touches "a namespace" 'terraform_data.namespace["carts"] create' "${three[@]}" -var 'namespaces={carts={w=3}}'

tf apply -auto-approve "${vars[@]}" -var node_count=4 >"$scratch/out" 2>&1 || fail "the fourth node"
touches "one node less" 'terraform_data.member["node-d"] delete
terraform_data.process["node-d"] delete
terraform_data.share["node-d"] delete' "${three[@]}"

pid_of() {
  head -n 1 "$state/run/$1.pid"
}

# Does the process run? One that ended and that nobody has asked about (a zombie, where init does not care) does not.
runs() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) && [[ ${stat##*) } != Z* ]]
}

# A new build: each process is started again, none at the same time as another, and nothing leaves the ring.
version=$(curl --silent --fail "http://127.0.0.1:$((port + 20))/v1/cluster" | jq .ring_version)
before=$(pid_of node-a)
cp "$binary" "$scratch/newer"
printf '\n' >>"$scratch/newer"
vars[1]="binary=$scratch/newer"
tf apply -auto-approve "${vars[@]}" -var node_count=4 >"$scratch/out" 2>&1 || fail "the upgrade"
[ "$(pid_of node-a)" != "$before" ] || fail "the upgrade did not start node-a again"
[ "$(curl --silent --fail "http://127.0.0.1:$((port + 20))/v1/cluster" | jq .ring_version)" = "$version" ] ||
  fail "the upgrade changed the ring"
echo "changes: an upgrade restarts each process and leaves the ring as it is"

# Scaling in while that node's process is dead: it is started again to hand over what it holds.
kill -KILL "$(pid_of node-d)"
tf apply -auto-approve "${vars[@]}" "${three[@]}" >"$scratch/out" 2>&1 || fail "scaling in with a dead process"
three_members() {
  curl --silent --fail "http://127.0.0.1:$((port + 20))/v1/cluster" |
    jq --exit-status '.change == null and (.members | length) == 3' >/dev/null
}
# The gateway may not have been the one that was asked.
for _ in $(seq 30); do
  ! three_members || break
  sleep 0.5
done
three_members || fail "node-d is still a member"
[ ! -e "$state/data/node-d" ] || fail "node-d's data are still there"
echo "changes: a dead node leaves in good order"

# A pid file that names a process of somebody else: that one must live on.
kill -KILL "$(pid_of node-a)"
sleep 100 &
blocker=$!
sed -i "1s/.*/$blocker/" "$state/run/node-a.pid"
mapfile -t pids < <(head -qn 1 "$state"/run/*.pid)
tf destroy -auto-approve "${vars[@]}" "${three[@]}" >"$scratch/out" 2>&1 || fail "destroy"
runs "$blocker" || fail "destroy killed a process that is not ours"
kill "$blocker"
for pid in "${pids[@]}"; do
  [ "$pid" = "$blocker" ] || ! runs "$pid" || fail "process $pid is left"
done
[ ! -e "$state" ] || fail "$state is left"
[ "$(jq '.resources | length' "$scratch/terraform.tfstate")" = 0 ] || fail "the state has resources left"
blocker=
echo "changes: destroy leaves nothing and kills nobody else"
