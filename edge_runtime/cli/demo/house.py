"""The demo's house: broker, dispatcher, cars and subscriber, each a process of its own."""

import asyncio
import contextlib
import secrets
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edge_runtime.cli.demo.processes import Child, ProcessEnded, last_line, stop_all
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.topics import DEFAULT_NAMESPACE

EMBEDDED: Final = "embedded"
TENANT: Final = "demo"
_HOST: Final = "127.0.0.1"
_START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05
_QUIET_S: Final = 1.0
_SETTLED_S: Final = 5.0

_POLICY: Final = """\
# The owners of the demo agreed, and let their cars begin again a second after they left.
dwell_s = 1
[consent]
given = true
version = 1
"""


@dataclass(frozen=True, slots=True)
class HouseOptions:
    """`broker` is "embedded" or an MQTT URL; everything is kept under `state_dir`."""

    cars: int
    broker: str
    models: Path
    state_dir: Path


class House:
    """Starts and ends the processes. `url` is the dispatcher's HTTP address."""

    def __init__(self, options: HouseOptions) -> None:
        self._options = options
        # On a broker that may serve others, or an earlier demo, a name of its own.
        is_shared = options.broker != EMBEDDED
        self.namespace = f"demo{secrets.token_hex(3)}" if is_shared else DEFAULT_NAMESPACE
        self._logs = options.state_dir / "logs"
        port = _free_port() if options.broker == EMBEDDED else 0
        self.broker_url = f"mqtt://{_HOST}:{port}" if port else options.broker
        self._http = f"{_HOST}:{_free_port()}"
        self.url = f"http://{self._http}"
        self.broker = self._child("broker", ["broker", "--port", str(port)]) if port else None
        self.dispatcher = self._child("dispatcher", self._dispatcher_arguments())
        self.cars = {
            name: self._child(name, self._car_arguments(name))
            for name in (f"car-{number}" for number in range(1, options.cars + 1))
        }
        self.subscriber = self._child("subscriber", self._subscriber_arguments(), has_stdout=True)
        self._restarted_s: dict[str, float] = {}

    @property
    def children(self) -> list[Child]:
        """Every process, in the order in which they are ended."""
        services = [self.dispatcher, *([self.broker] if self.broker else [])]
        return [self.subscriber, *self.cars.values(), *services]

    def check(self) -> None:
        """Raise `ProcessEnded` where one of them ended by itself."""
        for child in self.children:
            child.check()

    async def restart_ended(self) -> list[str]:
        """Start again, as systemd would, whoever ended by itself; returns a line about each.

        Not the subscriber, which has counted and may go. Raises `ProcessEnded` for one that ends,
        by no signal, within `_SETTLED_S` of being started again: it cannot run.
        """
        now_s = asyncio.get_running_loop().time()
        ended = [child for child in self.children if child is not self.subscriber and not child.pid]
        for child in ended:
            was_just_started = now_s - self._restarted_s.get(child.name, -_SETTLED_S) < _SETTLED_S
            if was_just_started and not child.was_killed:
                child.check()
            self._restarted_s[child.name] = now_s
            await child.stop()
            await child.start()
        return [f"{child.name} ended; it was started again" for child in ended]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["House"]:
        """Start everything; whatever happens, nothing of it runs afterwards."""
        self._logs.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self._policy.write_text, _POLICY)
        try:
            if self.broker is not None:
                await self.broker.start()
            await self._await_port(self.broker_url, self.broker)
            await self.dispatcher.start()
            await self.subscriber.start()
            for car in self.cars.values():
                await car.start()
            yield self
        finally:
            await stop_all(self.children)
            if self.broker is None:
                await self._clear_retained()

    async def restart_car(self, name: str) -> None:
        """SIGKILL a car's process and start it again with the same state."""
        await self.cars[name].kill()
        await self.cars[name].start()

    async def _clear_retained(self) -> None:
        """Leave nothing behind on a broker that is not the demo's own."""
        from edge_runtime.bus import BusError, BusSettings, Connected, Message, open_bus

        settings = BusSettings(
            url=self.broker_url,
            client_id=f"{self.namespace}-sweeper",
            session_expiry_s=0,
            subscriptions=((f"{self.namespace}/#", 1),),
        )
        with contextlib.suppress(TimeoutError, BusError):
            async with open_bus(settings) as bus:
                events = bus.events()
                while True:
                    async with asyncio.timeout(_QUIET_S):
                        event = await anext(events)
                    match event:
                        case Message(retain=True, payload=payload) if payload:
                            await bus.publish(Message(topic=event.topic, payload=b"", retain=True))
                        case Connected() | Message():
                            continue
                        case _:
                            return

    @property
    def _policy(self) -> Path:
        return self._options.state_dir / "policy.toml"

    def _child(self, name: str, arguments: list[str], *, has_stdout: bool = False) -> Child:
        return Child(name, arguments, self._logs / f"{name}.log", has_stdout=has_stdout)

    def _dispatcher_arguments(self) -> list[str]:
        store = self._options.state_dir / "dispatcher.db"
        return [
            "dispatcher",
            f"--broker={self.broker_url}",
            f"--store={store}",
            f"--models={self._options.models}",
            f"--http={self._http}",
            f"--namespace={self.namespace}",
        ]

    def _car_arguments(self, name: str) -> list[str]:
        return [
            "vehicle",
            f"--id={name}",
            f"--broker={self.broker_url}",
            f"--namespace={self.namespace}",
            f"--state-dir={self._options.state_dir / name}",
            f"--policy={self._policy}",
            "--sensors=simulated",
            "--sensor-commands",
        ]

    def _subscriber_arguments(self) -> list[str]:
        return [
            "subscriber",
            f"--broker={self.broker_url}",
            f"--url={self.url}",
            f"--tenant={TENANT}",
            f"--namespace={self.namespace}",
            f"--state={self._options.state_dir / 'subscriber.json'}",
        ]

    async def _await_port(self, url: str, child: Child | None) -> None:
        """Wait until the broker accepts connections."""
        parts = urlsplit(url)
        deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
        while not await _accepts(parts.hostname or _HOST, parts.port or 1883):
            if child is not None and child.pid is None:
                raise ProcessEnded(child.name, None, child.log)
            if asyncio.get_running_loop().time() > deadline:
                said = f": {last_line(child.log)}" if child is not None else ""
                raise LocalError(f"no broker at {url} within {_START_TIMEOUT_S:g} s{said}")
            await asyncio.sleep(_POLL_S)


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
