#!/usr/bin/env bash
# Makes a Debian package of a program that is there: build.sh BINARY DIRECTORY. Prints the package's path.
# The same binary and SOURCE_DATE_EPOCH (default: the last commit's time) give the same bytes.
# DEB_REVISION: the revision of the package (default: 1).
set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: build.sh BINARY DIRECTORY" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
infra=$(dirname "$here")
binary=$(realpath "$1")
out=$(realpath "$2")
[ -x "$binary" ] || { echo "build.sh: there is no program $binary" >&2; exit 1; }
for tool in dpkg-deb readelf objdump strip gzip; do
  command -v "$tool" >/dev/null || { echo "build.sh: $tool is needed" >&2; exit 1; }
done
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$infra" log -1 --format=%ct 2>/dev/null || true)}
[[ $epoch =~ ^[0-9]+$ ]] || { echo "build.sh: set SOURCE_DATE_EPOCH to seconds since 1970" >&2; exit 1; }
export SOURCE_DATE_EPOCH=$epoch LC_ALL=C TZ=UTC
umask 022

case $(readelf --file-header "$binary" | sed -n 's/^ *Machine: *//p') in
  *X86-64) architecture=amd64 ;;
  AArch64) architecture=arm64 ;;
  *) echo "build.sh: $binary is for a machine that is not known here" >&2; exit 1 ;;
esac
upstream=$("$binary" --version | sed -n 's/^[^ ]* \([0-9][0-9A-Za-z.+~]*\)$/\1/p')
[ -n "$upstream" ] || { echo "build.sh: '$binary --version' names no version" >&2; exit 1; }
version=$upstream-${DEB_REVISION:-1}
# The newest symbols that it needs say which C library it needs.
libc=$(objdump -T "$binary" | sed -n 's/.*(\{0,1\}GLIBC_\([0-9][0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
[ -n "$libc" ] || { echo "build.sh: $binary needs no C library that is known here" >&2; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
doc=$root/usr/share/doc/cartwheel

install -D -m 0755 "$binary" "$root/usr/bin/cartwheel"
strip --strip-unneeded --remove-section=.comment --remove-section=.note "$root/usr/bin/cartwheel"
# Units say where a program that was put there by hand lies.
for unit in "$infra"/systemd/*.service; do
  install -d "$root/lib/systemd/system"
  sed 's#/usr/local/bin/cartwheel#/usr/bin/cartwheel#' "$unit" >"$root/lib/systemd/system/$(basename "$unit")"
done
install -D -m 0644 "$infra/systemd/sysusers.conf" "$root/usr/lib/sysusers.d/cartwheel.conf"
install -D -m 0644 "$infra/systemd/tmpfiles.conf" "$root/usr/lib/tmpfiles.d/cartwheel.conf"
install -D -m 0644 "$infra/systemd/cartwheel.env" "$root/etc/cartwheel/cartwheel.env"
install -D -m 0644 "$here/copyright" "$doc/copyright"
install -D -m 0644 "$here/README" "$doc/README.Debian"
install -D -m 0644 -t "$doc/examples" "$infra"/systemd/*.env.example
install -D -m 0644 "$here/lintian-overrides" "$root/usr/share/lintian/overrides/cartwheel"
printf 'cartwheel (%s) unstable; urgency=medium\n\n  * Release %s.\n\n -- %s  %s\n' \
  "$version" "$upstream" "$(sed -n 's/^Maintainer: //p' "$here/control.in")" "$(date --date="@$epoch" --rfc-email)" |
  gzip -9n >"$doc/changelog.Debian.gz"

install -d "$root/DEBIAN"
install -m 0755 -t "$root/DEBIAN" "$here/postinst" "$here/prerm" "$here/postrm"
echo /etc/cartwheel/cartwheel.env >"$root/DEBIAN/conffiles"
size=$(du --apparent-size --summarize --block-size=1K --exclude=DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@LIBC@/$libc/" -e "s/@SIZE@/$size/" \
  "$here/control.in" >"$root/DEBIAN/control"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f ! -path './etc/*' -printf '%P\0' | sort -z | xargs -0 md5sum) \
  >"$root/DEBIAN/md5sums"
chmod 0644 "$root"/DEBIAN/{control,conffiles,md5sums}
find "$root" -print0 | xargs -0 touch --no-dereference --date="@$epoch"

package=$out/cartwheel_${version}_${architecture}.deb
dpkg-deb --root-owner-group -Zxz -z3 --threads-max=1 --build "$root" "$package" >/dev/null 2>&1 ||
  dpkg-deb --root-owner-group -Zxz -z3 --build "$root" "$package" >/dev/null
echo "$package"
