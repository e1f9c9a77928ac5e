"""Subscribes with a session that is kept, and says what arrives: one JSON object a line.

It stands for the application in the cloud: it counts what arrived, by the sender's own numbers and by message ids.
"""

import argparse
import json
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import way

ask = argparse.ArgumentParser()
way.add_arguments(ask)
ask.add_argument("--client-id", required=True)
ask.add_argument("--version", choices=["3.1.1", "5"], default="5")
ask.add_argument("--qos", type=int, default=2)
ask.add_argument("--clean", action="store_true")
ask.add_argument("--user")
ask.add_argument("--password")
ask.add_argument("filters", nargs="+")
asked = ask.parse_args()


def say(**fields):
    print(json.dumps(fields), flush=True)


def on_connect(client, userdata, flags, reason, properties):
    if reason.is_failure:
        say(event="refused", reason=str(reason))
    elif flags.session_present:
        say(event="resumed")
    else:
        client.subscribe([(topic, asked.qos) for topic in asked.filters])


def on_subscribe(client, userdata, mid, reasons, properties):
    say(event="subscribed", reasons=[reason.value for reason in reasons])


def on_message(client, userdata, message):
    user = dict(getattr(message.properties, "UserProperty", []) or [])
    say(
        topic=message.topic,
        qos=message.qos,
        retain=bool(message.retain),
        dup=bool(message.dup),
        payload=message.payload.decode("utf-8", "replace"),
        id=user.get("tidegate-id"),
    )


is_v5 = asked.version == "5"
options = {} if is_v5 else {"clean_session": asked.clean}
client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=asked.client_id,
    protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311,
    transport=way.transport(asked),
    **options,
)
to = way.prepare(client, asked)
if asked.user:
    client.username_pw_set(asked.user, asked.password)
client.on_connect = on_connect
client.on_subscribe = on_subscribe
client.on_message = on_message
client.reconnect_delay_set(min_delay=0.2, max_delay=1)
if is_v5:
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 0 if asked.clean else 3600
    kept.ReceiveMaximum = 1000
    client.connect_async(*to, clean_start=asked.clean, properties=kept)
else:
    client.connect_async(*to)
try:
    client.loop_forever(retry_first_connection=True)
except KeyboardInterrupt:
    sys.exit(0)
