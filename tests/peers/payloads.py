"""Decodes what the gateway sends with programs that know nothing of it, and says what readings it holds.

One JSON object a line on standard input, {"form", "gzip", "hex"}; one a line on standard output, {"readings": [{"name",
"value", "ms", "unit"?, "id"?, "seq"?, "quality"?}]}. SenML by cbor2 and the resolution of RFC 8428, 4.6; JSON and gzip by
Python's own; lines by the rules of InfluxDB's reference, strictly: what is not allowed ends the program.
"""

import gzip
import json
import re
import sys
from decimal import Decimal

import cbor2

LABELS = {-6: "bs", -5: "bv", -4: "bu", -3: "bt", -2: "bn", -1: "bver",
          0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd"}
# SenML names (RFC 8428, 4.5.1).
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9\-:./_]*")


def senml(pack):
    records = cbor2.loads(pack)
    assert isinstance(records, list) and records
    base_name, base_time, base_unit = "", 0, None
    last_id, last_seq = None, None
    found = []
    for record in records:
        fields = {LABELS[key] if isinstance(key, int) else key: value for key, value in record.items()}
        assert not any(isinstance(key, str) and key.endswith("_") for key in record), "a field that must be understood"
        base_name = fields.get("bn", base_name)
        base_time = fields.get("bt", base_time)
        base_unit = fields.get("bu", base_unit)
        if "bn" in fields:
            last_seq = None
        name = base_name + fields.get("n", "")
        assert NAME.fullmatch(name), name
        values = [fields[key] for key in ("v", "vs", "vb", "vd") if key in fields]
        assert len(values) == 1, record
        value = values[0]
        if isinstance(value, Decimal):
            value = float(value)
        seconds = Decimal(repr(base_time)) + Decimal(repr(fields.get("t", 0)))
        # Our own words, by what docs/payloads.md says.
        here = fields.get("id")
        if isinstance(here, str):
            last_id = here
        else:
            start, number = last_id.rsplit(".", 1)
            last_id = f"{start}.{int(number) + 1 if here is None else here}"
        last_seq = fields["seq"] if "seq" in fields else last_seq + 1
        one = {"name": name, "value": value, "ms": int(seconds * 1000), "id": last_id, "seq": last_seq,
               "quality": fields.get("q", "good")}
        unit = fields.get("u", base_unit)
        if unit is not None:
            one["unit"] = unit
        found.append(one)
    return found


def split(text, separator):
    """At each separator that is neither escaped nor in quotes."""
    parts, part, quoted, escaped = [], "", False, False
    for character in text:
        if escaped:
            part, escaped = part + "\\" + character, False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted, part = not quoted, part + character
        elif character == separator and not quoted:
            parts.append(part)
            part = ""
        else:
            part += character
    assert not quoted and not escaped, text
    return parts + [part]


def bare(name):
    return re.sub(r"\\(.)", r"\1", name)


def field(text):
    if re.fullmatch(r"-?\d+i", text):
        value = int(text[:-1])
        assert -(2**63) <= value < 2**63
        return value
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"'):
        assert text.endswith('"') and len(text) > 1, text
        return re.sub(r'\\(["\\])', r"\1", text[1:-1])
    assert re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text), text
    return float(text)


def lines(body):
    text = body.decode("utf-8")
    assert text.endswith("\n")
    found = []
    for line in text[:-1].split("\n"):
        series, fields, nanoseconds = split(line, " ")
        measurement, *tags = split(series, ",")
        assert re.fullmatch(r"-?\d{1,19}", nanoseconds) and int(nanoseconds) % 1_000_000 == 0
        tags = dict((bare(key), bare(value)) for key, value in (split(tag, "=") for tag in tags))
        values = {}
        for pair in split(fields, ","):
            key, value = split(pair, "=")
            assert bare(key) not in values, line
            values[bare(key)] = field(value)
        ms = int(nanoseconds) // 1_000_000
        names = {re.sub("_(quality|reason)$", "", key) for key in values if key != "clock"}
        for name in sorted(names):
            found.append({"name": f"{tags['gateway']}/{bare(measurement)}/{name}", "value": values.get(name), "ms": ms,
                          "quality": values.get(f"{name}_quality", "good")})
    return found


def moment(text):
    from datetime import datetime, timezone
    stamp = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return round(stamp.timestamp() * 1000)


def objects(body, gateway):
    whole = json.loads(body)
    return [{"name": f"{gateway}/{one['device']}/{one['point']}", "value": one["value"], "ms": moment(one["ts"]),
             "id": one["id"], "seq": one["seq"], "quality": one["quality"], "unit": one.get("unit")}
            for one in (whole if isinstance(whole, list) else [whole])]


def devices(body, gateway):
    whole = json.loads(body)
    assert isinstance(whole, dict)
    return [{"name": f"{gateway}/{whole['device']}/{point}", "value": value,
             "ms": moment(whole["ts"]) + whole.get("late_ms", {}).get(point, 0),
             "id": f"{whole['id']}.{whole['ids'][point]}", "seq": whole["seq"][point],
             "quality": whole.get("quality", {}).get(point, "good"), "unit": whole.get("units", {}).get(point)}
            for point, value in whole["values"].items()]


def thingsboard(body, gateway):
    """`v1/gateway/telemetry`, one reading each, or the array of `v1/devices/me/telemetry`."""
    whole = json.loads(body)
    found = []
    for one in whole if isinstance(whole, list) else [whole]:
        for point, value in one["values"].items():
            found.append({"name": f"{gateway}/{point}", "value": value, "ms": one["ts"]})
    return found


for request in sys.stdin:
    asked = json.loads(request)
    body = bytes.fromhex(asked["hex"])
    if asked["gzip"]:
        body = gzip.decompress(body)
    gateway = asked["gateway"]
    readings = {
        "senml-cbor": lambda: senml(body),
        "line-protocol": lambda: lines(body),
        "json": lambda: objects(body, gateway),
        "json-batch": lambda: objects(body, gateway),
        "json-device": lambda: devices(body, gateway),
        "template": lambda: thingsboard(body, gateway),
    }[asked["form"]]()
    print(json.dumps({"readings": readings, "plain_bytes": len(body)}), flush=True)
