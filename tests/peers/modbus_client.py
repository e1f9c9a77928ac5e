"""Asks a Modbus TCP server as fast as pymodbus can: modbus_client.py PORT REGISTERS SECONDS

Prints how many answers it had, the seconds that passed and the processor time that they took.
"""

import sys
import time

from pymodbus.client import ModbusTcpClient

port, registers, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
client = ModbusTcpClient("127.0.0.1", port=port)
if not client.connect():
    sys.exit("cannot connect")
count, cpu, began = 0, time.process_time(), time.monotonic()
while time.monotonic() < began + seconds:
    answer = client.read_holding_registers(0, count=registers, device_id=1)
    if answer.isError() or len(answer.registers) != registers:
        sys.exit(f"no answer: {answer}")
    count += 1
print(count, time.monotonic() - began, time.process_time() - cpu)
