"""A broker that lets in by SCRAM alone, on Python's hashlib and hmac, and that cheats when told to.

scram_broker.py HASH USER PASSWORD MODE     HASH is sha256 or sha512

It says the port that it has, then a line of JSON for each packet that comes: its name, and the topic of a PUBLISH.

honest        RFC 5802, strictly: what is not as it must be is refused with 0x87
early         the same, but its proof comes in an AUTH before CONNACK (MQTT 5.0, 4.12 allows both)
open          lets everybody in at once, without a question
silent        asks, and lets everybody in without a proof of its own
stranger      asks, takes any answer, and proves itself with another password
echo          asks, and sends the gateway's own proof back as its own
denies        asks, and says e=invalid-proof in the last word, though it lets the gateway in
weak          asks for one round of hashing
heavy         asks for four thousand million rounds
extension     asks for an extension that must be understood
other         answers another login than this one
long          asks with 60,000 bytes
babble        sends an AUTH after the other, without an end
"""

import base64
import hashlib
import hmac
import json
import os
import socketserver
import struct
import sys
import threading

HASH, USER, PASSWORD, MODE = sys.argv[1:5]
METHOD = {"sha256": "SCRAM-SHA-256", "sha512": "SCRAM-SHA-512"}[HASH]
ITERATIONS = 4096
SALT = os.urandom(16)
NAMES = {1: "CONNECT", 3: "PUBLISH", 8: "SUBSCRIBE", 12: "PINGREQ", 14: "DISCONNECT", 15: "AUTH"}
PRINTING = threading.Lock()


def say(what):
    with PRINTING:
        print(json.dumps(what), flush=True)


def mac(key, text):
    return hmac.new(key, text, HASH).digest()


def varint(number):
    out = b""
    while True:
        number, byte = divmod(number, 128)
        out += bytes([byte | (128 if number else 0)])
        if not number:
            return out


def packet(kind, body):
    return bytes([kind]) + varint(len(body)) + body


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(value)) + value


def properties(data):
    out = b"\x15" + text(METHOD)
    if data is not None:
        out += b"\x16" + text(data)
    return varint(len(out)) + out


def auth(data):
    return packet(0xF0, b"\x18" + properties(data))


def connack(reason, data=None):
    return packet(0x20, bytes([0, reason]) + (properties(data) if reason == 0 else b"\x00"))


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def varint(self):
        value, shift = 0, 0
        while True:
            byte = self.number(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def text(self):
        return self.take(self.number(2))

    def properties(self):
        """Method and data; what else may stand in CONNECT and AUTH is passed over."""
        end, found = self.varint(), {}
        end += self.at
        while self.at < end:
            kind = self.number(1)
            if kind in (0x15, 0x16, 0x1F):
                found[kind] = self.text()
            elif kind == 0x26:
                self.text(), self.text()
            else:
                self.take({0x11: 4, 0x27: 4, 0x21: 2, 0x22: 2, 0x17: 1, 0x19: 1}[kind])
        return found.get(0x15, b"").decode(), found.get(0x16)


def escaped(name):
    return name.replace("=", "=3D").replace(",", "=2C")


class Client(socketserver.BaseRequestHandler):
    def whole(self, count):
        data = b""
        while len(data) < count:
            more = self.request.recv(count - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def packet(self):
        first = self.whole(1)[0]
        length, shift = 0, 0
        while True:
            byte = self.whole(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        reader = Reader(self.whole(length))
        kind = first >> 4
        told = {"packet": NAMES.get(kind, kind)}
        if kind == 3:
            told["topic"] = reader.text().decode()
            reader.at = 0
        say(told)
        return first, reader

    def login(self):
        """Whether the client is in."""
        _, connect = self.packet()
        connect.take(7 + 1 + 2)
        method, first = connect.properties()
        if MODE == "open":
            return self.send(connack(0))
        if method != METHOD or first is None:
            return self.refuse(0x8C)
        # "n,," and then n=,r= and nothing else.
        header, bare = first[:3].decode(), first[3:].decode()
        name, nonce = bare.split(",", 1)
        if header != "n,," or not nonce.startswith("r=") or len(nonce) < 18 or "," in nonce:
            return self.refuse(0x87)
        if MODE in ("honest", "early") and name != "n=" + escaped(USER):
            return self.refuse(0x87)
        nonce = nonce[2:] + base64.b64encode(os.urandom(18)).decode()
        shown = "x" + nonce if MODE == "other" else nonce
        rounds = {"weak": 1, "heavy": 4_000_000_000}.get(MODE, ITERATIONS)
        asked = f"r={shown},s={base64.b64encode(SALT).decode()},i={rounds}"
        if MODE == "extension":
            asked = "m=channel," + asked
        if MODE == "long":
            asked += ",x=" + "y" * 60_000
        self.send(auth(asked))
        while MODE == "babble":
            self.send(auth(asked))
        _, answer = self.packet()
        if answer.number(1) != 0x18:
            return self.refuse(0x82)
        method, final = answer.properties()
        without_proof, proof = final.decode().rsplit(",p=", 1)
        password = "another" if MODE == "stranger" else PASSWORD
        salted = hashlib.pbkdf2_hmac(HASH, password.encode(), SALT, ITERATIONS)
        signed = f"{bare},{asked},{without_proof}".encode()
        client_key = mac(salted, b"Client Key")
        stored = hashlib.new(HASH, client_key).digest()
        right = bytes(a ^ b for a, b in zip(client_key, mac(stored, signed)))
        if MODE in ("honest", "early"):
            is_right = hmac.compare_digest(base64.b64decode(proof, validate=True), right)
            if method != METHOD or without_proof != f"c=biws,r={nonce}" or not is_right:
                return self.refuse(0x87)
        last = "v=" + base64.b64encode(mac(mac(salted, b"Server Key"), signed)).decode()
        if MODE == "silent":
            return self.send(connack(0))
        if MODE == "echo":
            last = "v=" + proof
        if MODE == "denies":
            last = "e=invalid-proof"
        if MODE == "early":
            self.send(auth(last))
            self.packet()
            return self.send(connack(0))
        return self.send(connack(0, last))

    def send(self, data):
        self.request.sendall(data)
        return True

    def refuse(self, reason):
        self.send(connack(reason))
        return False

    def handle(self):
        try:
            if not self.login():
                return
            say({"in": True})
            while True:
                first, body = self.packet()
                if first >> 4 == 3 and first & 6:
                    body.text()
                    self.send(packet(0x40, body.take(2)))
                elif first >> 4 == 8:
                    self.send(packet(0x90, body.take(2) + b"\x00\x01"))
                elif first >> 4 == 12:
                    self.send(packet(0xD0, b""))
        except (ConnectionError, OSError):
            pass
        finally:
            say({"gone": True})


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


with Server(("127.0.0.1", 0), Client) as server:
    say({"port": server.server_address[1]})
    server.serve_forever()
