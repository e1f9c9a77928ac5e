"""Judges TOML files by a JSON Schema: for each file its name, a tab, and its faults as a line of JSON.

    schema.py SCHEMA FILE…
"""

import json
import sys
import tomllib

from jsonschema import Draft202012Validator

with open(sys.argv[1], "rb") as file:
    schema = json.load(file)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for path in sys.argv[2:]:
    with open(path, "rb") as file:
        document = tomllib.load(file)
    faults = [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in validator.iter_errors(document)]
    print(path, json.dumps(faults), sep="\t", flush=True)
