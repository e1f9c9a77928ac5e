"""A server that takes messages by HTTP, with the standard library alone, and says what came: one JSON object a line.

`--plan` is a JSON list of what it answers to the first requests: [status, {header: value}], or "close" to break off
without an answer; after that 200, but 400 for a body that has `--refuse` in it. It checks what the gateway cannot: the
signature of the body, and that a batch that comes again under one idempotency key is the same.
"""

import argparse
import gzip
import hashlib
import hmac
import http.server
import json
import ssl
import sys
import time

ask = argparse.ArgumentParser()
ask.add_argument("--port", type=int, required=True)
ask.add_argument("--plan", default="[]")
ask.add_argument("--refuse")
ask.add_argument("--hmac-key")
ask.add_argument("--tls", nargs=3, metavar=("CERT", "KEY", "CLIENT_CA"))
asked = ask.parse_args()
plan = json.loads(asked.plan)
seen = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
        text = body.decode("utf-8")
        if asked.hmac_key:
            expected = "sha256=" + hmac.new(asked.hmac_key.encode(), raw, hashlib.sha256).hexdigest()
            assert self.headers["X-Signature-256"] == expected, "the signature is wrong"
        key = self.headers["Idempotency-Key"]
        assert seen.setdefault(key, raw) == raw, "another body under one key"
        answer = plan.pop(0) if plan else [400 if asked.refuse and asked.refuse in text else 200, {}]
        status = 0 if answer == "close" else answer[0]
        peer = self.connection.getpeercert() if asked.tls else None
        print(json.dumps({"at": time.monotonic(), "path": self.path, "key": key, "body": text, "status": status,
                          "authorization": self.headers.get("Authorization"), "type": self.headers["Content-Type"],
                          "topic": self.headers.get("Tidegate-Topic"), "tenant": self.headers.get("X-Tenant"),
                          "peer": dict(pair[0] for pair in peer["subject"]) if peer else None}), flush=True)
        if answer == "close":
            self.close_connection = True
            return
        self.send_response(answer[0])
        for name, value in answer[1].items():
            self.send_header(name, value)
        word = b'{"error": "said the server"}' if answer[0] >= 300 else b""
        self.send_header("Content-Length", str(len(word)))
        self.end_headers()
        self.wfile.write(word)

    def log_message(self, *words):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, address):
        error = sys.exc_info()[1]
        if isinstance(error, AssertionError):
            print(json.dumps({"fault": str(error)}), flush=True)


server = Server(("127.0.0.1", asked.port), Handler)
if asked.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(asked.tls[0], asked.tls[1])
    context.load_verify_locations(asked.tls[2])
    context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(json.dumps({"event": "serving"}), flush=True)
server.serve_forever()
