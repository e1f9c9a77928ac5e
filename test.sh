#!/usr/bin/env bash
# Installs what the tests need and is missing, then runs them all. Works offline once everything is there.
#
#   ./test.sh                       format, lints, tests with real counterparts, documentation
#   ./test.sh --torture [minutes]   the long forms of tests/torture, tests/hostile and the page; 344 minutes are what they ask for
#   ./test.sh --cross               builds for arm64 (and armhf) and runs them under an emulator; `cross` reads Cross.toml
#   ./test.sh --package [profile]   builds the .deb (profile package-test, or release), and tries it in a root of its own
#   ./test.sh --vm [cuts]           installs the .deb in a virtual machine, tries it under systemd, and cuts its power (3 times)
#   ./test.sh --prepare             only installs
#
# On Debian 12 or Raspberry Pi OS it needs root or sudo for the packages, and a Rust toolchain.
# Power cuts and full disks mount file systems: as another user than root those tests fail, unless
# TIDEGATE_TEST_WITHOUT_ROOT=1 leaves them out.

set -uo pipefail
cd "$(dirname "$0")" || exit 70

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0"
}

only_prepare=false
cross=false
torture_minutes=
package_profile=
vm_cuts=
while [ $# -gt 0 ]; do
    case "$1" in
    --prepare) only_prepare=true ;;
    --torture)
        torture_minutes=344
        if [[ "${2:-}" =~ ^[0-9]+([.][0-9]+)?$ ]]; then
            torture_minutes=$2
            shift
        fi
        ;;
    --cross) cross=true ;;
    --package)
        package_profile=package-test
        if [[ "${2:-}" =~ ^[a-z][a-z-]*$ ]]; then
            package_profile=$2
            shift
        fi
        ;;
    --vm)
        package_profile=package-test
        vm_cuts=3
        if [[ "${2:-}" =~ ^[0-9]+$ ]]; then
            vm_cuts=$2
            shift
        fi
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "test.sh: there is no flag $1" >&2
        usage >&2
        exit 64
        ;;
    esac
    shift
done

# As cargo's own default, so that the tests find the Python environment where they look for it.
target="${CARGO_TARGET_DIR:-target}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

die() {
    echo "test.sh: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null 2>&1
}

# --- the toolchain --------------------------------------------------------------------------------------------------

if ! has cargo && [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
fi
has cargo || die "a Rust toolchain is needed (cargo, rustfmt, clippy; the oldest that serves is in Cargo.toml): see https://rustup.rs"
for component in rustfmt clippy; do
    name="cargo-$([ "$component" = rustfmt ] && echo fmt || echo clippy)"
    if ! has "$name" || ! "$name" --version >/dev/null 2>&1; then
        has rustup || die "$component is missing and there is no rustup to add it"
        rustup component add "$component" || die "cannot add $component"
    fi
done

# --- Debian packages ------------------------------------------------------------------------------------------------

missing=()
# A minimal Debian has no certificates to check a registry's name with.
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
# SQLite and ring are compiled.
has cc || missing+=(gcc libc6-dev)
# Cloud, local clients, pairs of serial ports, delayed syncs, and children that end with their test.
PATH="$PATH:/usr/sbin:/sbin"
has mosquitto || missing+=(mosquitto)
has mosquitto_sub && has mosquitto_pub || missing+=(mosquitto-clients)
has socat || missing+=(socat)
# Another broker, with its MQTT plugin, and the register of names of its language.
[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && has epmd || missing+=(rabbitmq-server)
# A Modbus server and a client in C.
[ -e /usr/include/modbus/modbus.h ] || missing+=(libmodbus-dev)
has nft && has ip || missing+=(nftables iproute2)
has strace || missing+=(strace)
# The runner of jobs in docs/clouds-aws.md.
has jq || missing+=(jq)
# How the binary was linked.
has readelf || missing+=(binutils)
has setpriv && has unshare || missing+=(util-linux)
# File systems for power cuts and full disks.
has mount && has umount || missing+=(mount)
has mke2fs || missing+=(e2fsprogs)
# A wall clock that is set under the program, and the system-call filter of the unit.
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing+=(faketime)
has systemd-analyze || missing+=(systemd)
ls /usr/lib/*/libseccomp.so.2 >/dev/null 2>&1 || missing+=(libseccomp2)
if $cross; then
    has qemu-aarch64-static && has qemu-arm-static || missing+=(qemu-user-static)
    has readelf || missing+=(binutils)
fi
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
has node && has npm || missing+=(nodejs npm)
# A real browser for the status page.
has chromium || missing+=(chromium)
# A real database for the uplink by HTTP.
has influxd || missing+=(influxdb)
if [ -n "$package_profile" ]; then
    # A root file system to install into, what judges the package and its scripts, and what finds its dependencies.
    has mmdebstrap || missing+=(mmdebstrap)
    has lintian || missing+=(lintian)
    has shellcheck || missing+=(shellcheck)
    has dpkg-shlibdeps || missing+=(dpkg-dev)
fi

if [ -n "$vm_cuts" ]; then
    has qemu-system-x86_64 || missing+=(qemu-system-x86)
    has qemu-img || missing+=(qemu-utils)
fi

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

policy=/usr/sbin/policy-rc.d
made_policy=false
remove_policy() {
    if $made_policy; then
        as_root rm -f "$policy"
        made_policy=false
    fi
}

if [ ${#missing[@]} -gt 0 ]; then
    echo "== packages: ${missing[*]}"
    has apt-get || die "please install: ${missing[*]}"
    [ "$(id -u)" = 0 ] || has sudo || die "please run as root: apt-get install ${missing[*]}"
    # Debian's mosquitto would start at once and take port 1883, which is the gateway's; RabbitMQ and InfluxDB would run for nobody.
    case " ${missing[*]} " in
    *" mosquitto "* | *" rabbitmq-server "* | *" influxdb "*)
        if [ ! -e "$policy" ]; then
            trap remove_policy EXIT
            made_policy=true
            printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
            as_root chmod 755 "$policy"
        fi
        ;;
    esac
    as_root apt-get update -q || echo "test.sh: apt-get update failed; trying with what is known" >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" ||
        die "apt-get install ${missing[*]} failed"
    remove_policy
    case " ${missing[*]} " in
    *" mosquitto "*)
        # Nor at the next boot. A mosquitto that was there before this script is left as it is.
        if has systemctl && as_root systemctl disable --quiet mosquitto 2>/dev/null; then
            echo "test.sh: mosquitto was installed for the tests; its service is disabled"
        fi
        ;;
    esac
    case " ${missing[*]} " in
    *" rabbitmq-server "*)
        if has systemctl && as_root systemctl disable --quiet rabbitmq-server 2>/dev/null; then
            echo "test.sh: rabbitmq-server was installed for the tests; its service is disabled"
        fi
        ;;
    esac
    case " ${missing[*]} " in
    *" influxdb "*)
        if has systemctl && as_root systemctl disable --now --quiet influxdb 2>/dev/null; then
            echo "test.sh: influxdb was installed for the tests; its service is disabled"
        fi
        ;;
    esac
fi

# --- the Python environment -----------------------------------------------------------------------------------------

venv="$target/venv"
wanted=tests/peers/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt" || ! "$venv/bin/python" -c 'import cbor2, google.protobuf, jsonschema, jwt, paho.mqtt.client, prometheus_client, pymodbus, serial' 2>/dev/null; then
    echo "== Python environment in $venv"
    mkdir -p "$target"
    rm -rf "$venv"
    python3 -m venv "$venv" || die "python3 -m venv $venv failed"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" ||
        die "pip could not install $(tr '\n' ' ' <"$wanted")"
    cp "$wanted" "$venv/installed.txt"
fi

# What the makers of clouds give to devices, as judges of what we say; each in an environment of its own.
for cloud in aws azure; do
    venv="$target/venv-$cloud"
    wanted="tests/peers/requirements-$cloud.txt"
    if ! cmp -s "$wanted" "$venv/installed.txt"; then
        echo "== Python environment in $venv"
        rm -rf "$venv"
        python3 -m venv "$venv" || die "python3 -m venv $venv failed"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" ||
            die "pip could not install $(tr '\n' ' ' <"$wanted")"
        cp "$wanted" "$venv/installed.txt"
    fi
done

# --- MQTT.js and Playwright ------------------------------------------------------------------------------------------

node="$target/node"
if ! cmp -s tests/peers/javascript/package-lock.json "$node/installed.json"; then
    echo "== MQTT.js and Playwright in $node"
    mkdir -p "$node"
    cp tests/peers/javascript/package.json tests/peers/javascript/package-lock.json "$node/"
    npm ci --prefix "$node" --ignore-scripts --no-audit --no-fund --silent || die "npm could not install MQTT.js and Playwright"
    cp tests/peers/javascript/package-lock.json "$node/installed.json"
fi

# --- a broker with enhanced authentication ---------------------------------------------------------------------------

echo "== the broker of the crate mqtt5 in $target/peers"
cargo build --quiet --locked --manifest-path tests/peers/mqtt5_broker/Cargo.toml --target-dir "$target/peers" ||
    die "the broker of the crate mqtt5 could not be built"

# --- what packs -----------------------------------------------------------------------------------------------------

if [ -n "$package_profile" ]; then
    tools="$(realpath -m "$target")/tools"
    PATH="$tools/bin:$PATH"
    for tool in cargo-deb@3.8.0 cargo-auditable@0.7.7 cargo-cyclonedx@0.5.9 cargo-deny@0.20.2; do
        if ! has "${tool%@*}"; then
            echo "== $tool"
            # They run once: what they take to compile counts, not what they take to run.
            CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
                CARGO_TARGET_DIR="$tools/build" cargo install --quiet --locked --root "$tools" "$tool" ||
                die "cannot install $tool"
        fi
    done
    # What is compiled is not needed again; together it takes gigabytes.
    rm -rf "$tools/build"
    if [ ! -e "$target/packaging/root.tar" ]; then
        echo "== a Debian to install into"
        mkdir -p "$target/packaging"
        codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
        as_root mmdebstrap --quiet --variant=minbase --include=systemd,libgcc-s1,debconf "$codename" \
            "$target/packaging/root.tar" || die "mmdebstrap failed"
    fi
fi

if $only_prepare; then
    echo "everything that the tests need is there"
    exit 0
fi

# --- the checks -----------------------------------------------------------------------------------------------------

summary=()
failed=0
step() {
    local name="$1" started=$SECONDS verdict=ok
    shift
    echo "== $name"
    if ! "$@"; then
        verdict=FAILED
        failed=1
    fi
    summary+=("$(printf '%-14s %-6s %4d s' "$name" "$verdict" $((SECONDS - started)))")
}

log="$target/test.log"
run_tests() {
    # All files, also after one has failed: a run on slow hardware should tell everything at once.
    cargo test --locked --no-fail-fast 2>&1 | tee "$log"
    return "${PIPESTATUS[0]}"
}
lint() {
    # "All targets" are those that a plain `cargo test` runs.
    cargo clippy --locked --all-targets -- -D warnings && cargo clippy --locked --test cross --test vm -- -D warnings
}
document() {
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
}

torture() {
    # With their words, because the figures are what one wants of it; one after the other, as they run anyway.
    TIDEGATE_TORTURE_MINUTES="$torture_minutes" cargo test --locked --no-fail-fast --test torture --test hostile --test status_page -- \
        --nocapture --test-threads=1 2>&1 | tee "$log"
    return "${PIPESTATUS[0]}"
}

mutations() {
    # Answers that are changed on their way: 100,000 instead of the 5,000 of every run.
    TIDEGATE_MUTATIONS=100000 cargo test --locked --lib field::modbus::link -- --nocapture 2>&1 | tee -a "$log"
    return "${PIPESTATUS[0]}"
}

dependencies() {
    cargo deny --locked check licenses bans sources
}
scripts() {
    # debconf's own script is not ours to judge.
    shellcheck --exclude=SC1091 packaging/build.sh packaging/debian/{config,postinst,prerm,postrm} tests/package.sh \
        tests/foreign_package.sh
}
pack() {
    # The next version first: cargo-deb clears away what it made before.
    mkdir -p "$target/packaging/next"
    packaging/build.sh --profile "$package_profile" --version 99.0.0-1 --output "$target/packaging/next" &&
        packaging/build.sh --profile "$package_profile"
}
judge() {
    lintian --allow-root --fail-on error,warning target/debian/tidegate_*.deb
}
pack_arm64() {
    mkdir -p "$target/packaging/arm64"
    rm -f "$target"/packaging/arm64/*.deb
    packaging/build.sh --cross arm64 --profile "$package_profile" --output "$target/packaging/arm64" 2>&1 | tee "$target/arm64.log"
    case ${PIPESTATUS[0]} in
    0) ;;
    75)
        echo "NOT TRIED: arm64, because Debian's packages for it could not be had (above)" | tee -a "$log"
        return 0
        ;;
    *) return 1 ;;
    esac
    tests/foreign_package.sh arm64 AArch64 "$target"/packaging/arm64/tidegate_*_arm64.deb 2>&1 | tee -a "$log"
    return "${PIPESTATUS[0]}"
}
try_package() {
    as_root tests/package.sh "$target/packaging/root.tar" target/debian/tidegate_*.deb \
        "$target"/packaging/next/tidegate_99.0.0-1_*.deb 2>&1 | tee -a "$log"
    return "${PIPESTATUS[0]}"
}

pack_hooked() {
    # What makes the queue hang for the watchdog's sake is in no package that anybody gets.
    mkdir -p "$target/packaging/hooked"
    packaging/build.sh --profile "$package_profile" --features test-hooks --version 98.0.0-1+testhooks \
        --output "$target/packaging/hooked"
}
virtual_machine() {
    TIDEGATE_VM="$(realpath "$target/vm")" TIDEGATE_VM_NEWER="$(realpath -m "$target/vm-newer")" \
        TIDEGATE_VM_CUTS="$vm_cuts" \
        TIDEGATE_VM_PACKAGE="$(realpath target/debian/tidegate_*.deb)" \
        TIDEGATE_VM_HOOKED="$(realpath "$target"/packaging/hooked/tidegate_98.0.0-1+testhooks_*.deb)" \
        TIDEGATE_VM_NEXT="$(realpath "$target"/packaging/next/tidegate_99.0.0-1_*.deb)" \
        cargo test --locked --test vm -- --nocapture --test-threads=1 2>&1 | tee "$log"
    return "${PIPESTATUS[0]}"
}

if [ -n "$vm_cuts" ]; then
    log="$target/vm.log"
    : >"$log"
    # First, because the packers take the program that was built last.
    step "with hooks" pack_hooked
    step "package" pack
    step "its root" as_root tests/vm/root "$target/vm" bookworm
    # A newer systemd than Raspberry Pi OS 12 has; where there is no such release, the test says so.
    as_root tests/vm/root "$target/vm-newer" trixie || true
    step "cabinet" virtual_machine
elif [ -n "$package_profile" ]; then
    log="$target/package.log"
    : >"$log"
    step "dependencies" dependencies
    step "scripts" scripts
    step "package" pack
    step "lintian" judge
    step "installed" try_package
    step "arm64" pack_arm64
elif [ -n "$torture_minutes" ]; then
    log="$target/torture.log"
    step "torture" torture
    step "mutations" mutations
elif $cross; then
    log="$target/cross.log"
    step "cross" tests/cross/run "$target" "$log"
else
    step "format" cargo fmt --check
    step "lints" lint
    step "tests" run_tests
    step "documentation" document
fi

echo
echo "== summary"
printf '%s\n' "${summary[@]}"
if [ -n "$vm_cuts" ]; then
    echo "$(grep -c '^ok: ' "$log") things found true"
    sed -n 's/^figure: //p' "$log"
    grep 'FAILED: ' "$log"
elif [ -n "$package_profile" ]; then
    echo "$(grep -c '^ok: ' "$log") checks of the installed package, $(grep -c '^FAILED: ' "$log") failed"
else
    awk '/^test result:/ { passed += $4; failed += $6; ignored += $8; files += 1 }
     END { printf "%d tests passed, %d failed, %d ignored, in %d files\n", passed, failed, ignored, files }' "$log"
fi
grep -E '^test .* \.\.\. FAILED$' "$log" | sort -u
grep -o 'NOT TRIED: .*' "$log" | sort -u
if [ "$failed" = 0 ]; then echo "all is well"; else echo "something failed: see above, and $log"; fi
exit "$failed"
