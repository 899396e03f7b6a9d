#!/usr/bin/env bash
# What the probe asks; see main.tf.
set -euo pipefail
: "${STEP:?}" "${BINARY:?}" "${GATEWAYS:?}" "${MEMBERS:?}" "${WRITE:?}"
read -r -a gateways <<<"$GATEWAYS"

fail() {
  printf 'probe %s: %s\n' "$STEP" "$*" >&2
  exit 1
}

# Who counts, as the gateway $1 says.
members() {
  curl --silent --fail --max-time 10 "$1/v1/cluster" |
    jq --compact-output --sort-keys '[.members[] | select(.state == "active" and .reachable and .standing == "counting")
      | {key: .id, value: .weight}] | from_entries'
}

wanted=$(jq --compact-output --sort-keys . <<<"$MEMBERS")
for url in "${gateways[@]}"; do
  curl --silent --fail --max-time 5 --output /dev/null "$url/readyz" || fail "$url/readyz is not ready"
  # The change was settled where it was asked for; other gateways hear of that a moment later.
  for _ in $(seq 30); do
    found=$(members "$url") || found=
    [ "$found" != "$wanted" ] || break
    sleep 0.5
  done
  [ "$found" = "$wanted" ] || fail "$url: the members that count are $found, not $wanted"
done

if [ "$WRITE" = true ]; then
  for i in $(seq 40); do
    "$BINARY" put probe "$STEP-$i" --value "value $i of $STEP" --gateway "${gateways[i % ${#gateways[@]}]}" >/dev/null 2>&1 ||
      fail "put $STEP-$i was refused"
  done
fi

for step in ${READ:-}; do
  for url in "${gateways[@]}"; do
    for i in $(seq 40); do
      value=$("$BINARY" get probe "$step-$i" --gateway "$url" 2>/dev/null) || fail "$url: get $step-$i"
      [ "$value" = "value $i of $step" ] || fail "$url: $step-$i is '$value'"
    done
  done
done
