#!/bin/sh
# Builds the .deb; its path is the last line. Needs cargo-deb, and for --release cargo-auditable and cargo-cyclonedx.
#
#   packaging/build.sh [--cross arm64|armhf] [--target TRIPLE] [--profile PROFILE] [--no-build] [--features FEATURES]
#                      [--version VERSION] [--output FOLDER]
#
# --cross builds with Debian's cross toolchain (cross/debian, which installs it). --no-build packs
# target/TRIPLE/PROFILE/tidegate as it is, for a program that was built by other means.
set -eu
cd "$(dirname "$0")/.."

host=$(rustc -vV | sed -n 's/^host: //p')
target=
profile=release
build=true
cross=
features=
version=
output=target/debian
while [ $# -gt 0 ]; do
    case $1 in
    --cross) cross=$2; shift ;;
    --target) target=$2; shift ;;
    --profile) profile=$2; shift ;;
    --features) features=$2; shift ;;
    --version) version=$2; shift ;;
    --output) output=$2; shift ;;
    --no-build) build=false ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64 ;;
    esac
    shift
done

case $cross in
'') ;;
arm64) target=aarch64-unknown-linux-gnu ;;
armhf) target=armv7-unknown-linux-gnueabihf ;;
*) echo "packaging/build.sh: there is no cross toolchain for $cross" >&2; exit 64 ;;
esac

made=target/packaging
mkdir -p "$made"

# Paths of this machine are nobody's business, and would make two builds differ.
RUSTFLAGS="${RUSTFLAGS:-} --remap-path-prefix=$PWD=tidegate --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
if $build; then
    set -- --locked --profile "$profile" --bin tidegate ${features:+--features "$features"}
    if [ -n "$cross" ]; then
        RUSTFLAGS=$RUSTFLAGS cross/debian "$cross" auditable build "$@" >&2
    else
        RUSTFLAGS=$RUSTFLAGS cargo auditable build "$@" ${target:+--target "$target"} >&2
    fi
fi

# The time of the sources, so that the same sources give the same package. Not for the build: a new time compiles all C anew.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH

# Pages and completions are the same for every board, and are written by a program of the host.
cargo run --locked --quiet --example pages -- "$made" >&2

# cargo-deb calls systemd-sysusers with the name of the source, so that must be the name that is installed.
mkdir -p "$made/sysusers.d"
cp systemd/tidegate.sysusers.conf "$made/sysusers.d/tidegate.conf"

python3 packaging/third_party.py "${target:-$host}" "$made/third-party-licences.txt"
gzip -9nf "$made/third-party-licences.txt"

# cargo-cyclonedx writes beside Cargo.toml.
cargo cyclonedx --quiet --format json --spec-version 1.5 --target "${target:-$host}" --no-build-deps \
    --override-filename tidegate.cdx >&2
sed "s|file://$PWD|file:///tidegate|g" tidegate.cdx.json >"$made/tidegate.cdx.json"
rm tidegate.cdx.json

cargo deb --quiet --no-build --no-strip --profile "$profile" ${target:+--target "$target"} \
    ${version:+--deb-version "$version"} -o "$output/"
