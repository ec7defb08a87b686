"""A TCP proxy whose single connections can be cut, slowed and made into black holes."""

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Self

BLOCK_BYTES = 65_536


@dataclass(eq=False)
class Link:
    """One connection. `delay_s` holds every block back; a closed gate swallows none, moves none."""

    writers: list[asyncio.StreamWriter]
    delay_s: float = 0.0
    up: asyncio.Event = field(default_factory=asyncio.Event)
    down: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.heal()

    def heal(self) -> None:
        self.delay_s = 0.0
        self.up.set()
        self.down.set()

    def cut(self) -> None:
        """RST both ways, as a lost network does; what is on its way is lost."""
        for writer in self.writers:
            writer.transport.abort()

    async def pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(BLOCK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await gate.wait()
                writer.write(block)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()


class Wire:
    """Forwards to a local port."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.links: set[Link] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        for link in list(self.links):
            link.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def any_link(self, dice: random.Random) -> Link | None:
        links = sorted(self.links, key=id)
        return dice.choice(links) if links else None

    def heal(self) -> None:
        for link in self.links:
            link.heal()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        link = Link([writer, up_writer])
        self.links.add(link)
        try:
            await asyncio.gather(
                link.pipe(reader, up_writer, link.up), link.pipe(up_reader, writer, link.down)
            )
        finally:
            self.links.discard(link)
            link.cut()
