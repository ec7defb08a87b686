"""A process with a bus that has a Will, for tests that kill it.

`python bus_client.py ADAPTER URL CLIENT_ID PROTOCOL WILL_TOPIC` prints "up" once connected and
stays until it is killed; with a line on its standard input it closes cleanly.
"""

import asyncio
import sys

from edge_runtime.bus import BusSettings, Connected, Message, open_bus


async def main() -> None:
    adapter, url, client_id, protocol, will_topic = sys.argv[1:]
    settings = BusSettings(
        url,
        client_id,
        protocol=int(protocol),
        will=Message(will_topic, b"gone", qos=1, retain=True),
    )
    async with open_bus(settings, fast=adapter == "mqttium") as bus:
        async for event in bus.events():
            if isinstance(event, Connected):
                sys.stdout.write("up\n")
                sys.stdout.flush()
                break
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


if __name__ == "__main__":
    asyncio.run(main())
