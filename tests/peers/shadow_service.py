"""One shadow of AWS IoT Core, classic or named, by the pages "Device Shadow MQTT topics" and "… documents"."""

import json
import time

DOCUMENT_BYTES = 8192
# Eight levels of the whole document, of which `state` and `reported` are two.
LEVELS = 6
TOKEN_BYTES = 64
MESSAGES = {
    400: "Invalid JSON", 401: "Unauthorized", 403: "Forbidden", 409: "Version conflict",
    413: "The payload exceeds the maximum size allowed", 415: "Unsupported documented encoding",
    429: "Too many requests", 500: "Internal service failure",
}


class Wrong(Exception):
    def __init__(self, code, message=None):
        super().__init__(message)
        self.code, self.message = code, message or MESSAGES[code]


def levels(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((levels(one) for one in inner), default=0) if isinstance(value, (dict, list)) else 0


def has_null(value, is_inside_array=False):
    if value is None:
        return is_inside_array
    if isinstance(value, list):
        return any(has_null(one, True) for one in value)
    return isinstance(value, dict) and any(has_null(one, is_inside_array) for one in value.values())


def merged(target, patch):
    """Null removes; what has nothing left vanishes."""
    target = dict(target)
    for name, value in patch.items():
        if isinstance(value, dict):
            value = merged(target[name] if isinstance(target.get(name), dict) else {}, value) or None
        if value is None:
            target.pop(name, None)
        else:
            target[name] = value
    return target


def difference(desired, reported):
    found = {}
    for name, value in desired.items():
        before = reported.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = difference(value, before)
            if inner:
                found[name] = inner
        elif value != before:
            found[name] = value
    return found


def stamps(value, now):
    if isinstance(value, dict):
        return {name: stamps(inner, now) for name, inner in value.items()}
    if isinstance(value, list):
        return [stamps(inner, now) for inner in value]
    return {"timestamp": now}


class Shadow:
    def __init__(self, name, violation):
        self.name, self.violation = name, violation
        self.sections, self.version, self.is_there = {}, 0, False

    def state(self):
        return {"version": self.version, "exists": self.is_there, "desired": self.sections.get("desired", {}),
                "reported": self.sections.get("reported", {})}

    def order(self, order):
        if order["order"] == "desire":
            return self.updated({"desired": order["desired"]}, None)
        if order["order"] == "report":
            return self.updated({"reported": order["reported"]}, None)
        if order["order"] == "delete":
            self.sections, self.is_there = {}, False
            return [("delete/accepted", json.dumps({"version": self.version, "timestamp": int(time.time())}))]
        raise ValueError(order)

    def refused(self, tail, text, code):
        return self.rejected(tail, self.token(text), Wrong(code, MESSAGES.get(code, "Refused")))

    def token(self, text):
        try:
            said = json.loads(text)
        except ValueError:
            return None
        return said.get("clientToken") if isinstance(said, dict) else None

    def rejected(self, tail, token, wrong):
        about = {"code": wrong.code, "message": wrong.message, "timestamp": int(time.time())}
        return [(f"{tail}/rejected", json.dumps(about | ({} if token is None else {"clientToken": token})))]

    def request(self, tail, text):
        if tail not in ("get", "update", "delete"):
            self.violation(f"a shadow has no topic {tail!r}")
            return []
        token = self.token(text)
        try:
            return getattr(self, tail)(text, token)
        except Wrong as wrong:
            self.violation(f"shadow {tail}: {wrong.code} {wrong.message}: {text[:300]}")
            return self.rejected(tail, token, wrong)

    def asked(self, text, fields):
        try:
            said = json.loads(text)
        except ValueError:
            raise Wrong(400) from None
        if not isinstance(said, dict):
            raise Wrong(400, "Missing required node: state")
        if set(said) - set(fields):
            self.violation(f"unknown fields: {sorted(set(said) - set(fields))}")
        token = said.get("clientToken", "")
        if not isinstance(token, str) or len(token.encode()) > TOKEN_BYTES:
            raise Wrong(400, "Invalid clientToken")
        return said

    def get(self, text, token):
        if text:
            self.asked(text, ["clientToken"])
        if not self.is_there:
            # Not a fault of whoever asks.
            return self.rejected("get", token, Wrong(404, f"No shadow exists with name: '{self.name}'"))
        now = int(time.time())
        shown = dict(self.sections)
        delta = difference(shown.get("desired", {}), shown.get("reported", {}))
        if delta:
            shown["delta"] = delta
        return [("get/accepted", self.document(shown, token, now))]

    def document(self, shown, token, now):
        of = {name: part for name, part in shown.items() if name != "delta"}
        about = {"state": shown, "metadata": stamps(of, now), "version": self.version, "timestamp": now}
        return json.dumps(about | ({} if token is None else {"clientToken": token}))

    def delete(self, text, token):
        if not self.is_there:
            return self.rejected("delete", token, Wrong(404, f"No shadow exists with name: '{self.name}'"))
        self.violation("a gateway deletes no shadow")
        return self.order({"order": "delete"})

    def update(self, text, token):
        said = self.asked(text, ["state", "clientToken", "version"])
        state = said.get("state")
        if "state" not in said:
            raise Wrong(400, "Missing required node: state")
        if not isinstance(state, dict):
            raise Wrong(400, "State node must be an object")
        if set(state) - {"desired", "reported"}:
            raise Wrong(400, "State contains an invalid node")
        if "desired" in state:
            self.violation("what is desired is not the device's to say")
        for name, part in state.items():
            if part is not None and not isinstance(part, dict):
                raise Wrong(400, f"{name.capitalize()} node must be an object")
            if has_null(part):
                raise Wrong(400, "State contains an invalid node")
            if levels(part) > LEVELS + 1:
                raise Wrong(400, "JSON contains too many levels of nesting; maximum is 6")
        if "version" in said and said["version"] != self.version:
            raise Wrong(409)
        return self.updated(state, token)

    def updated(self, state, token):
        before = {"state": dict(self.sections), "metadata": {}, "version": self.version}
        sections = dict(self.sections)
        for name, part in state.items():
            sections[name] = {} if part is None else merged(sections.get(name, {}), part)
        sections = {name: part for name, part in sections.items() if part}
        if len(json.dumps(sections, separators=(",", ":")).encode()) > DOCUMENT_BYTES:
            raise Wrong(413)
        self.sections, self.is_there = sections, True
        self.version += 1
        now = int(time.time())
        answers = [("update/accepted", self.document(state, token, now))]
        current = {"state": sections, "metadata": stamps(sections, now), "version": self.version}
        whole = {"previous": before, "current": current, "timestamp": now}
        answers.append(("update/documents", json.dumps(whole | ({} if token is None else {"clientToken": token}))))
        delta = difference(sections.get("desired", {}), sections.get("reported", {}))
        if delta:
            answers.append(("update/delta", self.document(delta, token, now)))
        return answers
