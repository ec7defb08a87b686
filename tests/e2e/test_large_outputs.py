"""A large output through real processes, and a car that is killed while it hands it over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from brokers import free_port
from fill_model import count, filled, write_fill
from services import four_processes

from edge_runtime.client import EdgeClient
from edge_runtime.contract.reasons import JobState
from edge_runtime.contract.tensors import Tensor

VALUES = 2_000_000
LARGE = filled(VALUES)
HELD_AFTER_BYTES = 5_000_000
WAIT_S = 90.0


@dataclass
class Gate:
    """A way to the dispatcher on which no more than some bytes go, until it is opened."""

    target: int
    sent_bytes: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    is_holding: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target)
        back = asyncio.create_task(_copy(up_reader, writer))
        try:
            while data := await reader.read(65_536):
                self.sent_bytes += len(data)
                up_writer.write(data)
                await up_writer.drain()
                if self.sent_bytes >= HELD_AFTER_BYTES and not self.is_open.is_set():
                    self.is_holding.set()
                    # Whoever is killed meanwhile has hung up when this goes on.
                    await self.is_open.wait()
        except ConnectionError:
            pass  # the car was killed: what it had sent is over there
        finally:
            up_writer.close()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def gate_to(target: int, port: int) -> AsyncIterator[Gate]:
    gate = Gate(target)
    server = await asyncio.start_server(gate.pass_on, "127.0.0.1", port)
    try:
        yield gate
    finally:
        gate.is_open.set()
        server.close()
        await server.wait_closed()


@pytest.mark.timeout(2 * WAIT_S)
async def test_a_car_that_is_killed_while_it_hands_over_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    models = tmp_path / "models"
    write_fill(models)
    port = free_port()
    with four_processes(
        tmp_path, models, ("car-1",), for_cars=(f"--models-url=http://127.0.0.1:{port}",)
    ) as four:
        car = four.cars[0]
        async with (
            asyncio.timeout(WAIT_S),
            gate_to(int(four.url.rpartition(":")[2]), port) as gate,
            EdgeClient(four.url) as client,
        ):
            handle = client.submit("fill", [count(VALUES)])
            job = (await handle).job
            await gate.is_holding.wait()
            car.kill()
            gate.is_open.set()
            assert (await client.status(job)).done == 0
            car.start()
            (result,) = [one async for one in handle]
            (tensor,) = msgspec.convert(result.output, list[Tensor])
            assert tensor.shape == (VALUES,)
            assert result.ref is not None
            assert await client.download(result.ref) == LARGE
            status = await client.status(job)
            assert (status.state, status.done, status.failed) == (JobState.DONE, 1, 0)
            assert gate.sent_bytes < 1.5 * len(LARGE), "most of it was sent twice"
        for service in four.all:
            assert service.stop() == 0, service.log.read_text()[-2_000:]
