"""A disk that remembers: every write and flush that reaches it, and what others say meanwhile, in one total order.

A raw FUSE server, without a library, that shows two files:

  disk     the bytes of a disk: put a loop device on it, and a file system on that
  events   each write to it is one event, for example "acknowledged 17"; never cached

One thread answers everything, so block writes, flushes and events are in one order. A flush takes `--flush-ms`, as on a
real disk, and is recorded when it ends; it covers what was written before it was asked for. Whatever is said while the
flush runs is therefore recorded before it: an acknowledgement that does not wait for its flush is seen to be early.

On standard input `dump FILE` writes the log to a file and ends the record; the disk goes on working, so that it can be
unmounted in peace. `fail COUNT TEXT` fails so many of the next writes that have the text in them, which leaves what was
there before; each is an event `failed`. A write is failed from its first byte or not at all: the file system cuts one of
several pages at a page, and where a later part fails the loop device of Linux 6.18 takes what was written for all of it
and reports a success, as no disk does. Says `ready`, `dumped` and `failing`. Ends with its standard input.

The log file: for each record its kind (1 byte), a number (u64) and a length (u32), little endian, then that many bytes.
  w  a write: where, and what        f  a flush has ended: how many records it covers        e  an event
"""

import argparse
import ctypes
import errno
import os
import select
import stat
import struct
import sys
import time

ask = argparse.ArgumentParser()
ask.add_argument("--image", required=True, help="the first content of the disk")
ask.add_argument("--at", required=True, help="the directory to mount on")
ask.add_argument("--flush-ms", type=float, default=2.0)
asked = ask.parse_args()

ROOT, DISK, EVENTS = 1, 2, 3
NAMES = {b"disk": DISK, b"events": EVENTS}
WRITE_MAX = 1 << 20
PAGE = 4096
DIRECT_IO = 1
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22

with open(asked.image, "rb") as image:
    disk = bytearray(image.read())
log = []
is_recording = True
# Flushes under way: when they end, whom to answer, what they cover.
flushes = []
# How many writes to fail, and what marks them: a failed write of the file system's own journal would end it.
failing = [0, b""]
# Where the last write to the disk ended.
last_end = 0

fuse = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
if libc.mount(b"tidegate-log-disk", asked.at.encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit(f"cannot mount a FUSE file system on {asked.at}: {os.strerror(ctypes.get_errno())}")


def answer(unique, body=b"", error=0):
    try:
        os.write(fuse, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
    except OSError as problem:
        # The one who asked was killed meanwhile.
        if problem.errno != errno.ENOENT:
            raise


def attributes(node):
    size = len(disk) if node == DISK else 0
    mode, links = (stat.S_IFDIR | 0o700, 2) if node == ROOT else (stat.S_IFREG | 0o600, 1)
    times = [0] * 6
    return struct.pack("<6Q10I", node, size, (size + 511) // 512, 0, 0, 0, *times[:3], mode, links, 0, 0, 0, 4096, 0)


def record(kind, number, data):
    if is_recording:
        log.append((kind, number, data))


def is_later_part(offset):
    return offset == last_end and offset % PAGE == 0


def serve(request):
    global last_end
    length, opcode, unique, node = struct.unpack_from("<IIQQ", request)
    body = memoryview(request)[40:length]
    if opcode == 26:  # INIT
        flags = struct.unpack_from("<I", body, 12)[0] & (BIG_WRITES | MAX_PAGES)
        answer(unique, struct.pack("<4I2HII2H32x", 7, 31, 0, flags, 16, 12, WRITE_MAX, 1, WRITE_MAX // 4096, 0))
    elif opcode == 1:  # LOOKUP
        found = NAMES.get(bytes(body).rstrip(b"\0"))
        if found is None:
            answer(unique, error=errno.ENOENT)
        else:
            answer(unique, struct.pack("<4Q2I", found, 0, 3600, 3600, 0, 0) + attributes(found))
    elif opcode in (3, 4):  # GETATTR, SETATTR
        answer(unique, struct.pack("<Q2I", 3600, 0, 0) + attributes(node))
    elif opcode in (14, 27):  # OPEN, OPENDIR
        answer(unique, struct.pack("<QII", 0, DIRECT_IO if node == EVENTS else 0, 0))
    elif opcode == 15:  # READ
        _, offset, size = struct.unpack_from("<QQI", body)
        answer(unique, bytes(disk[offset : offset + size]) if node == DISK else b"")
    elif opcode == 16:  # WRITE
        _, offset, size = struct.unpack_from("<QQI", body)
        data = bytes(body[40 : 40 + size])
        if node == DISK and failing[0] > 0 and failing[1] in data and not is_later_part(offset):
            failing[0] -= 1
            record(b"e", 0, b"failed")
            answer(unique, error=errno.EIO)
            return
        if node == DISK:
            last_end = offset + size
            disk[offset : offset + size] = data
            record(b"w", offset, data)
        else:
            record(b"e", 0, data)
        answer(unique, struct.pack("<II", size, 0))
    elif opcode == 17:  # STATFS
        answer(unique, struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0))
    elif opcode == 20:  # FSYNC
        flushes.append((time.monotonic() + asked.flush_ms / 1000, unique, len(log)))
    elif opcode in (18, 25, 29):  # RELEASE, FLUSH, RELEASEDIR
        answer(unique)
    elif opcode in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
        pass
    else:
        answer(unique, error=errno.ENOSYS)


def end_flushes():
    """Ends what has lasted long enough; says for how long to wait for the next one."""
    while flushes:
        left = flushes[0][0] - time.monotonic()
        if left > 0:
            return left * 1000
        _, unique, covers = flushes.pop(0)
        record(b"f", covers, b"")
        answer(unique)
    return None


def dump(path):
    global is_recording
    is_recording = False
    with open(path, "wb") as file:
        for kind, number, data in log:
            file.write(struct.pack("<cQI", kind, number, len(data)) + data)
    print("dumped", flush=True)


poll = select.poll()
poll.register(fuse, select.POLLIN)
poll.register(sys.stdin.fileno(), select.POLLIN)
print("ready", flush=True)
while True:
    ready = dict(poll.poll(end_flushes()))
    if fuse in ready:
        try:
            serve(os.read(fuse, WRITE_MAX + 8192))
        except OSError as problem:
            if problem.errno == errno.ENODEV:
                # Unmounted.
                poll.unregister(fuse)
            elif problem.errno not in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                raise
    elif sys.stdin.fileno() in ready:
        words = os.read(sys.stdin.fileno(), 4096).decode().split()
        if not words:
            break
        if words[0] == "dump":
            dump(words[1])
        else:
            failing[:] = int(words[1]), words[2].encode()
            print("failing", flush=True)
