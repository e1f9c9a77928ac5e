"""The twin of one device of Azure IoT Hub, by the pages "Understand device twins" and "Communicate … using MQTT"."""

import json
import re

SECTION_BYTES = 32 * 1024
LEVELS = 10
MESSAGES = {400: "BadRequest", 404: "DeviceNotFound", 429: "ThrottlingException", 500: "ServerError"}


class Wrong(Exception):
    pass


def is_plain(value, level=0):
    """Names without `.`, `$`, blanks and control characters, numbers and texts of a size."""
    if isinstance(value, dict):
        names = all(re.fullmatch(r"[^.$ \x00-\x1f\x7f-\x9f]{1,1024}", name) for name in value)
        return level <= LEVELS and names and all(is_plain(inner, level + 1) for inner in value.values())
    if isinstance(value, list):
        return all(is_plain(inner, level + 1) for inner in value)
    if isinstance(value, str):
        return len(value.encode()) <= 4096
    if isinstance(value, int) and not isinstance(value, bool):
        return -4503599627370496 <= value <= 4503599627370495
    return True


def size(value):
    if isinstance(value, dict):
        return sum(len(name.encode()) + size(inner) for name, inner in value.items())
    if isinstance(value, list):
        return sum(map(size, value))
    return len(value.encode()) if isinstance(value, str) else 4 if isinstance(value, bool) else 8


def merged(target, patch):
    """Null removes; an object stays though nothing is left in it."""
    target = dict(target)
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict):
            target[name] = merged(target[name] if isinstance(target.get(name), dict) else {}, value)
        else:
            target[name] = value
    return target


class Twin:
    def __init__(self, violation):
        self.violation = violation
        self.desired, self.reported, self.version, self.reported_version = {}, {}, 1, 1

    def state(self):
        return {"version": self.version, "desired": self.desired, "reported": self.reported}

    def order(self, order):
        if order["order"] == "desire":
            patch = order["desired"]
            self.desired = merged(self.desired, patch)
        elif order["order"] == "replace":
            gone = {name: None for name in self.desired if name not in order["desired"]}
            self.desired = order["desired"]
            patch = self.desired | gone
        else:
            raise ValueError(order)
        self.version += 1
        change = patch | {"$version": self.version}
        return [(f"PATCH/properties/desired/?$version={self.version}", json.dumps(change))]

    def refused(self, tail, text, code):
        number = re.search(r"\$rid=([^&]+)$", tail)[1]
        return [(f"res/{code}/?$rid={number}", json.dumps({"errorCode": code * 1000, "message": MESSAGES[code]}))]

    def request(self, tail, text):
        asked = re.fullmatch(r"(GET|PATCH/properties/reported)/\?\$rid=([A-Za-z0-9-]+)", tail)
        if not asked:
            self.violation(f"a twin has no topic {tail!r}")
            return []
        kind, number = asked[1], asked[2]
        if kind == "GET":
            # The library of Azure sends a blank, because not every client can send nothing.
            if text.strip():
                self.violation(f"a question with a payload: {text[:100]!r}")
            whole = {"desired": self.desired | {"$version": self.version},
                     "reported": self.reported | {"$version": self.reported_version}}
            return [(f"res/200/?$rid={number}", json.dumps(whole))]
        try:
            patch = json.loads(text)
            if not isinstance(patch, dict) or not is_plain(patch):
                raise Wrong("properties")
            reported = merged(self.reported, patch)
            if size(reported) > SECTION_BYTES:
                raise Wrong("size")
        except (ValueError, Wrong) as wrong:
            self.violation(f"twin: {wrong}: {text[:300]}")
            return self.refused(tail, text, 400)
        self.reported = reported
        self.reported_version += 1
        return [(f"res/204/?$rid={number}&$version={self.reported_version}", "")]
