"""The bare half of `bus_efficiency`: answers every request with its own payload. Own process."""

import asyncio
import socket
import sys

import aiomqtt

REQUESTS = "bare/request"
ANSWERS = "bare/answer"
_NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
_WINDOW = 1_000


def bare_client(port: int) -> aiomqtt.Client:
    """An aiomqtt client as quick as it gets.

    Without TCP_NODELAY every round trip takes 88 ms, and with paho's window of 20 messages in
    flight 64 requests are not: either would be no comparison.
    """
    client = aiomqtt.Client(
        "127.0.0.1", port, socket_options=_NO_DELAY, max_inflight_messages=_WINDOW
    )
    client.pending_calls_threshold = _WINDOW
    return client


async def main(port: int) -> None:
    """Answer until killed."""
    async with bare_client(port) as client:
        await client.subscribe(REQUESTS, qos=1)
        await client.publish(ANSWERS, b"up", qos=1, retain=True)
        async for message in client.messages:
            await client.publish(ANSWERS, message.payload, qos=1)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
