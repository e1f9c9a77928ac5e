"""How a peer reaches the broker: TCP, TLS, WebSocket or a Unix socket, as its arguments say."""

import ssl


def add_arguments(ask):
    ask.add_argument("--port", type=int, default=0)
    ask.add_argument("--unix", help="path of a Unix socket, instead of a port")
    ask.add_argument("--websocket", action="store_true")
    ask.add_argument("--cafile")
    ask.add_argument("--cert")
    ask.add_argument("--key")


def transport(asked):
    return "unix" if asked.unix else "websockets" if asked.websocket else "tcp"


def prepare(client, asked):
    """Sets up TLS; gives back what `connect` is to be called with."""
    if asked.cafile:
        client.tls_set(ca_certs=asked.cafile, certfile=asked.cert, keyfile=asked.key, tls_version=ssl.PROTOCOL_TLS_CLIENT)
    return (asked.unix, 1) if asked.unix else ("127.0.0.1", asked.port)
