#!/usr/bin/env bash
# Does the package do what README.md says, and what somebody expects of it at two in the morning?
#
#   tests/package.sh ROOT.tar PACKAGE.deb NEXT.deb
#
# Works in a root file system, a network and a process space of its own, which leave nothing behind; needs root. In that
# network 192.168.1.5 is a mosquitto and 192.168.1.10 a Modbus device by pymodbus, as in README.md. Nobody is PID 1
# there: a `systemctl` of this test starts what the unit's ExecStart says as the unit's user, and writes down what it
# was asked.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" != --inside ]; then
    exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" --inside "$@"
fi
shift
archive=$(realpath "$1") package=$(realpath "$2") next=$(realpath "$3")
python="$repository/${CARGO_TARGET_DIR:-target}/venv/bin/python"
PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

fail() {
    echo "FAILED: $*" >&2
    [ ! -e "$root/var/log/tidegate.log" ] || tail -n 20 "$root/var/log/tidegate.log" >&2
    exit 1
}
is() { # is WHAT WANTED FOUND
    [ "$2" = "$3" ] || fail "$1: wanted '$2', found '$3'"
    echo "ok: $1"
}
# Waits for a state, not for a time.
await() { # await WHAT COMMAND...
    local what=$1 tries=600
    shift
    until "$@" >/dev/null 2>&1; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "$what did not come true within two minutes"
        sleep 0.2
    done
    echo "ok: $what"
}

# --- the stand ------------------------------------------------------------------------------------------------------

root=$(mktemp -d)
trap 'umount --lazy --recursive "$root" 2>/dev/null || true; rmdir "$root" 2>/dev/null || true' EXIT
mount -t tmpfs -o size=700m,mode=755 tidegate-package "$root"
tar -C "$root" -xf "$archive"
# As after a first boot.
echo 3f9ac0ffee3f9ac0ffee3f9ac0ffee12 >"$root/etc/machine-id"
# Without lists apt takes what is there: this network has no mirror.
rm -rf "$root"/var/lib/apt/lists/*
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mkdir -p "$root/run/systemd/system" "$root/root/debs"
cp "$package" "$next" "$root/root/debs/"

ip link set lo up
ip address add 192.168.1.5/32 dev lo
ip address add 192.168.1.10/32 dev lo

inside() {
    chroot "$root" /usr/bin/env -i HOME=/root PATH="$PATH" LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        /bin/sh -c "cd /root && $1"
}

cat >"$root/usr/local/bin/sudo" <<'END'
#!/bin/sh
exec "$@"
END
# In place of systemd's own: apt gives maintainer scripts a PATH without /usr/local.
mv "$root/usr/bin/systemctl" "$root/usr/bin/systemctl.real"
cat >"$root/usr/bin/systemctl" <<'END'
#!/bin/sh
# Starts and stops what the unit says, and tells whether it runs; files are for systemd's own, which needs no PID 1.
echo "$*" >>/var/log/systemctl.log
unit=/usr/lib/systemd/system/tidegate.service
pid=/run/tidegate.pid
stop() {
    [ -e $pid ] || return 0
    kill "$(cat $pid)" 2>/dev/null
    while kill -0 "$(cat $pid)" 2>/dev/null; do sleep 0.1; done
    rm $pid
}
start() {
    [ -e $pid ] && return 0
    user=$(sed -n 's/^User=//p' $unit)
    install -d -o "$user" -g "$user" -m "$(sed -n 's/^StateDirectoryMode=//p' $unit)" \
        "/var/lib/$(sed -n 's/^StateDirectory=//p' $unit)"
    # The words of ExecStart are to be parted.
    # shellcheck disable=SC2046
    setsid setpriv --reuid "$user" --regid "$user" --init-groups $(sed -n 's/^ExecStart=//p' $unit) \
        >>/var/log/tidegate.log 2>&1 </dev/null 3>&- &
    echo $! >$pid
}
for word; do
    case $word in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    is-enabled | enable | disable | mask | unmask | preset) exec systemctl.real "$@" ;;
    is-active) [ -e $pid ] && exit 0; exit 3 ;;
    esac
done
exit 0
END
chmod 755 "$root/usr/local/bin/sudo" "$root/usr/bin/systemctl"

work="$root/root/stand"
mkdir "$work"
start_cloud() {
    printf 'listener 1883 192.168.1.5\nallow_anonymous true\npersistence false\nuser root\n' >"$work/mosquitto.conf"
    mosquitto -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 &
    cloud=$!
    await "the cloud is there" mosquitto_pub -h 192.168.1.5 -t test -n
}
stop_cloud() {
    kill "$cloud"
    wait "$cloud" || true
}
mkfifo "$work/device"
"$python" "$repository/tests/peers/modbus_server.py" --tcp 1502 <"$work/device" >"$work/device.log" 2>&1 &
# The pipe stays open: the server reads one line of it.
exec 9>"$work/device"
echo '{"1": {"cells": [{"table": "holding", "address": 100, "type": "f32", "value": 6.5}]}}' >&9
await "the device is there" grep -q ready "$work/device.log"
socat TCP-LISTEN:502,bind=192.168.1.10,fork,reuseaddr TCP:127.0.0.1:1502 &
start_cloud

waiting() {
    inside "tidegate status --json" |
        "$python" -c 'import json, sys; print(json.load(sys.stdin)["queue"]["messages"])'
}
# Acknowledged at QoS 1, so on disk, and wanted by the uplink.
publish() {
    seq "$1" | mosquitto_pub -h 127.0.0.1 -q 1 -t field/hand -l || fail "the gateway did not take $1 messages"
}
owner() {
    inside "stat -c '%a %U:%G' $1"
}
restarts() {
    grep -cE '(^| )(re)?start (-- )?tidegate(\.service)?$' "$root/var/log/systemctl.log" || true
}

# --- as README.md says ----------------------------------------------------------------------------------------------

chapter() { # chapter LANGUAGE: the first such block of the chapter
    awk -v fence="\`\`\`$1" '/^## /{here = /^## Raspberry Pi and Debian/}
        here && $0 == fence {inside = 1; next} inside && /^```/ {exit} inside' "$repository/README.md"
}
chapter toml >"$root/root/press-hall.toml"
chapter sh >"$work/commands"
if [ ! -s "$root/root/press-hall.toml" ] || [ ! -s "$work/commands" ]; then
    fail "README.md has no chapter of this name"
fi
is "at most 6 commands" true "$([ "$(wc -l <"$work/commands")" -le 6 ] && echo true)"
is "at most 15 lines of configuration" true "$([ "$(grep -c . "$root/root/press-hall.toml")" -le 15 ] && echo true)"

arriving=
begun=$(date +%s)
while IFS= read -r command; do
    # The one word that differs: the file of this machine's architecture.
    command=${command/.\/tidegate_*.deb/.\/debs\/$(basename "$package")}
    echo "\$ $command"
    case $command in
    mosquitto_sub*) arriving=$(timeout 60 bash -c "$command -C 1") || fail "nothing arrived" ;;
    *) inside "$command" || fail "$command" ;;
    esac
done <"$work/commands"
echo "$arriving"
echo "figure: from the first command to the reading at the cloud $(($(date +%s) - begun)) s"
is "starts by the installation, and by the hand of the reader" 2 "$(restarts)"
is "the reading at the cloud" "6.5 °C good" "$(echo "${arriving#* }" |
    "$python" -c 'import json, sys; r = json.load(sys.stdin); print(r["value"], r["unit"], r["quality"])')"
is "its topic" field/chiller/supply_temperature "${arriving%% *}"

# --- what is there --------------------------------------------------------------------------------------------------

for line in \
    "755 root:root /usr/bin/tidegate" \
    "750 root:tidegate /etc/tidegate" \
    "750 root:tidegate /etc/tidegate/conf.d" \
    "640 root:tidegate /etc/tidegate/tidegate.toml" \
    "700 tidegate:tidegate /var/lib/tidegate" \
    "644 root:root /usr/lib/systemd/system/tidegate.service" \
    "644 root:root /usr/lib/sysusers.d/tidegate.conf" \
    "644 root:root /usr/share/man/man1/tidegate.1.gz" \
    "644 root:root /usr/share/man/man5/tidegate.toml.5.gz" \
    "644 root:root /usr/share/zsh/vendor-completions/_tidegate" \
    "644 root:root /usr/share/fish/vendor_completions.d/tidegate.fish"; do
    is "mode and owner of ${line##* }" "${line% *}" "$(owner "${line##* }")"
done
as_service="setpriv --reuid tidegate --regid tidegate --init-groups"
as_nobody="setpriv --reuid nobody --regid nogroup --clear-groups"
inside "$as_service tidegate check" || fail "the service's user cannot check the configuration"
is "somebody else cannot read the configuration" denied \
    "$(inside "$as_nobody cat /etc/tidegate/tidegate.toml" >/dev/null 2>&1 || echo denied)"
is "the service's user cannot change it" denied \
    "$(inside "$as_service sh -c 'echo >>/etc/tidegate/tidegate.toml'" >/dev/null 2>&1 || echo denied)"
is "the service's user opens serial ports" dialout "$(inside "id -nG tidegate" | tr ' ' '\n' | grep dialout)"
is "completion in bash" "-F _tidegate tidegate" \
    "$(inside "bash -c '. /usr/share/bash-completion/completions/tidegate; complete -p tidegate'" | grep -o -- '-F .*')"
"$python" - "$root" <<'END' || fail "what the package says of its parts"
import gzip, json, pathlib, re, sys, zlib

root = pathlib.Path(sys.argv[1])
docs = root / "usr/share/doc/tidegate"
sbom = json.loads((docs / "tidegate.cdx.json").read_text())
named = {(part["name"], part["version"]) for part in sbom["components"]}
assert sbom["bomFormat"] == "CycloneDX", sbom["bomFormat"]
listed = gzip.decompress((docs / "third-party-licences.txt.gz").read_bytes()).decode()
# `cargo auditable` keeps its list compressed in a section; the one zlib stream that is such a list is it.
program = (root / "usr/bin/tidegate").read_bytes()
audited = None
for place in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", program):
    try:
        found = json.loads(zlib.decompressobj().decompress(program[place.start():], 1 << 20))
    except (zlib.error, ValueError):
        continue
    if isinstance(found, dict) and "packages" in found:
        audited = {(part["name"], part["version"]) for part in found["packages"] if part.get("kind") != "build"}
assert audited, "the program carries no list of its crates"
for crate in ("rumqttd", "rusqlite", "rustls", "tokio", "serialport"):
    for where, names in (("SBOM", dict(named)), ("program", dict(audited))):
        assert crate in names, f"{crate} is not in the list of the {where}"
    version = dict(audited)[crate]
    assert f"{crate} {version}" in listed, f"{crate} {version} is not among the licences"
assert "clap_mangen" not in dict(audited), "what writes the pages is in the program"
for name in ("tidegate.cdx.json",):
    assert str(pathlib.Path.home() / ".cargo") not in (docs / name).read_text(), f"{name} names this machine"
assert str(pathlib.Path.home() / ".cargo").encode() not in program, "the program names this machine"
print(f"ok: {len(audited)} crates in the program, {len(named)} in the SBOM, licences listed")
END

# --- upgrade, remove, install again, purge --------------------------------------------------------------------------

stop_cloud
echo "# written by the owner" >>"$root/etc/tidegate/tidegate.toml"
before=$(sha256sum <"$root/etc/tidegate/tidegate.toml")
publish 500
held=$(waiting)
is "what was acknowledged waits" true "$([ "$held" -ge 500 ] && echo true)"
: >"$root/var/log/systemctl.log"
old=$(cat "$root/run/tidegate.pid")
inside "apt-get install -y ./debs/$(basename "$next") </dev/null" || fail "the upgrade"
is "the version after the upgrade" "$(dpkg-deb -f "$next" Version)" "$(inside "dpkg-query -Wf '\${Version}' tidegate")"
is "restarts by an upgrade" 1 "$(restarts)"
is "what runs after the upgrade is the new program" new "$([ "$(cat "$root/run/tidegate.pid")" = "$old" ] || echo new)"
is "stops by an upgrade" 0 "$(grep -cE '(^| )stop ' "$root/var/log/systemctl.log" || true)"
is "the owner's configuration after the upgrade" "$before" "$(sha256sum <"$root/etc/tidegate/tidegate.toml")"
is "its mode and owner" "640 root:tidegate" "$(owner /etc/tidegate/tidegate.toml)"
await "the gateway answers after the upgrade" inside "tidegate status"
is "nothing of the queue went with the upgrade" true "$([ "$(waiting)" -ge "$held" ] && echo true)"

said=$(inside "dpkg --remove tidegate" 2>&1) || fail "remove: $said"
is "remove says how many wait" true "$(grep -qE 'is kept with [0-9]+ messages that wait' <<<"$said" && echo true)"
is "remove keeps the configuration" "$before" "$(sha256sum <"$root/etc/tidegate/tidegate.toml")"
is "remove keeps the queue" true "$([ -n "$(ls -A "$root/var/lib/tidegate")" ] && echo true)"
is "remove stops the service" gone "$([ -e "$root/run/tidegate.pid" ] || echo gone)"

start_cloud
timeout 120 mosquitto_sub -h 192.168.1.5 -q 1 -t field/hand -C 500 >"$work/delivered" &
subscriber=$!
await "somebody listens at the cloud" grep -q 'field/hand\|No will message\|auto-' "$work/mosquitto.log"
inside "dpkg --install ./debs/$(basename "$next")" || fail "install again"
wait "$subscriber" || fail "what waited was not delivered"
is "what waited over upgrade and remove is delivered" "$(seq 500 | sha256sum)" \
    "$(sort -n -u "$work/delivered" | sha256sum)"

stop_cloud
publish 50
said=$(inside "dpkg --purge tidegate" 2>&1 </dev/null) || fail "purge: $said"
is "purge without anybody to ask keeps the messages" true \
    "$(find "$root/var/lib/tidegate" -type f -size +0 -name '*.db*' | grep -q . && echo true)"
is "it says so, and how to delete them" true "$(grep -q 'rm -r /var/lib/tidegate' <<<"$said" && echo true)"
is "purge takes the configuration" gone "$([ -e "$root/etc/tidegate" ] || echo gone)"

inside "dpkg --install ./debs/$(basename "$next")" || fail "install after purge"
await "the gateway answers" inside "tidegate status"
is "the messages are there again" true "$([ "$(waiting)" -ge 50 ] && echo true)"
inside "echo 'tidegate tidegate/delete-state boolean true' | debconf-set-selections"
said=$(inside "dpkg --purge tidegate" 2>&1 </dev/null) || fail "purge: $said"
is "purge deletes the messages when somebody said so before" gone "$([ -e "$root/var/lib/tidegate" ] || echo gone)"
is "and says that" true "$(grep -q 'is deleted' <<<"$said" && echo true)"
is "nothing else stays" "" "$(find "$root/usr" "$root/etc" -name '*tidegate*' ! -path '*/sysusers.d/*' | head -n 5)"
echo "the package does what it should"
