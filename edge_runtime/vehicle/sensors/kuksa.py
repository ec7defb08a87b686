"""Signals from a KUKSA databroker: a subscription over gRPC (`kuksa.val.v2`), and a heartbeat.

Invariants
- The subscription brings every change at once. The heartbeat asks for all values once a period: it
  proves that the databroker lives, and repairs what a full buffer of the databroker dropped.
- A reading is stamped with the time at which it was asked for, not with that of the answer. While
  the databroker does not answer nothing is told, so every signal grows stale by itself.
- Whatever the databroker does or sends ends the session, never the car: the next one begins after
  a delay with full jitter.
- A path that the databroker does not have, or has in another unit, is a signal that the car does
  not have; it is logged once.

Needs the extra `vss`. grpclib runs on the car's own event loop, in one process and without threads
(measured: 4.5 MB with protobuf, against 11 MB for grpcio, which also forbids to fork).
Deliberately absent: writing to the databroker.
"""

import asyncio
import random
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog
from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.vehicle.clock import boot_ns
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.sensors import kuksa_messages as messages
from edge_runtime.vehicle.sensors.vss import PARKED_BY, UNITS, Raw, VssReadings, paths_of

_SERVICE: Final = "/kuksa.val.v2.VAL/"
_WINDOW_BYTES: Final = 1024 * 1024
_PERIOD_S: Final = limits.SENSOR_PERIOD_MS / 1000
_NUMBERS: Final = frozenset({"int32", "int64", "uint32", "uint64", "float", "double", "bool"})

log = structlog.get_logger()


class SessionEndedError(ConnectionError):
    """The databroker ended the subscription, or has nothing that is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KuksaSettings:
    """Where the databroker is, and how far it is believed.

    `address` is `HOST:PORT` or `unix:PATH`. `token` is a file with a JSON web token, read at every
    connect. `ca` is a file of certificates in PEM; with it the connection is TLS. `parked_by` are
    the parts of `vss.PARKED_BY` that this car has. `frozen_after_ms`: see `VssReadings`.
    """

    address: str = "127.0.0.1:55555"
    token: Path | None = None
    ca: Path | None = None
    parked_by: tuple[str, ...] = tuple(PARKED_BY)
    frozen_after_ms: int = limits.SENSOR_FROZEN_MS

    def __post_init__(self) -> None:
        _place(self.address)
        unknown = sorted(set(self.parked_by) - PARKED_BY.keys())
        if unknown or not self.parked_by:
            raise ConfigError(f"parked_by is at least one of {', '.join(PARKED_BY)}, not {unknown}")
        if self.frozen_after_ms < 0:
            raise ConfigError(f"frozen_after_ms must be 0 or more, not {self.frozen_after_ms}")


def _place(address: str) -> dict[str, Any]:
    """The arguments of a channel. Raises `ConfigError`."""
    if address.startswith("unix:") and len(address) > len("unix:"):
        return {"path": address.removeprefix("unix:")}
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 1 <= int(port) < 2**16:
        raise ConfigError(f"a databroker is at HOST:PORT or unix:PATH, not {address[:128]!r}")
    return {"host": host.strip("[]"), "port": int(port)}


class KuksaSensors:
    """The signals called `names` of the databroker at `settings.address`."""

    def __init__(
        self,
        settings: KuksaSettings,
        names: Iterable[str],
        clock: Callable[[], int] = boot_ns,
        rng: random.Random | None = None,
    ) -> None:
        self.settings = settings
        self.sessions = 0
        self._names = tuple(names)
        self._paths = paths_of(self._names, settings.parked_by)
        self._clock = clock
        # Delays need no secrecy, only difference between cars.
        self._rng = rng or random.Random()  # noqa: S311 - jitter is not a secret
        self._failures = 0
        self._said: set[str] = set()
        self._seen: set[str] = set()

    def note_load(self, *, is_busy: bool) -> None:
        """Nothing: the car's own thermometers know better."""

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every change at once and every signal once a period, until cancelled."""
        while True:
            try:
                await self._session(emit)
            except Exception as error:  # noqa: BLE001 - a foreign server and a foreign client: any fault of theirs is "no readings", said below
                self._lost(error)
            first_s, most_s = limits.KUKSA_RECONNECT_FIRST_S, limits.KUKSA_RECONNECT_MAX_S
            delay_s = min(first_s * 2.0 ** min(self._failures, 16), most_s)
            self._failures += 1
            await asyncio.sleep(self._rng.uniform(0, delay_s))

    def _lost(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        kind = type(error).__name__
        if self._failures == 0 or kind not in self._said:
            self._said.add(kind)
            why = f"{kind}: {error}".rstrip(": ")[: limits.SENSOR_LINE_MAX_BYTES]
            log.warning("databroker_lost", address=self.settings.address, why=why)

    # --- one connection -------------------------------------------------------------------

    async def _session(self, emit: Callable[[SignalsRead], None]) -> NoReturn:
        """From connecting until something fails; always ends with an exception."""
        windows = Configuration(
            http2_connection_window_size=_WINDOW_BYTES, http2_stream_window_size=_WINDOW_BYTES
        )
        tls = None if self.settings.ca is None else _tls(self.settings.ca)
        async with Channel(ssl=tls, config=windows, **_place(self.settings.address)) as channel:
            metadata = self._metadata()
            known = await self._known(channel, metadata)
            if not known:
                raise SessionEndedError("the databroker has none of the paths that are wanted")
            readings = VssReadings(
                self._names,
                known,
                self.settings.parked_by,
                self.settings.frozen_after_ms,
                self._seen,
            )
            paths = [path for path in self._paths if path in known]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(channel, metadata, paths, readings, emit))
                tasks.create_task(self._beat(channel, metadata, paths, readings, emit))
        raise SessionEndedError("the subscription ended")

    def _metadata(self) -> dict[str, str]:
        if self.settings.token is None:
            return {}
        return {"authorization": f"Bearer {self.settings.token.read_text().strip()}"}

    async def _known(self, channel: Channel, metadata: dict[str, str]) -> frozenset[str]:
        """The wanted paths that the databroker has, in the units of VSS."""
        ask = UnaryUnaryMethod(
            channel,
            f"{_SERVICE}ListMetadata",
            messages.ListMetadataRequest,
            messages.ListMetadataResponse,
        )
        known = set()
        for path in self._paths:
            try:
                answer = await ask(
                    messages.ListMetadataRequest(root=path),
                    metadata=metadata,
                    timeout=limits.KUKSA_ANSWER_MAX_S,
                )
            except GRPCError as error:
                if error.status is not Status.NOT_FOUND:
                    raise
                self._say_once("databroker_path_unknown", path=path)
                continue
            units = {entry.unit for entry in answer.metadata if entry.path == path}
            if any(unit.casefold() != UNITS.get(path, "").casefold() for unit in units if unit):
                unit = min(units)[:64]
                self._say_once("databroker_unit_unlike", path=path, unit=unit, ours=UNITS[path])
            elif units:
                known.add(path)
        return frozenset(known)

    def _say_once(self, event: str, *, path: str, **facts: str) -> None:
        if path not in self._said:
            self._said.add(path)
            log.warning(event, path=path, **facts)

    async def _listen(
        self,
        channel: Channel,
        metadata: dict[str, str],
        paths: list[str],
        readings: VssReadings,
        emit: Callable[[SignalsRead], None],
    ) -> None:
        """Tell what changes, when it changes."""
        subscribe = UnaryStreamMethod(
            channel,
            f"{_SERVICE}Subscribe",
            messages.SubscribeRequest,
            messages.SubscribeResponse,
        )
        request = messages.SubscribeRequest(
            signal_paths=paths, buffer_size=limits.KUKSA_BUFFER_MESSAGES
        )
        async with subscribe.open(metadata=metadata) as stream:
            await stream.send_message(request, end=True)
            async for response in stream:
                self._lives()
                now_ns = self._clock()
                touched = set()
                for entry in response.entries:
                    if entry.key in readings.known:
                        readings.update(entry.key, *_datapoint(entry.value), now_ns)
                        touched.add(entry.key)
                values = readings.values(now_ns, frozenset(touched))
                if values:
                    emit(SignalsRead(values, now_ns))
        raise SessionEndedError("the subscription ended")

    async def _beat(
        self,
        channel: Channel,
        metadata: dict[str, str],
        paths: list[str],
        readings: VssReadings,
        emit: Callable[[SignalsRead], None],
    ) -> None:
        """Ask for everything once a period, and tell it with the time of asking."""
        ask = UnaryUnaryMethod(
            channel, f"{_SERVICE}GetValues", messages.GetValuesRequest, messages.GetValuesResponse
        )
        request = messages.GetValuesRequest(signal_ids=[{"path": path} for path in paths])
        while True:
            asked_ns = self._clock()
            answer = await ask(request, metadata=metadata, timeout=limits.KUKSA_ANSWER_MAX_S)
            if len(answer.data_points) != len(paths):
                raise SessionEndedError("the databroker answered other values than were asked for")
            for path, datapoint in zip(paths, answer.data_points, strict=True):
                readings.update(path, *_datapoint(datapoint), asked_ns)
            emit(SignalsRead(readings.values(asked_ns), asked_ns))
            self._lives()
            await asyncio.sleep(_PERIOD_S)

    def _lives(self) -> None:
        if self._failures or not self.sessions:
            self.sessions += 1
            self._failures = 0
            log.info("databroker_connected", address=self.settings.address)


def _tls(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    return context


def _datapoint(datapoint: Any) -> tuple[Raw, object]:
    """Value and stamp; an array comes as a string, which no signal takes."""
    stamp = (datapoint.timestamp.seconds, datapoint.timestamp.nanos)
    kind = datapoint.value.WhichOneof("typed_value")
    if kind is None:
        return None, stamp
    value = getattr(datapoint.value, kind)
    if kind in _NUMBERS:
        return value, stamp
    return (value if kind == "string" else kind), stamp
