"""Prints every result of a tenant: python subscribe_paho.py HOST:PORT TENANT."""

import sys

import msgpack
import paho.mqtt.client as mqtt

address, tenant = sys.argv[1:]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.on_connect = lambda *_: client.subscribe(f"er/1/t/{tenant}/jobs/+/results", qos=1)
client.on_message = lambda _client, _data, m: print(m.topic, msgpack.unpackb(m.payload), flush=True)
client.connect(address.split(":")[0], int(address.split(":")[1]))
client.loop_forever()
