"""What clouds keep beside messages, played beside a broker by their documents: shadows and jobs of AWS, the twin of Azure.

Arguments: the broker's port, the id of the one device. Needs `log_dest topic` and `log_type subscribe` of Mosquitto: a hub
tells changes of its twin only to a device that is there. Says on standard output, one JSON object a line: {"ready"}, each
{"request"} with its answers, each {"state"} that is new, and each {"violation"}: what the service would not take. Takes
orders on standard input, one JSON object a line, and says {"done"} to each.
"""

import json
import re
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.properties import Properties
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.subscribeoptions import SubscribeOptions

from jobs_service import Jobs
from shadow_service import Shadow
from twin_service import Twin

# Of one service: what AWS takes for the shadows of a thing.
REQUESTS_PER_S = 20

port, device = int(sys.argv[1]), sys.argv[2]
lock = threading.Lock()


def say(**fields):
    print(json.dumps(fields), flush=True)


def violation(what):
    say(violation=what)


class Cloud:
    """All services, and what they were ordered to do wrong."""

    def __init__(self):
        self.shadows, self.jobs, self.twin = {}, Jobs(violation), Twin(violation)
        self.refusals, self.silent, self.held, self.times = [], set(), None, {}
        self.is_connected, self.filters, self.told = False, set(), {}

    def service(self, name):
        if name == "jobs":
            return self.jobs
        if name == "twin":
            return self.twin
        return self.shadows.setdefault(name, Shadow(name.partition("/")[2], violation))

    def owner(self, topic):
        """Name of the service and what stands behind its topics."""
        if topic.startswith("$iothub/twin/"):
            return "twin", topic.removeprefix("$iothub/twin/")
        if not topic.startswith(f"$aws/things/{device}/"):
            return None, topic
        rest = topic.removeprefix(f"$aws/things/{device}/")
        if rest.startswith("jobs/"):
            return "jobs", rest.removeprefix("jobs/")
        named = re.fullmatch(r"shadow/name/([A-Za-z0-9:_-]{1,64})/(.+)", rest)
        if named:
            return f"shadow/{named[1]}", named[2]
        return ("shadow", rest.removeprefix("shadow/")) if rest.startswith("shadow/") else (None, topic)

    def refusal(self, name, tail, payload):
        for order in self.refusals:
            names = order.get("names")
            is_about = names is None or any(f'"{one}":' in payload for one in names)
            if order["service"] == name and order.get("tail", tail) == tail and is_about and order["count"] > 0:
                order["count"] -= 1
                return order["code"]
        return None

    def request(self, topic, payload, qos, retain):
        name, tail = self.owner(topic)
        now = time.monotonic()
        times = self.times[name] = [at for at in self.times.get(name, []) if now - at < 1] + [now]
        if len(times) > REQUESTS_PER_S:
            violation(f"{name}: {len(times)} requests within a second")
        if name is None:
            return violation(f"there is nothing at {topic}")
        if retain:
            violation(f"retained: {topic}")
        if name == "twin" and "$iothub/twin/res/#" not in self.filters:
            violation("asked before it subscribed to the answers")
        try:
            text = payload.decode()
        except UnicodeDecodeError:
            text = "\ufffd"
        service = self.service(name)
        if name in self.silent:
            return say(request=tail, service=name, payload=text, qos=qos, answers=[])
        code = self.refusal(name, tail.partition("?")[0], text)
        answers = service.refused(tail, text, code) if code else service.request(tail, text)
        say(request=tail, service=name, payload=text, qos=qos, answers=answers)
        self.send(name, answers)
        self.show(name)

    def send(self, name, answers):
        if self.held is not None and name == self.held[0]:
            return self.held[1].extend(answers)
        for tail, payload in answers:
            self.publish(name, tail, payload)

    def publish(self, name, tail, payload):
        if name == "twin":
            is_change = tail.startswith("PATCH/properties/desired/")
            if is_change and not (self.is_connected and "$iothub/twin/PATCH/properties/desired/#" in self.filters):
                return
            # Without a place in a session: who is away does not get it later.
            return client.publish(f"$iothub/twin/{tail}", payload, qos=0 if is_change else 1)
        client.publish(f"$aws/things/{device}/{name.replace('shadow/', 'shadow/name/', 1)}/{tail}", payload, qos=1)

    def show(self, name):
        state = self.service(name).state()
        if self.told.get(name) != state:
            self.told[name] = state
            say(state=name, **json.loads(json.dumps(state)))

    def order(self, order):
        kind, name = order["order"], order.get("service")
        if kind == "refuse":
            self.refusals.append({"count": 1 << 30} | order)
        elif kind == "allow":
            self.refusals = []
        elif kind == "silence":
            self.silent.add(name)
        elif kind == "speak":
            self.silent.discard(name)
        elif kind == "hold":
            self.held = (name, [])
        elif kind == "release":
            (_, answers), self.held = self.held, None
            self.send(name, answers)
        elif kind == "say":
            self.publish(name, order["tail"], json.dumps(order["payload"]))
        elif kind == "show":
            self.told.pop(name, None)
            self.show(name)
        else:
            answers = self.service(name).order(order)
            # Told by the service itself, which waits for no answer that is held.
            for tail, payload in answers:
                self.publish(name, tail, payload)
            self.show(name)

    def log(self, line):
        """One of the broker's own lines."""
        new = re.search(r"New client connected from \S+ as (\S+) \(p\d, c(\d)", line)
        if new and new[1] == device:
            self.is_connected = True
            if new[2] == "1":
                self.filters = set()
            return
        subscribed = re.match(rf"\d+: {re.escape(device)} \d (\S+)$", line)
        if subscribed:
            self.filters.add(subscribed[1])
        elif re.search(rf"[Cc]lient {re.escape(device)}\b", line) and "already connected" not in line:
            self.is_connected = False


cloud = Cloud()


def on_message(client, userdata, message):
    with lock:
        if message.topic.startswith("$SYS/"):
            return cloud.log(message.payload.decode(errors="replace"))
        cloud.request(message.topic, message.payload, message.qos, message.retain)


def on_connect(client, userdata, flags, reason, properties):
    alone = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True)
    client.subscribe([(topic, alone) for topic in ("$SYS/broker/log/#", "$aws/#", "$iothub/twin/#")])


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="cloud-services", protocol=mqtt.MQTTv5)
client.on_connect, client.on_message = on_connect, on_message
client.on_subscribe = lambda *about: say(ready=True)
client.reconnect_delay_set(1, 1)
kept = Properties(PacketTypes.CONNECT)
kept.SessionExpiryInterval = 3600
client.connect("127.0.0.1", port, clean_start=False, properties=kept)
client.loop_start()
for line in sys.stdin:
    with lock:
        cloud.order(json.loads(line))
        say(done=line.strip())
