"""Says what Azure's own library says to the provisioning service, until a hub is assigned.

Arguments: port, ca, id scope, registration id, its key in base64.
"""

import os
import sys

port, ca, scope, registration_id, key = sys.argv[1:]
os.environ["SSL_CERT_FILE"] = ca

import paho.mqtt.client as paho  # noqa: E402
from azure.iot.device import ProvisioningDeviceClient  # noqa: E402

connect = paho.Client.connect


def connect_to_port(self, *words, **named):
    named["port"] = int(port)
    return connect(self, *words, **named)


paho.Client.connect = connect_to_port
client = ProvisioningDeviceClient.create_from_symmetric_key(
    provisioning_host="localhost", registration_id=registration_id, id_scope=scope, symmetric_key=key)
state = client.register()
hub = state.registration_state
print(state.status, hub.assigned_hub, hub.device_id)
