"""Says what Azure's own library says as a device: one message with properties, and the answer to one direct method.

Arguments: port, ca, device, its key in base64, id of the message, its text, its property "topic".
Prints the user name, the password, "ready" when it waits for a method, and "done".
"""

import sys

import paho.mqtt.client as paho
from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse

port, ca, device, key, message_id, text, topic = sys.argv[1:]

connect, log_in = paho.Client.connect, paho.Client.username_pw_set


def connect_to_port(self, *words, **named):
    named["port"] = int(port)
    return connect(self, *words, **named)


def show_login(self, username, password=None):
    print("username", username, flush=True)
    print("password", password, flush=True)
    return log_in(self, username, password)


paho.Client.connect, paho.Client.username_pw_set = connect_to_port, show_login
client = IoTHubDeviceClient.create_from_connection_string(
    f"HostName=localhost;DeviceId={device};SharedAccessKey={key}", server_verification_cert=open(ca).read())
client.connect()
message = Message(text, message_id=message_id, content_encoding="utf-8", content_type="application/json")
message.custom_properties["topic"] = topic
client.send_message(message)


def answer(request):
    client.send_method_response(MethodResponse.create_from_method_request(request, 200, {"ok": True}))
    print("answered", flush=True)


client.on_method_request_received = answer
print("ready", flush=True)
sys.stdin.readline()
client.shutdown()
print("done", flush=True)
