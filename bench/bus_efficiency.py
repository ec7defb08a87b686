"""No-op units through the whole system against bare request and response over the same broker.

The system: one-item jobs through `submit_many`, so every unit has one item; the car takes 64 units
at a time, which is what is in flight. It is durable on both sides (dispatcher: SQLite with
synchronous=FULL; car: its journal). Bare: aiomqtt with TCP_NODELAY on both ends, QoS 1, 64
requests outstanding, the responder in a process of its own. Both in one run, in turns, on the
same broker.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from _responder import ANSWERS, REQUESTS, bare_client
from _rig import TENANT, Load, Process, Rig, figure, median, say
from burst import burst, warm_up

from edge_runtime.client import EdgeClient

ROUNDS: Final = 5
IN_FLIGHT: Final = 64
REQUESTS_A_ROUND: Final = 3_000
TIMEOUT_S: Final = 60.0


async def bare(port: int) -> float:
    """Requests per second with `IN_FLIGHT` outstanding."""
    numbers = iter(range(REQUESTS_A_ROUND))
    answers: dict[bytes, asyncio.Future[None]] = {}
    async with bare_client(port) as client:
        await client.subscribe(ANSWERS, qos=1)
        await anext(client.messages)  # the responder's retained word that it is up

        async def read() -> None:
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                answers.pop(message.payload).set_result(None)

        async def ask() -> None:
            for number in numbers:
                payload = b"%d" % number
                answers[payload] = asyncio.get_running_loop().create_future()
                answer = answers[payload]
                await client.publish(REQUESTS, payload, qos=1)
                await answer

        reader = asyncio.create_task(read())
        started_s = time.perf_counter()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
        elapsed_s = time.perf_counter() - started_s
        reader.cancel()
        await asyncio.wait([reader])
    return REQUESTS_A_ROUND / elapsed_s


async def measure(rig: Rig, responder: Process) -> tuple[list[float], list[float]]:
    """Rates of each round: the system's units, bare requests."""
    port = urlsplit(rig.broker_url).port
    assert port is not None
    system_rates, bare_rates = [], []
    async with EdgeClient(rig.url, TENANT) as client:
        await warm_up(client)
        for _ in range(ROUNDS):
            responder.check()
            bare_rates.append(await bare(port))
            system_rates.append(await burst(client))
            say(f"system: {system_rates[-1]:.0f} units/s; bare: {bare_rates[-1]:.0f} requests/s")
    return system_rates, bare_rates


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher()
        rig.start_car(units_max=IN_FLIGHT)
        script = str(Path(__file__).parent / "_responder.py")
        port = str(urlsplit(rig.broker_url).port)
        responder = rig.process("responder", [sys.executable, script, port])
        rig.await_ready_car()
        with Load() as load:
            system_rates, bare_rates = asyncio.run(measure(rig, responder))
    ratios = [s / b for s, b in zip(system_rates, bare_rates, strict=True)]
    figure(
        "bus_efficiency",
        median(ratios),
        "ratio",
        ">= 0.5",
        shared=(
            f"2 cores: {rig.broker_kind} and, in turns, dispatcher + car + engine + requester,"
            " or responder + requester"
        ),
        digits=3,
        system_units_per_s=round(median(system_rates)),
        bare_requests_per_s=round(median(bare_rates)),
        rounds=[round(ratio, 2) for ratio in ratios],
        in_flight=IN_FLIGHT,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
