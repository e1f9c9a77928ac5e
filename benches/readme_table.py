#!/usr/bin/env python3
"""Fills the README's table "what happens when …" by measurement: Tidegate and Mosquitto's bridge, side by side.

    ./test.sh                       # once: makes target/venv and installs mosquitto
    cargo build --release
    target/venv/bin/python benches/readme_table.py

Everything runs on loopback in a temporary directory and stops by itself. Needs root for one step (a small tmpfs as
the full disk); without it that step is left out and says so. Prints both configurations, then the table.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt

COUNT = 2000
DEADLINE = 60.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, condition, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    print(f"  not within {deadline:.0f} s: {what}", file=sys.stderr)
    return False


def accepts(port):
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """A child that is always ended."""

    def __init__(self, command, log):
        self.log = open(log, "ab")
        self.child = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def end(self, how=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(how)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.log.close()
        return self.child.returncode


class Cloud:
    """Mosquitto as the cloud, with a subscriber whose session it keeps."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        folder.mkdir()
        self.config = folder / "cloud.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nmax_queued_messages 0\nuser root\n"
        )
        self.start()
        self.subscriber().disconnect()
        self.stop()

    def start(self):
        self.process = Process(["mosquitto", "-c", str(self.config)], self.folder / "log")
        wait_until("the cloud answers", lambda: accepts(self.port))

    def stop(self):
        self.process.end()

    def subscriber(self, on_message=None):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="counter", clean_session=False)
        subscribed = threading.Event()
        client.on_connect = lambda c, *_: c.subscribe("#", 1)
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = on_message
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        subscribed.wait(10)
        return client

    def count(self, expected, quiet=8.0):
        """Distinct numbers received, waiting until all are there or nothing new came for `quiet` seconds."""
        seen, told, last = set(), [], [time.monotonic()]

        def on_message(_client, _userdata, message):
            last[0] = time.monotonic()
            try:
                body = json.loads(message.payload)
            except ValueError:
                return
            if "n" in body:
                seen.add(body["n"])
            elif message.topic.endswith("/gap"):
                told.append(body)

        client = self.subscriber(on_message)
        wait_until("everything arrived", lambda: len(seen) >= expected or time.monotonic() - last[0] > quiet)
        client.loop_stop()
        client.disconnect()
        return seen, told


def publish(port, numbers, pad=0, timeout=30.0):
    """Publishes at QoS 1 and gives back the numbers that were acknowledged."""
    acknowledged, ids, lock = set(), {}, threading.Lock()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="sender", clean_session=True)
    client.max_inflight_messages_set(100)
    client.max_queued_messages_set(0)
    connected = threading.Event()
    client.on_connect = lambda *_: connected.set()

    def on_publish(_client, _userdata, mid, *_):
        with lock:
            acknowledged.add(mid)

    client.on_publish = on_publish
    client.connect("127.0.0.1", port)
    client.loop_start()
    connected.wait(10)
    for number in numbers:
        # Without the lock: paho calls on_publish with its own lock held, which publish wants.
        ids[client.publish("plant/x", json.dumps({"n": number, "pad": "x" * pad}), qos=1).mid] = number
    end = time.monotonic() + timeout
    while time.monotonic() < end and len(acknowledged) < len(ids):
        time.sleep(0.05)
    client.loop_stop()
    with lock:
        result = {number for mid, number in ids.items() if mid in acknowledged}
    client.disconnect()
    return result


class Tidegate:
    name = "Tidegate"

    def __init__(self, binary, folder, cloud_port, state=None):
        self.binary, self.folder, self.port, self.process = binary, folder, free_port(), None
        self.state = state or folder / "state"
        folder.mkdir(exist_ok=True)
        self.config = folder / "tidegate.toml"
        self.config.write_text(
            f'[gateway]\nid = "g7"\nstate_dir = "{self.state}"\n\n'
            f'[broker.listener.local]\nbind = "127.0.0.1:{self.port}"\n\n'
            f'[uplink.cloud]\nurl = "mqtt://127.0.0.1:{cloud_port}"\n\n'
            f'[[uplink.cloud.forward]]\nfilter = "plant/#"\ntopic = "factory/{{topic}}"\nqos = 1\n'
        )

    def start(self):
        self.process = Process([self.binary, "run", "--config", str(self.config)], self.folder / "log")
        return wait_until("Tidegate answers", lambda: accepts(self.port) or self.process.child.poll() is not None) and (
            self.process.child.poll() is None
        )

    def end(self, how=signal.SIGTERM):
        return self.process.end(how)

    def database(self):
        return self.state / "queue.db"

    def log(self):
        return (self.folder / "log").read_text(errors="replace")


class Mosquitto(Tidegate):
    name = "Mosquitto bridge"
    saving = ""

    def __init__(self, _binary, folder, cloud_port, state=None):
        self.folder, self.port, self.process = folder, free_port(), None
        self.state = state or folder / "state"
        folder.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\nuser root\n"
            f"persistence true\npersistence_location {self.state}/\n{self.saving}\n"
            f"connection cloud\naddress 127.0.0.1:{cloud_port}\ncleansession false\n"
            f'topic plant/# out 1 "" factory/\nrestart_timeout 1 5\n'
        )

    def start(self):
        self.process = Process(["mosquitto", "-c", str(self.config)], self.folder / "log")
        wait_until("mosquitto answers or ends", lambda: accepts(self.port) or self.process.child.poll() is not None)
        return self.process.child.poll() is None

    def database(self):
        return self.state / "mosquitto.db"


class MosquittoSaving(Mosquitto):
    """As often as it can: after every change, so that nothing better can be said of its file."""

    name = "Mosquitto bridge, saving after each change"
    saving = "autosave_interval 1\nautosave_on_changes true\n"


KINDS = (Tidegate, Mosquitto, MosquittoSaving)


def verdict(sent, acknowledged, seen, told):
    lost = len(acknowledged - seen)
    declared = sum(gap.get("count") or 0 for gap in told)
    text = f"{len(acknowledged)} of {sent} acknowledged, {lost} of them lost"
    return text + (f", {declared} declared in gap records" if declared else "")


def plug(kind, binary, folder):
    cloud = Cloud(folder / "cloud")
    gateway = kind(binary, folder / "gateway", cloud.port)
    gateway.start()
    acknowledged = publish(gateway.port, range(COUNT))
    gateway.end(signal.SIGKILL)
    gateway.start()
    cloud.start()
    seen, told = cloud.count(len(acknowledged))
    gateway.end()
    cloud.stop()
    return verdict(COUNT, acknowledged, seen, told)


def vanished(kind, binary, folder):
    cloud = Cloud(folder / "cloud")
    gateway = kind(binary, folder / "gateway", cloud.port)
    gateway.start()
    acknowledged = publish(gateway.port, range(COUNT))
    cloud.start()
    seen, told = cloud.count(len(acknowledged))
    gateway.end()
    cloud.stop()
    return verdict(COUNT, acknowledged, seen, told)


def full(kind, binary, folder):
    if os.geteuid() != 0:
        return "not measured: needs root"
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)], check=True)
    try:
        cloud = Cloud(folder / "cloud")
        gateway = kind(binary, folder / "gateway", cloud.port, disk / "state")
        gateway.start()
        first = publish(gateway.port, range(100))
        ballast = os.open(disk / "ballast", os.O_CREAT | os.O_WRONLY)
        try:
            while os.write(ballast, b"x" * 4096):
                pass
        except OSError:
            os.close(ballast)
        acknowledged = first | publish(gateway.port, range(100, 100 + COUNT), pad=1000, timeout=20)
        running = gateway.process.child.poll() is None
        gateway.end()
        (disk / "ballast").unlink()
        started = gateway.start()
        cloud.start()
        seen, told = cloud.count(len(acknowledged))
        gateway.end()
        cloud.stop()
        text = verdict(100 + COUNT, acknowledged, seen, told)
        return text + ("" if running else ", ended by itself") + ("" if started else ", did not start again")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def damaged(kind, binary, folder):
    cloud = Cloud(folder / "cloud")
    gateway = kind(binary, folder / "gateway", cloud.port)
    gateway.start()
    acknowledged = publish(gateway.port, range(COUNT))
    gateway.end()
    with open(gateway.database(), "r+b") as database:
        size = database.seek(0, os.SEEK_END)
        for place in (0, size // 3, size // 2):
            database.seek(place)
            database.write(b"\xff" * 256)
    started = gateway.start()
    if not started:
        status = gateway.end()
        return f"does not start: exit status {status}"
    after = publish(gateway.port, range(COUNT, COUNT + 100))
    cloud.start()
    seen, told = cloud.count(len(acknowledged | after))
    gateway.end()
    cloud.stop()
    lost = len(acknowledged - seen)
    declared = sum(gap.get("count") or 0 for gap in told)
    return (
        f"starts; of the {len(acknowledged)} in the damaged file {len(acknowledged) - lost} are salvaged and delivered, "
        f"{lost} are lost, {declared} declared in gap records; {len(after & seen)} of 100 new ones arrive"
    )


def misspelt(kind, binary, folder):
    gateway = kind(binary, folder / "gateway", 1)
    text = gateway.config.read_text().replace("url =", "ulr =").replace("address ", "adress ")
    text = text.replace("filter =", "fliter =").replace("cleansession ", "cleansesion ")
    gateway.config.write_text(text)
    gateway.start()
    status = gateway.process.child.wait(10)
    named = sum(word in gateway.log() for word in ("ulr", "fliter", "adress", "cleansesion"))
    gateway.end()
    return f"exit status {status}, {named} of 2 misspelt keys named"


def meter(kind, binary, folder):
    if kind is not Tidegate:
        return "reads no meters"
    cloud = Cloud(folder / "cloud")
    cloud.start()
    gateway = kind(binary, folder / "gateway", cloud.port)
    units = free_port()
    simulator = Process(
        [binary, "simulate", "modbus", "--listen", f"127.0.0.1:{units}", "--units", "1", "--dead", "2"], folder / "units"
    )
    wait_until("the meters answer", lambda: accepts(units))
    devices = "".join(
        f'[modbus.{name}]\nline = "tcp://127.0.0.1:{units}"\nunit_id = {unit}\npoll = "500ms"\ntimeout = "300ms"\n'
        f'topic = "plant/{{device}}/{{point}}"\n[modbus.{name}.point]\nx = {{ address = "holding:0", type = "u16" }}\n'
        for name, unit in (("living", 1), ("dead", 2))
    )
    gateway.config.write_text(gateway.config.read_text() + devices)
    readings = {"living": [], "dead": []}

    def on_message(_client, _userdata, message):
        body = json.loads(message.payload) if message.payload.startswith(b"{") else {}
        if body.get("device") in readings:
            readings[body["device"]].append((time.monotonic(), body["quality"], body.get("reason")))

    client = cloud.subscriber(on_message)
    gateway.start()
    wait_until("40 readings of the living meter came", lambda: len(readings["living"]) >= 40)
    client.loop_stop()
    gateway.end()
    simulator.end()
    cloud.stop()
    times = [at for at, quality, _ in readings["living"] if quality == "good"]
    interval = (times[-1] - times[4]) / (len(times) - 5)
    reasons = {f"{quality}: {reason}" for _, quality, reason in readings["dead"]}
    return f"its readings are {' / '.join(sorted(reasons))!r}; its neighbour on the line, asked every 0.50 s, came every {interval:.2f} s"


ROWS = [
    ("the plug is pulled (kill -9) with the cloud away", plug),
    ("the cloud vanishes and comes back", vanished),
    ("the disk is full", full),
    ("the database is damaged", damaged),
    ("a meter dies", meter),
    ("two keys are misspelt", misspelt),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", default="target/release/tidegate")
    parser.add_argument("--only", help="a word of the row to run")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.only or arguments.only in row[0]]
    base = Path(tempfile.mkdtemp(prefix="tidegate-table-"))
    base.chmod(0o755)
    try:
        for kind in KINDS:
            sample = kind(arguments.tidegate, base / kind.__name__, 1883)
            print(f"--- configuration of {kind.name}\n{sample.config.read_text()}")
        print("| when | " + " | ".join(kind.name for kind in KINDS) + " |\n|---" + "|---" * len(KINDS) + "|")
        for number, (what, measure) in enumerate(rows):
            cells = []
            for kind in KINDS:
                folder = base / f"{kind.__name__}-{number}"
                folder.mkdir()
                cells.append(measure(kind, arguments.tidegate, folder))
            print(f"| {what} | " + " | ".join(cells) + " |", flush=True)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
