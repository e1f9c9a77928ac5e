"""Stands in for the journal. `journal.py OUT PROGRAM …`, in a mount namespace of its own, as root.

Takes the place of the journal's socket, runs the program with its standard error connected to "the journal", and writes
each record that comes as one JSON object a line to OUT.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import threading

out, command = sys.argv[1], sys.argv[2:]
place = "/run/systemd/journal"
# The whole of /run, so that nothing is made in the real one.
subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
os.makedirs(place)
journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
journal.bind(place + "/socket")


def fields(record):
    """From the journal's native protocol: KEY=value, or KEY, a length of eight bytes, and the value."""
    found = {}
    while record:
        line, _, record = record.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", record[:8])
            value, record = record[8 : 8 + length], record[9 + length :]
        found[key.decode()] = value.decode(errors="replace")
    return found


def listen():
    with open(out, "w") as lines:
        while True:
            print(json.dumps(fields(journal.recv(1 << 20))), file=lines, flush=True)


threading.Thread(target=listen, daemon=True).start()
errors = open(out + ".errors", "w")
status = os.fstat(errors.fileno())
environment = dict(os.environ, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
# It ends with us, and we with the test.
sys.exit(subprocess.run(["setpriv", "--pdeathsig", "KILL", "--"] + command, stderr=errors, env=environment).returncode)
