"""A Modbus server by pymodbus, on TCP or on a serial port.

The first line of standard input is a JSON object: unit id -> list of cells
{"table", "address", "type", "order"?, "value"} with the types and orders of the gateway's configuration, packed here
by `struct`, so that nothing is shared with the code under test. Addresses that no cell covers are refused with
exception 2, unless "fill" is true. Unit ids that are not in it are silent. It says `ready` when it serves, and
`wrote <unit> <hex of the PDU>` for each request to write that arrives.
"""

import argparse
import asyncio
import json
import struct
import sys

from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

ask = argparse.ArgumentParser()
ask.add_argument("--tcp", type=int)
ask.add_argument("--serial")
ask.add_argument("--framer", choices=["socket", "rtu", "ascii"], default="socket")
asked = ask.parse_args()

FORMATS = {"u16": ">H", "i16": ">h", "u32": ">I", "i32": ">i", "u64": ">Q", "i64": ">q", "f32": ">f", "f64": ">d"}


def registers(cell):
    """The registers of a cell, most significant word first, then in the order that it asks for."""
    value, kind = cell["value"], cell["type"]
    if kind == "raw":
        return value
    if kind == "string":
        data = value.encode()
        data += b"\0" * (cell["registers"] * 2 - len(data))
    else:
        data = struct.pack(FORMATS[kind], float(value) if kind[0] == "f" else int(value))
    words = [data[place : place + 2] for place in range(0, len(data), 2)]
    order = cell.get("order", "abcd")
    if order in ("cdab", "dcba"):
        words.reverse()
    if order in ("badc", "dcba"):
        words = [word[::-1] for word in words]
    return [int.from_bytes(word, "big") for word in words]


def device(unit, spec):
    tables = {"coil": {}, "discrete": {}, "holding": {}, "input": {}}
    for cell in spec["cells"]:
        table = tables[cell["table"]]
        values = [cell["value"]] if cell["table"] in ("coil", "discrete") else registers(cell)
        for offset, value in enumerate(values):
            table[cell["address"] + offset] = value
    blocks = []
    for name, table in tables.items():
        is_bits = name in ("coil", "discrete")
        kind = DataType.BITS if is_bits else DataType.REGISTERS
        if spec.get("fill") or not table:
            last = max(table, default=0)
            table = {place: table.get(place, False if is_bits else 0) for place in range(last + 1)}
        blocks.append([SimData(place, values=[value], datatype=kind) for place, value in sorted(table.items())])
    return SimDevice(int(unit), simdata=tuple(blocks))


async def serve():
    spec = json.loads(sys.stdin.readline())
    devices = [device(unit, cells) for unit, cells in spec.items()]
    # pymodbus answers for units that it does not have (exception 4, with a trace); a dead unit says nothing. So all
    # others are one device, whose answers are held back.
    devices.append(device(0, {"cells": []}))
    is_tcp_framing = asked.tcp is not None and asked.framer == "socket"
    place_of_unit = 6 if is_tcp_framing else 0

    def only_living_units(is_sending, packet):
        if asked.framer == "ascii":
            # Unit, PDU and LRC in letters, between a colon and CR LF. Here are no dead units.
            whole = bytes.fromhex(packet.strip()[1:].decode()) if packet.endswith(b"\n") else b""
            if not is_sending and whole[1:2] and whole[1] in (5, 6, 15, 16, 22, 23):
                print(f"wrote {whole[0]} {whole[1:-1].hex()}", flush=True)
            return packet
        pdu = packet[7:] if is_tcp_framing else packet[1:-2]
        if not is_sending and pdu and pdu[0] in (5, 6, 15, 16, 22, 23):
            print(f"wrote {packet[place_of_unit]} {pdu.hex()}", flush=True)
        if is_sending and str(packet[place_of_unit]) not in spec:
            return b""
        return packet

    if asked.tcp is not None:
        server = ModbusTcpServer(
            devices,
            framer=FramerType.SOCKET if is_tcp_framing else FramerType.RTU,
            address=("127.0.0.1", asked.tcp),
            trace_packet=only_living_units,
        )
    else:
        server = ModbusSerialServer(
            devices,
            framer=FramerType.ASCII if asked.framer == "ascii" else FramerType.RTU,
            port=asked.serial,
            baudrate=19200,
            trace_packet=only_living_units,
        )
    await server.serve_forever(background=True)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(serve())
