"""Reads /metrics as Prometheus does, with its own client's parser: prints each sample as a line of JSON."""

import json
import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

with urllib.request.urlopen(sys.argv[1], timeout=20) as answer:
    kind = answer.headers["content-type"]
    text = answer.read().decode()
assert kind.startswith("application/openmetrics-text"), kind
for family in text_string_to_metric_families(text):
    for sample in family.samples:
        print(json.dumps({"family": family.name, "kind": family.type, "name": sample.name, "labels": sample.labels, "value": sample.value}))
