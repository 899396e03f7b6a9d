#!/usr/bin/env bash
# Applies the ssh root against an sshd of its own on loopback, whose /etc, /usr/local, /var/lib and /root are throw-away
# copies (a mount namespace with overlays), and with a stand-in for systemctl. Needs root, sshd, unshare and overlays.
# Usage: tests/sshd.sh BINARY FIRST_PORT   (FIRST_PORT to FIRST_PORT + 29 must be free)
# Says "SKIPPED: ..." and ends with 0 where it can't run.
set -euo pipefail

binary=$(realpath "${1:?}")
port=${2:?}
root=$(cd "$(dirname "$0")/.." && pwd)

skip() {
  printf 'SKIPPED: the ssh root was not applied: %s\n' "$*"
  exit 0
}

[ "$(id -u)" -eq 0 ] || skip "it needs root"
for tool in sshd ssh-keygen scp unshare setsid jq curl; do
  [ -n "$(PATH=$PATH:/usr/sbin command -v "$tool")" ] || skip "there is no $tool"
done

scratch=$(mktemp -d)
mkdir -p "$scratch/standin" "$scratch/bin"
s3=
sshd=
export TF_IN_AUTOMATION=1 TF_INPUT=0 TF_CLI_ARGS=-no-color

finish() {
  local status=$? file
  trap - EXIT
  if [ "$status" -ne 0 ]; then
    tail -n 40 "$scratch/out" "$scratch/sshd.log" "$scratch"/standin/*.log 2>/dev/null || true
  fi
  for file in "$scratch"/standin/*.pid; do
    [ ! -f "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
  done
  [ -z "$sshd" ] || kill "$sshd" 2>/dev/null || true
  [ -z "$s3" ] || kill "$s3" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$scratch" "$root/.cartwheel-ssh"
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

fail() {
  printf 'sshd: FAILED: %s\n' "$*"
  exit 1
}

unshare --mount true 2>/dev/null || skip "mount namespaces can't be made here"

AWS_ACCESS_KEY_ID=ssh AWS_SECRET_ACCESS_KEY=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
"$binary" s3-server --listen "127.0.0.1:$port" --data-dir "$scratch/s3" --no-sync >"$scratch/s3.log" 2>&1 &
s3=$!

ssh-keygen -q -t ed25519 -N '' -f "$scratch/key"
ssh-keygen -q -t ed25519 -N '' -f "$scratch/host_key"
install -m 0755 "$root/tests/systemctl" "$scratch/bin/systemctl"
cat >"$scratch/sshd_config" <<EOF
ListenAddress 127.0.0.1:$((port + 1))
HostKey $scratch/host_key
AuthorizedKeysFile $scratch/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
SetEnv PATH=$scratch/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin STANDIN=$scratch/standin
EOF
# shellcheck disable=SC2016 # this is for the inner shell
unshare --mount --propagation private bash -c '
  set -e
  for folder in etc usr/local var/lib root; do
    upper=$1/overlay/$folder
    mkdir -p "$upper/upper" "$upper/work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$upper/upper,workdir=$upper/work" "/$folder"
  done
  mkdir -p /run/sshd /etc/cartwheel
  umask 077
  printf "AWS_ACCESS_KEY_ID=\"%s\"\nAWS_SECRET_ACCESS_KEY=\"%s\"\n" "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" \
    >/etc/cartwheel/secrets.env
  exec "$(PATH=$PATH:/usr/sbin command -v sshd)" -D -e -f "$1/sshd_config"
' namespace "$scratch" >"$scratch/sshd.log" 2>&1 &
sshd=$!
for p in "$port" $((port + 1)); do
  for _ in $(seq 100); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then continue 2; fi
    kill -0 "$sshd" 2>/dev/null || skip "sshd did not start: $(tail -n 1 "$scratch/sshd.log")"
    sleep 0.1
  done
  fail "nobody listens on port $p"
done
printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" |
  curl --config - --silent --show-error --fail --request PUT --aws-sigv4 aws:amz:us-east-1:s3 \
    --header x-amz-content-sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 \
    "http://127.0.0.1:$port/carts"

# variables COUNT WEIGHT_OF_NODE_2
variables() {
  jq --null-input --argjson port "$port" --arg key "$scratch/key" --arg binary "$binary" --argjson count "$1" --argjson weight "$2" \
    --arg host_key "$(cut -d ' ' -f 1,2 "$scratch/host_key.pub")" '
    {host: "127.0.0.1", listen: "127.0.0.1", ssh_port: ($port + 1), host_key: $host_key} as $host | {
      ssh: {private_key_file: $key, timeout: "20s"}, binary_file: $binary, bucket: "carts", endpoint: "http://127.0.0.1:\($port)",
      nodes: [range($count) | {key: "node-\(. + 1)",
        value: ($host + {port: ($port + 10 + .), zone: "z\(. % 3)", memory: "64MiB", weight: (if . == 1 then $weight else 1 end)})}] | from_entries,
      gateways: {one: ($host + {port: ($port + 20)}), two: ($host + {port: ($port + 21)})},
      namespaces: {carts: {w: 3}}
    }' >"$scratch/vars.tfvars.json"
}

tf() {
  local command=$1
  shift
  terraform -chdir="$root" "$command" -state="$scratch/terraform.tfstate" -var-file="$scratch/vars.tfvars.json" "$@"
}

members() {
  curl --silent --fail "http://127.0.0.1:$((port + 20))/v1/cluster" |
    jq --raw-output 'if .change then "changing" else [.members[] | "\(.id)=\(.weight)"] | sort | join(" ") end'
}

# has_members "ID=WEIGHT ...": the gateway may not have been the one that was asked for a change, and hears of it later.
has_members() {
  for _ in $(seq 30); do
    [ "$(members)" != "$1" ] || return 0
    sleep 0.5
  done
  fail "the members are $(members), not $1"
}

variables 3 1
tf apply -auto-approve >"$scratch/out" 2>&1 || fail "apply"
has_members "node-1=1 node-2=1 node-3=1"
"$binary" put carts alice --value milk --gateway "http://127.0.0.1:$((port + 21))" >/dev/null 2>&1 || fail "put"
tf plan -detailed-exitcode >"$scratch/out" 2>&1 || fail "a second apply would change something"
! grep -q "$AWS_SECRET_ACCESS_KEY\|PRIVATE KEY" "$scratch/terraform.tfstate" || fail "there is a secret in the state"
echo "sshd: three nodes and two gateways were installed and serve"

variables 4 2
tf apply -auto-approve >"$scratch/out" 2>&1 || fail "the fourth node"
has_members "node-1=1 node-2=2 node-3=1 node-4=1"
echo "sshd: a fourth node joined, and another got a new weight"

cp "$binary" "$scratch/newer"
printf '\n' >>"$scratch/newer"
binary=$scratch/newer
variables 4 2
tf apply -auto-approve >"$scratch/out" 2>&1 || fail "the upgrade"
has_members "node-1=1 node-2=2 node-3=1 node-4=1"
echo "sshd: all were upgraded, one after the other"

variables 3 2
tf apply -auto-approve >"$scratch/out" 2>&1 || fail "scaling in"
has_members "node-1=1 node-2=2 node-3=1"
grep -q 'the change is settled' "$scratch/out" || fail "node-4 was not seen to leave"
[ ! -e "$scratch/standin/cartwheel-storage-node-4.service.pid" ] || fail "node-4 still runs"
[ "$("$binary" get carts alice --gateway "http://127.0.0.1:$((port + 20))" 2>/dev/null)" = milk ] || fail "get"
echo "sshd: a node left and its process ended"

tf destroy -auto-approve >"$scratch/out" 2>&1 || fail "destroy"
! grep -q 'the change is settled' "$scratch/out" || fail "destroy had nodes hand over to others that went as well"
[ -z "$(find "$scratch/standin" -name '*.pid')" ] || fail "destroy left processes"
left=$(find "$scratch/overlay" -path '*/work' -prune -o -type f -path '*cartwheel*' ! -name secrets.env -print)
[ -z "$left" ] || fail "destroy left $left"
echo "sshd: destroy left nothing"
