#!/usr/bin/env bash
# Is a package for another machine what it says? It cannot be installed here: that it runs is tried by `./test.sh --cross`.
#
#   tests/foreign_package.sh ARCHITECTURE MACHINE PACKAGE.deb      MACHINE as readelf names it
set -euo pipefail
architecture=$1 machine=$2 package=$3
# What Raspberry Pi OS 12 has.
glibc=2.36

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "$package" "$work"
program="$work/usr/bin/tidegate"

[ "$(dpkg-deb -f "$package" Architecture)" = "$architecture" ] || fail "it is not for $architecture"
readelf -h "$program" | grep -q "Machine: *$machine" || fail "the program is not for $machine"
echo "ok: package and program are for $architecture"

wanted=$(dpkg-deb -f "$package" Depends | grep -o 'libc6 (>= [0-9.]*)' | grep -o '[0-9.]*)' | tr -d ')')
[ -n "$wanted" ] || fail "it does not say which glibc it needs: $(dpkg-deb -f "$package" Depends)"
dpkg --compare-versions "$wanted" le "$glibc" || fail "it needs glibc $wanted, and there is $glibc"
echo "ok: it needs glibc $wanted of $glibc"

readelf -S "$program" | grep -q '\.dep-v0' || fail "the program carries no list of its crates"
for place in "$PWD" "${CARGO_HOME:-$HOME/.cargo}"; do
    ! grep -qaF "$place" "$program" || fail "the program names $place, a place of this machine"
done
echo "ok: the program carries the list of its crates, and no path of this machine"

lintian --allow-root --fail-on error,warning "$package" || fail "lintian"
echo "ok: lintian finds nothing"
