"""One bus adapter on one broker, and a reader that lets a test wait for what must happen."""

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from brokers import BrokerProcess

from edge_runtime.bus import (
    Bus,
    BusEvent,
    BusSettings,
    Connected,
    Disconnected,
    Faults,
    MemoryBroker,
    MemoryBus,
    Message,
)
from edge_runtime.bus.fast import MqttiumBus
from edge_runtime.bus.mqtt import AiomqttBus

TIMEOUT_S = 20.0
ADAPTERS: dict[str, Any] = {"aiomqtt": AiomqttBus, "mqttium": MqttiumBus}

EventT = TypeVar("EventT", bound=BusEvent)


@dataclass
class Rig:
    """`bus()` makes buses of one adapter on one broker; `prefix` is this test's own."""

    adapter: str
    protocol: int
    prefix: str
    broker: BrokerProcess | MemoryBroker
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        if isinstance(self.broker, MemoryBroker):
            return "memory://"
        return self.broker.url(self.protocol)

    def topic(self, rest: str) -> str:
        return f"{self.prefix}/{rest}"

    def settings(self, *filters: str, **changes: Any) -> BusSettings:
        values: dict[str, Any] = {
            "url": self.url,
            "client_id": f"{self.prefix}-{next(self._numbers)}",
            "protocol": self.protocol,
            "subscriptions": tuple((self.topic(topic_filter), 1) for topic_filter in filters),
        }
        return BusSettings(**(values | changes))

    def bus(self, *filters: str, **changes: Any) -> Bus:
        """A bus subscribed to `filters` below the prefix; `changes` go to the settings."""
        return self.with_bounds(self.settings(*filters, **changes))

    def with_bounds(
        self, settings: BusSettings, faults: Faults | None = None, **bounds: int
    ) -> Bus:
        if isinstance(self.broker, MemoryBroker):
            return MemoryBus(settings, self.broker, faults, **bounds)
        bus: Bus = ADAPTERS[self.adapter](settings, **bounds)
        return bus

    @property
    def is_embedded(self) -> bool:
        return isinstance(self.broker, BrokerProcess) and self.broker.kind == "embedded"

    def kill_broker(self) -> None:
        self.broker.kill()

    def start_broker(self) -> None:
        self.broker.start()


class Reader:
    """Enters a bus and reads its events; `await reader.next(Message)` takes the next of a kind."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.events: list[BusEvent] = []
        self._taken = 0
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.bus.__aenter__()
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.bus.__aexit__(kind, error, traceback)
        assert self._task is not None
        await asyncio.wait_for(self._task, TIMEOUT_S)

    async def _read(self) -> None:
        async for event in self.bus.events():
            self.events.append(event)
            self._more.set()

    async def next(self, kind: type[EventT], timeout_s: float = TIMEOUT_S) -> EventT:
        """The next event of `kind`, passing over others."""
        async with asyncio.timeout(timeout_s):
            while True:
                while self._taken < len(self.events):
                    event = self.events[self._taken]
                    self._taken += 1
                    if isinstance(event, kind):
                        return event
                self._more.clear()
                await self._more.wait()

    async def up(self) -> Connected:
        return await self.next(Connected)

    async def down(self) -> Disconnected:
        return await self.next(Disconnected)

    async def message(self) -> Message:
        return await self.next(Message)

    async def messages(self, count: int) -> list[Message]:
        return [await self.message() for _ in range(count)]

    @property
    def received(self) -> list[Message]:
        """Every message so far."""
        return [event for event in self.events if isinstance(event, Message)]


class CuttableWire:
    """A TCP forwarder to a broker whose connections a test may break."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"mqtt://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection, as a lost network does."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, broker_writer}
        await asyncio.gather(self._pipe(reader, broker_writer), self._pipe(broker_reader, writer))
        self._writers -= {writer, broker_writer}

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while block := await reader.read(65_536):
                writer.write(block)
                await writer.drain()
        writer.close()


async def until(condition: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - counters and processes have no event to wait on
            await asyncio.sleep(0.005)
