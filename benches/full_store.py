#!/usr/bin/env python3
"""Does a full store slow local clients down? One run: the rate between two local clients with an empty store, then with
a full one, in turn, and their ratio.

    cargo build --release
    target/venv/bin/python benches/full_store.py [--when-full drop-oldest|drop-newest|refuse] [--rounds 5] [--load 0]

One gateway has an empty store, the other one is filled to its ceiling before the first round and stays full: its cloud
is away. Both run all the time; the rounds alternate between them, so that a noisy machine is noisy for both. With
`--load N` a publisher puts N messages a second into each of the two meanwhile. Stops by itself.
"""

import argparse
import os
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
from readme_table import Process, accepts, free_port, publish, wait_until  # noqa: E402


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
    while not stop.wait(1 / per_second):
        plant.publish("plant/x", b"x" * 200, qos=1)
    plant.loop_stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tidegate", default="target/release/tidegate")
    parser.add_argument("--when-full", default="drop-oldest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--load", type=int, default=0)
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="tidegate-full-"))
    gateways, stop = {}, threading.Event()
    try:
        for name, bytes_max in (("empty", "256 MiB"), ("full", "1 MiB")):
            port, folder = free_port(), base / name
            folder.mkdir()
            config = folder / "tidegate.toml"
            config.write_text(
                f'[gateway]\nid = "g7"\nstate_dir = "{folder}/state"\n\n'
                f'[broker.listener.local]\nbind = "127.0.0.1:{port}"\n\n'
                f'[queue]\nmax_bytes = "{bytes_max}"\nwhen_full = "{arguments.when_full}"\n\n'
                f'[uplink.cloud]\nurl = "mqtt://127.0.0.1:1"\n\n'
                f'[[uplink.cloud.forward]]\nfilter = "plant/#"\n'
            )
            process = Process([arguments.tidegate, "run", "--config", str(config)], folder / "log")
            gateways[name] = (port, process)
            wait_until("the gateway listens", lambda port=port: accepts(port))
        # 1 MiB is full after some 3000 of these; what comes after them gives way, or is refused.
        publish(gateways["full"][0], range(5000), pad=300, timeout=20)
        if arguments.load:
            for port, _ in gateways.values():
                threading.Thread(target=load, args=(port, arguments.load, stop), daemon=True).start()
        ratios = []
        for number in range(arguments.rounds):
            rates = {name: rate(port, arguments.count, f"{name}-{number}") for name, (port, _) in gateways.items()}
            ratios.append(rates["full"] / rates["empty"])
            print(f"round {number + 1}: empty {rates['empty']:.0f}/s, full {rates['full']:.0f}/s, ratio {ratios[-1]:.2f}", flush=True)
        print(f"{arguments.when_full}: median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    finally:
        stop.set()
        for _, process in gateways.values():
            process.end()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
