#!/bin/sh
# Lets one host after the other be changed: turn.sh take|give FOLDER NAME. The turn belongs to the Terraform process that
# started this script; one that is gone keeps nobody waiting.
set -eu
what=$1 folder=$2 name=$3
mkdir -p "$folder"
case $what in
  give)
    rm -rf "$folder/turn"
    exit 0
    ;;
  take) ;;
  *) exit 2 ;;
esac
waited=0
last=
until mkdir "$folder/turn" 2>/dev/null; do
  holder=$(cat "$folder/turn/pid" 2>/dev/null || echo "$PPID")
  if ! kill -0 "$holder" 2>/dev/null; then
    rm -rf "$folder/turn"
    continue
  fi
  now=$(cat "$folder/turn/name" 2>/dev/null || true)
  [ "$now" = "$last" ] || waited=0
  last=$now
  waited=$((waited + 1))
  if [ "$waited" -gt 420 ]; then
    echo "$name waited 7 minutes for $now, which failed or hangs; nothing was changed here" >&2
    exit 1
  fi
  sleep 1
done
echo "$name" >"$folder/turn/name"
echo "$PPID" >"$folder/turn/pid"
