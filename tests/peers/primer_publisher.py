import sys
import paho.mqtt.publish as publish

for number in range(5):
    publish.single("plant/primer", f"{number}", qos=1, hostname="127.0.0.1", port=int(sys.argv[1]))
