import sys
import paho.mqtt.subscribe as subscribe

def on_message(client, userdata, message):
    print(message.topic, message.payload.decode(), flush=True)

subscribe.callback(on_message, "plant/#", qos=1, hostname="127.0.0.1", port=int(sys.argv[1]))
