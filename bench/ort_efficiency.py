"""Items per second of one car through broker, dispatcher and store, against bare `session.run`.

The same 5 ms model with the same session options on the same core, in turns; the engine (and the
bare loop) alone on core 0, everything else (broker, dispatcher, the car's own process, the
requester) on core 1. The system's clock runs from the submission to the last result.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from _rig import SYNTHETIC, TENANT, Load, Rig, figure, median, say, tensor_item

from edge_runtime.client import EdgeClient
from edge_runtime.contract.http import ItemInput

ENGINE_CPU: Final = 0
SERVICES_CPU: Final = 1
ROUNDS: Final = 4
ITEMS: Final = 2_000
WIDTH: Final = 256
WARM_UP_ITEMS: Final = 64
TIMEOUT_S: Final = 120.0


@contextmanager
def bare_session() -> Iterator["subprocess.Popen[str]"]:
    """The bare loop, on the engine's processor."""
    script = Path(__file__).parent / "_bare_session.py"
    model = SYNTHETIC / "mlp5ms" / "model.onnx"
    argv = ["taskset", "-c", str(ENGINE_CPU), sys.executable, str(script), str(model), str(WIDTH)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=10)


def bare(process: "subprocess.Popen[str]", count: int) -> float:
    """Runs per second of the bare loop."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    return count / float(process.stdout.readline())


async def through_system(client: EdgeClient, count: int) -> float:
    """Items per second of one job, submission to last result."""
    items = [ItemInput(data=tensor_item(*([1.0] * WIDTH), shape=(1, WIDTH)))] * count
    started_s = time.perf_counter()
    got = 0
    async with asyncio.timeout(TIMEOUT_S):
        async for result in client.submit("mlp5ms", items):
            assert result.ok, result
            got += 1
    assert got == count
    return count / (time.perf_counter() - started_s)


async def measure(rig: Rig, session: "subprocess.Popen[str]") -> tuple[list[float], list[float]]:
    """Rates of each round: the system's, the bare loop's."""
    system_rates, bare_rates = [], []
    async with EdgeClient(rig.url, TENANT) as client:
        await through_system(client, WARM_UP_ITEMS)
        await asyncio.to_thread(bare, session, WARM_UP_ITEMS)
        await through_system(client, WARM_UP_ITEMS)
        for _ in range(ROUNDS):
            bare_rates.append(await asyncio.to_thread(bare, session, ITEMS))
            system_rates.append(await through_system(client, ITEMS))
            say(f"system: {system_rates[-1]:.1f} items/s; bare: {bare_rates[-1]:.1f} runs/s")
    return system_rates, bare_rates


def main() -> None:
    """Measure and print."""
    os.sched_setaffinity(0, {SERVICES_CPU})
    with Rig(service_cpus=[SERVICES_CPU]) as rig, bare_session() as session:
        rig.start_broker()
        rig.start_dispatcher()
        rig.start_car(options=[f"--engine-cpus={ENGINE_CPU}"])
        rig.await_ready_car()
        with Load() as load:
            system_rates, bare_rates = asyncio.run(measure(rig, session))
    ratio = median(system_rates) / median(bare_rates)
    figure(
        "ort_efficiency",
        ratio,
        "ratio",
        ">= 0.97",
        shared=(
            f"core 0: the engine, or the bare loop, in turns; core 1: {rig.broker_kind},"
            " dispatcher, the car's process, the requester"
        ),
        digits=4,
        system_items_per_s=round(median(system_rates), 1),
        bare_runs_per_s=round(median(bare_rates), 1),
        best_of_each=round(max(system_rates) / max(bare_rates), 4),
        rounds=[round(s / b, 3) for s, b in zip(system_rates, bare_rates, strict=True)],
        **load.facts(),
    )


if __name__ == "__main__":
    main()
