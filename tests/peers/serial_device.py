"""A device on a serial line, by pyserial: says what its first argument names, until it is ended.

    serial_device.py telegrams PORT    STX, a weight, ETX and the exclusive or of all after STX, up to ETX
    serial_device.py drive PORT        AA 55, length, speed, state, CRC-16/MODBUS; damaged and noisy ones between them
    serial_device.py asked PORT        answers W with a weight in seven bits with even parity, and T with OK
"""

import random
import sys
import time

import serial


def crc16(data):
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return bytes([crc & 0xFF, crc >> 8])


def telegram(weight):
    body = f"{weight:08.2f}".replace(".", ",").encode() + b"\x03"
    check = 0
    for byte in body:
        check ^= byte
    return b"\x02" + body + bytes([check])


def drive(speed, state):
    frame = b"\xaa\x55\x03" + speed.to_bytes(2, "big", signed=True) + bytes([state])
    return frame + crc16(frame)


def in_parts(port, data, chance):
    while data:
        size = chance.randint(1, 7)
        port.write(data[:size])
        port.flush()
        data = data[size:]


def main():
    what, path = sys.argv[1:]
    chance = random.Random(7)
    port = serial.Serial(path, 9600, timeout=1)
    number = 0
    while True:
        if what == "asked":
            question = port.read_until(b"\r")
            if question == b"W\r":
                number += 1
                port.write(f"+{number:6d}.5 kg\r".encode())
            elif question == b"T\r":
                port.write(b"OK\r")
            continue
        number += 1
        if what == "telegrams":
            in_parts(port, telegram(number / 100), chance)
        else:
            whole = drive(-number % 3000 - 1500, number % 16)
            damaged = bytearray(whole)
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            for data in (whole, bytes(damaged), b"\xaa\x55"[: chance.randrange(3)], whole):
                in_parts(port, data, chance)
        time.sleep(0.02)


main()
