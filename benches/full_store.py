#!/usr/bin/env python3
"""Does a full store slow local clients down? One gateway, one run, phase after phase: the rate between two local
clients while the store is not full, then while it is full, and so on; and the ratio of the two.

    cargo build --release
    target/venv/bin/python benches/full_store.py [--when-full drop-oldest|drop-newest|refuse] [--rounds 5] [--load 0]

The cloud is away while anything is measured. Between the phases the store is filled to its ceiling, or the cloud (the
machine's mosquitto) comes, takes all that waits, and goes. Each full phase is compared with the mean of the two beside it
that are not full, so that a machine that slows down or speeds up meanwhile takes no side. With `--load N` a publisher puts
N messages a second into the store all the time, which must not fill it within one phase. Stops by itself.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import paho.mqtt.client as mqtt

sys.path.insert(0, str(Path(__file__).parent))
from readme_table import Cloud, Process, accepts, free_port, publish, wait_until  # noqa: E402


def client(port, name):
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, clean_session=True)
    made.max_inflight_messages_set(100)
    made.max_queued_messages_set(0)
    connected = threading.Event()
    made.on_connect = lambda *_: connected.set()
    made.connect("127.0.0.1", port)
    made.loop_start()
    connected.wait(10)
    return made


def rate(port, count, name):
    """Messages a second from one local client to another, each at QoS 1, until the last one is heard."""
    heard, done, ready = [0], threading.Event(), threading.Event()

    def on_message(_client, _userdata, _message):
        heard[0] += 1
        if heard[0] >= count:
            done.set()

    listener = client(port, f"hears-{name}")
    listener.on_message = on_message
    listener.on_subscribe = lambda *_: ready.set()
    listener.subscribe("local/#", 1)
    ready.wait(10)
    talker = client(port, f"talks-{name}")
    started = time.monotonic()
    for _ in range(count):
        talker.publish("local/x", b"x" * 100, qos=1)
    is_whole = done.wait(120)
    seconds = time.monotonic() - started
    for one in (talker, listener):
        one.loop_stop()
        one.disconnect()
    if not is_whole:
        print(f"  {name}: only {heard[0]} of {count} were heard", file=sys.stderr)
    return heard[0] / seconds


def load(port, per_second, stop):
    plant = client(port, "plant")
    sent, heard = [0], [0]

    def on_publish(*_):
        heard[0] += 1

    plant.on_publish = on_publish
    while not stop.wait(1 / per_second):
        # A device waits where it is not answered; what paho would heap up beside a store that refuses would fill it as soon as
        # it has drained, and no phase would be what it is called.
        if sent[0] - heard[0] < 20:
            plant.publish("plant/x", b"x" * 200, qos=1)
            sent[0] += 1
    plant.loop_stop()


class Gateway:
    """One with a small store, whose cloud is away unless it drains."""

    def __init__(self, binary, folder, when_full):
        self.binary, self.port, self.cloud = binary, free_port(), Cloud(folder / "cloud")
        self.config = folder / "tidegate.toml"
        self.config.write_text(
            f'[gateway]\nid = "g7"\nstate_dir = "{folder}/state"\n\n'
            f'[broker.listener.local]\nbind = "127.0.0.1:{self.port}"\n\n'
            f'[queue]\nmax_bytes = "1 MiB"\nwhen_full = "{when_full}"\n\n'
            f'[uplink.cloud]\nurl = "mqtt://127.0.0.1:{self.cloud.port}"\n'
            f'reconnect = {{ first = "200ms", max = "1s" }}\n\n'
            f'[[uplink.cloud.forward]]\nfilter = "plant/#"\n'
        )
        self.process = Process([binary, "run", "--config", str(self.config)], folder / "log")
        wait_until("the gateway listens", lambda: accepts(self.port))

    def status(self):
        command = [self.binary, "status", "--json", "--config", str(self.config)]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    def fill(self):
        """1 MiB is full after some 3000 of these; what comes after them gives way, or is refused."""
        publish(self.port, range(5000), pad=300, timeout=10)
        if "store-fills" not in self.status()["alarms"]:
            sys.exit("the store is not full")

    def drain(self):
        self.cloud.start()
        is_drained = wait_until("all has gone up", lambda: self.status()["uplinks"]["cloud"]["waiting"] < 50)
        self.cloud.stop()
        if not is_drained:
            sys.exit("the store does not drain")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", default="target/release/tidegate")
    parser.add_argument("--when-full", default="drop-oldest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--load", type=int, default=0)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="tidegate-full-"))
    stop, gateway = threading.Event(), None
    try:
        gateway = Gateway(arguments.tidegate, base, arguments.when_full)
        if arguments.load:
            threading.Thread(target=load, args=(gateway.port, arguments.load, stop), daemon=True).start()
        # Both ways once before anything counts: memory that is touched for the first time is slow.
        gateway.fill()
        rate(gateway.port, arguments.count, "warm")
        gateway.drain()
        free, full = [rate(gateway.port, arguments.count, "free-0")], []
        for number in range(1, arguments.rounds + 1):
            gateway.fill()
            full.append(rate(gateway.port, arguments.count, f"full-{number}"))
            gateway.drain()
            free.append(rate(gateway.port, arguments.count, f"free-{number}"))
            print(f"round {number}: not full {free[-2]:.0f}/s, full {full[-1]:.0f}/s, not full {free[-1]:.0f}/s", flush=True)
        ratios = [2 * now / (before + after) for before, now, after in zip(free, full, free[1:])]
        print(
            f"{arguments.when_full}, load {arguments.load}/s, {arguments.rounds} rounds: not full "
            f"{statistics.median(free):.0f}/s ({min(free):.0f}-{max(free):.0f}), full {statistics.median(full):.0f}/s "
            f"({min(full):.0f}-{max(full):.0f}), full / not full {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f})"
        )
    finally:
        stop.set()
        if gateway:
            gateway.process.end()
            if gateway.cloud.process:
                gateway.cloud.process.end()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
