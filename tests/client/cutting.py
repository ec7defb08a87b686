"""A TCP proxy that cuts connections after seeded numbers of bytes: a network at its worst."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class CuttingProxy:
    """Forwards to a local port; each connection dies after a random number of answer bytes."""

    def __init__(self, target_port: int, seed: int, bytes_min: int, bytes_max: int) -> None:
        self._target_port = target_port
        self._random = random.Random(seed)
        self._bytes_min = bytes_min
        self._bytes_max = bytes_max
        self.cuts = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side or the budget ends."""
        sides = [writer]
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            sides.append(up_writer)
            tasks = [
                asyncio.create_task(_copy(reader, up_writer)),
                asyncio.create_task(self._copy_until_cut(up_reader, writer)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            # FIN, not RST: what was written before the cut arrives.
            for side in sides:
                side.close()
        for side in sides:
            with suppress(OSError):
                await side.wait_closed()

    async def _copy_until_cut(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        left = self._random.randint(self._bytes_min, self._bytes_max)
        while data := await reader.read(4_096):
            writer.write(data[:left])
            await writer.drain()
            left -= len(data)
            if left <= 0:
                self.cuts += 1
                return


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@asynccontextmanager
async def cutting(
    target_port: int, *, seed: int, bytes_min: int, bytes_max: int
) -> AsyncIterator[CuttingProxy]:
    """A running proxy; leave it after its clients."""
    proxy = CuttingProxy(target_port, seed, bytes_min, bytes_max)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(proxy.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
        if connections:
            await asyncio.wait_for(asyncio.gather(*connections), 10.0)
