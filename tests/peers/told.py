"""One paho client that subscribes and says what it is told, one JSON object a line, until its connection ends."""

import argparse
import json

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

ask = argparse.ArgumentParser()
ask.add_argument("--port", type=int, required=True)
ask.add_argument("--client-id", required=True)
ask.add_argument("--version", choices=["3.1.1", "5"], default="5")
ask.add_argument("--user")
ask.add_argument("--password")
ask.add_argument("--will")
ask.add_argument("--alias-maximum", type=int)
ask.add_argument("--publish")
ask.add_argument("--qos", type=int, default=1)
ask.add_argument("filters", nargs="*")
asked = ask.parse_args()
is_v5 = asked.version == "5"


def say(**fields):
    print(json.dumps(fields), flush=True)


def on_connect(client, userdata, flags, reason, properties):
    say(event="connected", reason=reason.value, present=bool(flags.session_present))
    if reason.is_failure:
        client.disconnect()
    elif asked.filters and not flags.session_present:
        client.subscribe([(topic, asked.qos) for topic in asked.filters])
    if asked.publish and not reason.is_failure:
        # In full with its alias once, then by the alias alone.
        for topic in (asked.publish, ""):
            alias = Properties(PacketTypes.PUBLISH)
            alias.TopicAlias = 1
            client.publish(topic, f"by {topic!r}", qos=1, properties=alias)


def on_subscribe(client, userdata, mid, reasons, properties):
    say(event="subscribed", reasons=[reason.value for reason in reasons])


def on_message(client, userdata, message):
    alias = getattr(message.properties, "TopicAlias", None) if message.properties else None
    say(event="message", topic=message.topic, qos=message.qos, payload=message.payload.decode(), alias=alias)


def on_disconnect(client, userdata, flags, reason, properties):
    say(event="disconnected", by_server=bool(flags.is_disconnect_packet_from_server), reason=reason.value)
    client.disconnect()


client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    client_id=asked.client_id,
    protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311,
    **({} if is_v5 else {"clean_session": False}),
)
client.on_connect, client.on_subscribe = on_connect, on_subscribe
client.on_message, client.on_disconnect = on_message, on_disconnect
if asked.user is not None or asked.password is not None:
    # paho sends no password without a name; an empty one is as good as none.
    client.username_pw_set(asked.user or "", asked.password)
if asked.will:
    client.will_set(asked.will, "gone", qos=1)
if is_v5:
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 3600
    if asked.alias_maximum is not None:
        kept.TopicAliasMaximum = asked.alias_maximum
    client.connect("127.0.0.1", asked.port, clean_start=False, properties=kept)
else:
    client.connect("127.0.0.1", asked.port)
client.loop_forever()
