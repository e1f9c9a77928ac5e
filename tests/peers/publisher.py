"""Publishes numbers and says which of them were acknowledged.

Says on standard output: `connected`, `ack <n>`, `refused <n> <reason>`, `done`. It connects again by itself and, as
paho does, repeats what was not acknowledged.
"""

import argparse
import queue
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import way

ask = argparse.ArgumentParser()
way.add_arguments(ask)
ask.add_argument("--client-id", required=True)
ask.add_argument("--version", choices=["3.1.1", "5"], default="5")
ask.add_argument("--qos", type=int, default=1)
ask.add_argument("--topic", required=True)
ask.add_argument("--first", type=int, default=0)
ask.add_argument("--count", type=int, required=True)
ask.add_argument("--size", type=int, default=16, help="bytes of each payload")
ask.add_argument("--window", type=int, default=20)
ask.add_argument("--pause", type=float, default=0.0, help="seconds between two messages")
ask.add_argument("--persistent", action="store_true")
ask.add_argument("--retain", action="store_true")
asked = ask.parse_args()

lock = threading.Lock()


def say(line):
    with lock:
        print(line, flush=True)


is_v5 = asked.version == "5"
options = {} if is_v5 else {"clean_session": not asked.persistent}
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=asked.client_id,
    protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311,
    transport=way.transport(asked),
    **options,
)
to = way.prepare(client, asked)
client.max_inflight_messages_set(asked.window)
client.max_queued_messages_set(0)
client.reconnect_delay_set(min_delay=0.2, max_delay=1)

# on_publish runs under paho's own lock: the numbers are looked up outside of it.
acknowledged = queue.Queue()
number_of = {}
client.on_connect = lambda client, userdata, flags, reason, properties: say("connected")
client.on_publish = lambda client, userdata, mid, reason, properties: acknowledged.put((mid, reason))


def report():
    for _ in range(asked.count):
        mid, reason = acknowledged.get()
        while mid not in number_of:
            time.sleep(0.001)
        number = number_of.pop(mid)
        # PUBCOMP "packet identifier not found": the PUBREC had come, and after a restart nothing is left to release.
        if asked.qos == 2 and reason.value == 0x92:
            say(f"ack {number}")
            continue
        say(f"refused {number} {reason}" if reason.is_failure else f"ack {number}")
    say("done")


reporter = threading.Thread(target=report)
reporter.start()

if is_v5 and asked.persistent:
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 3600
    client.connect_async(*to, clean_start=False, properties=kept)
else:
    client.connect_async(*to)
client.loop_start()
while not client.is_connected():
    time.sleep(0.005)
for number in range(asked.first, asked.first + asked.count):
    payload = str(number).ljust(asked.size)
    published = client.publish(asked.topic, payload, qos=asked.qos, retain=asked.retain)
    number_of[published.mid] = number
    if asked.pause:
        time.sleep(asked.pause)
reporter.join()
client.disconnect()
client.loop_stop()
