#!/usr/bin/env bash
# Makes the file system of the image: rootfs.sh BINARY DIRECTORY. The program, the libraries that it names,
# certificates, and the names of two users; no shell. The Containerfile runs it, and infra/check.sh tries what it makes.
set -euo pipefail

binary=$1
root=$2
install -D -m 0755 "$binary" "$root/usr/local/bin/cartwheel"

# Of `name => /path (address)` and `/path (address)`, the paths; at the place where the loader looks for them.
mapfile -t libraries < <(ldd "$binary" | sed -n 's/^.*[[:space:]]\(\/[^ ]*\) (0x.*$/\1/p')
[ "${#libraries[@]}" -gt 0 ] || { echo "rootfs.sh: ldd names no library of $binary" >&2; exit 1; }
for library in "${libraries[@]}"; do
  install -D -m 0755 "$(realpath "$library")" "$root$library"
done

install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
install -d "$root/etc"
printf 'root:x:0:0::/:/nonexistent\ncartwheel:x:65532:65532::/var/lib/cartwheel:/nonexistent\n' >"$root/etc/passwd"
printf 'root:x:0:\ncartwheel:x:65532:\n' >"$root/etc/group"
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
install -d -m 1777 "$root/tmp"
install -d -m 0700 -o 65532 -g 65532 "$root/var/lib/cartwheel"
