"""Says what Azure's own library says of a device's twin: asks for it, and reports properties.

Arguments: port, ca, device, its key in base64, the properties as JSON. Prints the twin that it got, and what is desired next.
"""

import json
import sys

import paho.mqtt.client as paho
from azure.iot.device import IoTHubDeviceClient

port, ca, device, key, properties = sys.argv[1:]
connect = paho.Client.connect


def connect_to_port(self, *words, **named):
    named["port"] = int(port)
    return connect(self, *words, **named)


paho.Client.connect = connect_to_port
client = IoTHubDeviceClient.create_from_connection_string(
    f"HostName=localhost;DeviceId={device};SharedAccessKey={key}", server_verification_cert=open(ca).read())
client.connect()
client.on_twin_desired_properties_patch_received = lambda patch: print(json.dumps(patch), flush=True)
print(json.dumps(client.get_twin()), flush=True)
client.patch_twin_reported_properties(json.loads(properties))
print("reported", flush=True)
sys.stdin.readline()
client.shutdown()
