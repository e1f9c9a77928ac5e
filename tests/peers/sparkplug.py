"""How large the same readings are in Sparkplug B: written by Google's protobuf with the fields of its specification.

Standard input: a JSON list of {"name", "value", "ms", "seq"}; standard output: {"poll", "full_count"}: the bytes of a DDATA
message that holds the readings of one device and moment, on average for a reading, and how many readings fit into one of
5120 bytes. Metrics bear their alias, no name, as after a birth certificate; each has its own time and type.
"""

import json
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Field = descriptor_pb2.FieldDescriptorProto
file = descriptor_pb2.FileDescriptorProto(name="sparkplug_b.proto", package="sparkplug", syntax="proto2")
metric = file.message_type.add(name="Metric")
for name, number, kind in [("alias", 2, Field.TYPE_UINT64), ("timestamp", 3, Field.TYPE_UINT64),
                           ("datatype", 4, Field.TYPE_UINT32), ("int_value", 10, Field.TYPE_UINT32),
                           ("float_value", 12, Field.TYPE_FLOAT), ("double_value", 13, Field.TYPE_DOUBLE)]:
    metric.field.add(name=name, number=number, type=kind, label=Field.LABEL_OPTIONAL)
payload = file.message_type.add(name="Payload")
payload.field.add(name="timestamp", number=1, type=Field.TYPE_UINT64, label=Field.LABEL_OPTIONAL)
payload.field.add(name="metrics", number=2, type=Field.TYPE_MESSAGE, type_name=".sparkplug.Metric", label=Field.LABEL_REPEATED)
payload.field.add(name="seq", number=3, type=Field.TYPE_UINT64, label=Field.LABEL_OPTIONAL)
pool = descriptor_pool.DescriptorPool()
pool.Add(file)
Payload = message_factory.GetMessageClass(pool.FindMessageTypeByName("sparkplug.Payload"))

readings = json.load(sys.stdin)
aliases = {}


def written(some, seq):
    whole = Payload(timestamp=some[0]["ms"], seq=seq % 256)
    for one in some:
        alias = aliases.setdefault(one["name"], len(aliases) + 1)
        # The demo's meters: Float (9) and UInt32 (7).
        if isinstance(one["value"], int):
            whole.metrics.add(alias=alias, timestamp=one["ms"], datatype=7, int_value=one["value"])
        else:
            whole.metrics.add(alias=alias, timestamp=one["ms"], datatype=9, float_value=one["value"])
    return len(whole.SerializeToString())


polls = {}
for one in readings:
    polls.setdefault((one["name"].rsplit("/", 1)[0], one["ms"]), []).append(one)
bytes_of_polls = sum(written(poll, number) for number, poll in enumerate(polls.values()))
count = 1
while count < len(readings) and written(readings[: count + 1], 0) <= 5120:
    count += 1
print(json.dumps({"of_a_poll": len(readings) / len(polls), "poll": bytes_of_polls / len(readings), "full_count": count}))
