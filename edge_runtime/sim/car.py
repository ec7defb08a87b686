"""What a simulated car has instead of hardware: sensors, an engine, a shelf of packages.

Invariants
- `Truth` is how the car really is. Sensors tell it, late, not at all or absurdly; the ledger
  judges by the truth.
- The engine computes `answer(item)` and nothing else, in scripted time: what anybody delivers
  can be compared with it. Of a generation it writes the one text of `sim.texts`.
"""

import contextlib
import contextvars
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from edge_runtime.contract.limits import OUTPUT_MAX_BYTES
from edge_runtime.contract.messages import Item, StopReport
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError, StopTier
from edge_runtime.contract.tensors import Tensor
from edge_runtime.sim.loop import SimLoop
from edge_runtime.sim.texts import Text, read_asked
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import (
    EngineDied,
    ItemBroke,
    ItemFinished,
    ItemStarted,
    ModelLoaded,
    RunEnded,
    RunOutcome,
    SignalsRead,
    TokensProduced,
)
from edge_runtime.vehicle.ports import EmitEvent

if TYPE_CHECKING:
    import asyncio

_STOP_LATENCY_MS: Final = 0.5
_LOAD_S: Final = 0.5
_HUNG_S: Final = 20.0
_CRASH_S: Final = 0.05
_TOKEN_S: Final = 0.25
_TOKENS_AT_ONCE: Final = 3
_WRITES: Final = "text-generation"
SLOW_ITEM_S: Final = 8.0
_CONSENT: Final = "consent"
_CHARGE_STOP_PERCENT: Final = 50.0
_COMPUTE_STOP_C: Final = 85.0
_encode: Final = msgspec.msgpack.Encoder().encode


WIDE: Final = b"\xb1"
"""What items end in whose output does not travel inline."""
_WIDE_TIMES: Final = 3_700


def answer(item: Item) -> bytes:
    """The one right output of an item: a function of its data alone."""
    digest = hashlib.sha256(item.data)
    if item.data.endswith(WIDE):
        return _encode(digest.digest() * _WIDE_TIMES)
    return _encode(digest.hexdigest()[:16])


def tensor_answer(data: bytes) -> bytes:
    """The right output, as a tensor's bytes, of an item that somebody waits for."""
    digest = hashlib.sha256(data).digest()
    return digest * _WIDE_TIMES if data.endswith(WIDE) else digest[:8]


def _output(run: "_Run", item: Item) -> bytes:
    if run.writes:
        asked = read_asked(item.data)
        text = Text(asked)
        more = text.after(asked.generated, text.length - len(asked.generated))
        return _encode(text.output(asked.generated + more))
    if not run.order.urgent:
        return answer(item)
    data = tensor_answer(item.data)
    return _encode([Tensor("y", "FP32", (len(data) // 4,), data)])


def _finished(run: "_Run", item: Item, busy_ms: float) -> ItemFinished | ItemBroke:
    output, order = _output(run, item), run.order
    if len(output) > (order.output_max_bytes or OUTPUT_MAX_BYTES):
        return ItemBroke(order.run_id, item.index, ItemError.RESULT_TOO_LARGE, "scripted")
    is_large = len(output) > OUTPUT_MAX_BYTES
    sha256 = hashlib.sha256(output).hexdigest() if is_large else ""
    return ItemFinished(order.run_id, item.index, output, busy_ms, sha256)


def good_signals() -> dict[str, float | bool | int | None]:
    """A parked, charged, cool, plugged car."""
    return {
        "charge_percent": 80.0,
        "battery_temperature_c": 20.0,
        "is_plugged": True,
        "is_charging": False,
        "is_parked": True,
        "is_occupied": False,
        "compute_temperature_c": 40.0,
        "compute_load_percent": 5.0,
        "low_voltage_v": 12.8,
        "power_saving_level": 0,
    }


@dataclass
class Truth:
    """How a car really is, and since when it may not compute."""

    loop: SimLoop
    signals: dict[str, float | bool | int | None] = field(default_factory=good_signals)
    has_consent: bool = True
    _wrong_since_s: dict[str, float] = field(default_factory=dict)

    def note(self) -> None:
        """Something changed: keep the time since which computing is wrong, by each cause."""
        wrong = [*self._wrong_signals(), *(() if self.has_consent else (_CONSENT,))]
        now_s = self.loop.time()
        self._wrong_since_s = {cause: self._wrong_since_s.get(cause, now_s) for cause in wrong}

    @property
    def wrong_since_s(self) -> float | None:
        """Since when what forbids computing the longest does so.

        Times are not added up: where one cause ends just after another began, behind a sensor that
        is dead, a car may believe for a moment that all is well.
        """
        return min(self._wrong_since_s.values(), default=None)

    @property
    def wrong_by_signals_since_s(self) -> float | None:
        """As `wrong_since_s`, consent aside."""
        signals = (at for cause, at in self._wrong_since_s.items() if cause != _CONSENT)
        return min(signals, default=None)

    def do_signals_allow(self) -> bool:
        """Whether they let work that runs go on; consent is in a file, read once a second."""
        return not self._wrong_signals()

    def _wrong_signals(self) -> list[str]:
        """Those that the owner's policy stops work for."""
        signals = self.signals
        charge, heat = signals["charge_percent"], signals["compute_temperature_c"]
        is_right = {
            "is_plugged": bool(signals["is_plugged"]),
            "is_parked": bool(signals["is_parked"]),
            "is_occupied": not signals["is_occupied"],
            "charge_percent": charge is not None and charge >= _CHARGE_STOP_PERCENT,
            "compute_temperature_c": heat is not None and heat < _COMPUTE_STOP_C,
        }
        return [name for name, is_good in is_right.items() if not is_good]


class SimSensors:
    """Tells the truth once a period and at every edge, unless a nemesis is at it."""

    def __init__(self, truth: Truth, boot_ns: Callable[[], int], period_s: float) -> None:
        self.truth = truth
        self.period_s = period_s
        self.mute: set[str] = set()
        self.absurd: dict[str, float] = {}
        self._boot_ns = boot_ns
        self._emit: Callable[[SignalsRead], None] | None = None
        self._context = contextvars.Context()

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every signal once a period, until cancelled."""
        import asyncio  # noqa: PLC0415 - the rest of this module needs no loop of its own

        self._emit = emit
        # Whoever changes the truth tells it; what the car then does is the car's, and dies with it.
        self._context = contextvars.copy_context()
        while True:
            self.tell()
            await asyncio.sleep(self.period_s)

    def tell(self) -> None:
        """Tell everything now."""
        if self._emit is not None:
            values: Mapping[str, float | bool | int | None] = {
                name: self.absurd.get(name, value)
                for name, value in self.truth.signals.items()
                if name not in self.mute
            }
            self._context.run(self._emit, SignalsRead(values, self._boot_ns()))

    def note_load(self, *, is_busy: bool) -> None:
        """This car's temperature follows the script."""


class SimPackages:
    """Packages by digest; fetching takes a while and may fail."""

    def __init__(
        self,
        known: Mapping[str, Package],
        held: set[str],
        fetch: Callable[[], Awaitable[None]],
    ) -> None:
        self._known = known
        self._held = held
        self._fetch = fetch
        self._received_bytes = 0

    def digests(self) -> Iterable[str]:
        """What is held."""
        return sorted(self._held)

    def get(self, digest: str) -> Package | None:
        """The package, where it is held."""
        return self._known[digest] if digest in self._held else None

    def using(self, digest: str) -> "contextlib.AbstractContextManager[None]":
        """Nothing is evicted here."""
        del digest
        return contextlib.nullcontext()

    async def fetch(self, digest: str, base_url: str) -> Package:
        """Have the package. Raises OSError while the network says so."""
        del base_url
        await self._fetch()
        if digest not in self._known:
            raise OSError("the dispatcher has no such package")
        self._held.add(digest)
        self._received_bytes += self._known[digest].manifest.total_bytes
        return self._known[digest]

    def take_received_bytes(self) -> int:
        """The sizes of the packages fetched since the last call."""
        received, self._received_bytes = self._received_bytes, 0
        return received

    async def check(self, base_url: str) -> tuple[str, ...]:
        """Everything stays published here."""
        del base_url
        return ()

    def break_off(self) -> None:
        """A fetch here is one wait, which ends by itself."""


@dataclass
class EngineScript:
    """How an engine behaves: seconds an item, and what kills or hangs it.

    A `slow` item takes `SLOW_ITEM_S`.
    """

    item_s: float = 0.2
    poison: frozenset[bytes] = frozenset()
    broken: frozenset[bytes] = frozenset()
    fatal: frozenset[bytes] = frozenset()
    """Items that take the whole car down: its process, or its power."""
    slow: set[bytes] = field(default_factory=set)
    hang: float = 0.0
    crash: float = 0.0


@dataclass
class _Run:
    order: SubmitRun
    writes: bool
    next: int = 0


class EngineWatch(Protocol):
    """Who hears what an engine does."""

    def started(self, item: Item) -> None:
        """The computation of an item begins."""
        ...

    def died(self, item: Item) -> None:
        """The engine died, or hung and was killed, at an item."""
        ...

    def takes_car_down(self) -> None:
        """The item in hand ends the whole car's process."""
        ...


class SimEngine:
    """An inference process with scripted durations and failures; see `ports.Engine`.

    `told` hears of every item whose computation begins and of every death; `is_computing` says
    whether an item is under way and not frozen.
    """

    def __init__(
        self,
        emit: EmitEvent,
        loop: SimLoop,
        script: EngineScript,
        rng: random.Random,
        told: "EngineWatch",
    ) -> None:
        self._emit = emit
        self._loop = loop
        self._script = script
        self._rng = rng
        self._told = told
        self._runs: deque[_Run] = deque()
        self._loaded: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], None] | None = None
        self._left_s = 0.0
        self.in_hand = b""
        """The item that was begun last, until it ends."""
        self.is_frozen = False
        self.fired: dict[str, int] = {"engine_hang": 0, "engine_crash": 0}

    @property
    def is_computing(self) -> bool:
        """Whether the process uses the processor now."""
        return self._timer is not None

    def submit(self, run: SubmitRun, package: Package) -> None:
        """Queue a run behind those already here; an urgent one before the next item of others."""
        self._runs.append(_Run(run, package.spec.task == _WRITES))
        self._go_on()

    def cancel(self, run_id: int) -> None:
        """Stop one run."""
        for run in self._runs:
            if run.order.run_id == run_id:
                if run is self._runs[0]:
                    self._stop_timer()
                    self._then = None
                    self.in_hand = b""
                self._runs.remove(run)
                stop = StopReport(tier=StopTier.TERMINATE, latency_ms=_STOP_LATENCY_MS)
                ended = RunEnded(run_id, RunOutcome.CANCELLED, stop)
                self._loop.call_soon(self._emit, ended)
                self._go_on()
                return

    def freeze(self) -> None:
        """Stop computing in this call."""
        if not self.is_frozen:
            self.is_frozen = True
            self._stop_timer()

    async def measure_stop(self) -> StopReport:
        """At once, here."""
        return StopReport(tier=StopTier.FREEZE, latency_ms=_STOP_LATENCY_MS)

    def thaw(self) -> None:
        """Compute on."""
        if self.is_frozen:
            self.is_frozen = False
            if self._then is not None:
                self._wait(self._left_s, self._then)
            else:
                self._go_on()

    async def kill(self) -> StopReport:
        """End the process and forget every run."""
        self._reset()
        return StopReport(tier=StopTier.KILL, latency_ms=_STOP_LATENCY_MS)

    async def close(self) -> None:
        """End the process."""
        self._reset()

    # --- inside ---

    def _reset(self) -> None:
        self._stop_timer()
        self._then = None
        self.in_hand = b""
        self._runs.clear()
        self._loaded.clear()
        self.is_frozen = False

    def _wait(self, delay_s: float, then: Callable[[], None]) -> None:
        self._then = then
        self._left_s = delay_s
        if not self.is_frozen:
            self._timer = self._loop.call_later(delay_s, self._due)

    def _due(self) -> None:
        self._timer = None
        then, self._then = self._then, None
        if then is not None:
            then()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._left_s = max(0.0, self._timer.when() - self._loop.time())
            self._timer.cancel()
            self._timer = None

    def _go_on(self) -> None:
        if self._then is not None or self.is_frozen or not self._runs:
            return
        self._let_urgent_pass()
        run = self._runs[0]
        digest = run.order.digest
        if digest not in self._loaded:
            self._wait(_LOAD_S, lambda: self._have_loaded(run))
        elif run.next >= len(run.order.items):
            self._runs.popleft()
            self._emit(RunEnded(run.order.run_id, RunOutcome.COMPLETED))
            self._go_on()
        else:
            self._begin(run)

    def _let_urgent_pass(self) -> None:
        urgent = next((run for run in self._runs if run.order.urgent), None)
        if urgent is not None and not self._runs[0].order.urgent:
            self._runs.remove(urgent)
            self._runs.appendleft(urgent)

    def _have_loaded(self, run: _Run) -> None:
        self._loaded.add(run.order.digest)
        self._emit(ModelLoaded(run.order.run_id, _LOAD_S * 1000))
        self._go_on()

    def _begin(self, run: _Run) -> None:
        item = run.order.items[run.next]
        self.in_hand = item.data
        self._told.started(item)
        self._emit(ItemStarted(run.order.run_id, item.index))
        if self._then is not None or not self._runs or self._runs[0] is not run:
            return  # being told, the agent stopped us
        if self._rng.random() < self._script.hang:
            self.fired["engine_hang"] += 1
            self._wait(_HUNG_S, lambda: self._die(run, item, ItemError.ENGINE_HUNG))
        elif item.data in self._script.fatal:
            self._wait(_CRASH_S, self._told.takes_car_down)
        elif item.data in self._script.poison or self._rng.random() < self._script.crash:
            self.fired["engine_crash"] += 1
            self._wait(_CRASH_S, lambda: self._die(run, item, ItemError.ENGINE_KILLED))
        elif run.writes and run.order.streams:
            self._write(run, item, read_asked(item.data).generated)
        else:
            slow = item.data in self._script.slow
            item_s = SLOW_ITEM_S if slow else self._script.item_s
            self._wait(item_s, lambda: self._finish(run, item))

    def _write(self, run: _Run, item: Item, ids: tuple[int, ...]) -> None:
        """Go on with a text that somebody reads as it comes."""
        text = Text(read_asked(item.data))
        count = min(self._rng.randint(1, _TOKENS_AT_ONCE), text.length - len(ids))
        self._wait(count * _TOKEN_S, lambda: self._tell(run, item, text, ids, count))

    def _tell(self, run: _Run, item: Item, text: Text, ids: tuple[int, ...], count: int) -> None:
        more = text.after(ids, count)
        known = ids + more
        is_end = len(known) == text.length
        self._emit(
            TokensProduced(
                run.order.run_id,
                item.index,
                len(ids),
                more,
                text.sure(known)[len(text.sure(ids)) :],
                text.finish if is_end else None,
            )
        )
        if self._then is not None or not self._runs or self._runs[0] is not run:
            return  # being told, the agent stopped us
        if is_end:
            self._finish(run, item)
        else:
            self._write(run, item, known)

    def _finish(self, run: _Run, item: Item) -> None:
        run.next += 1
        self.in_hand = b""
        run_id = run.order.run_id
        if item.data in self._script.broken:
            self._emit(ItemBroke(run_id, item.index, ItemError.UNDECODABLE_INPUT, "scripted"))
        else:
            busy_ms = self._script.item_s * 1000
            self._emit(_finished(run, item, busy_ms))
        self._go_on()

    def _die(self, run: _Run, item: Item, code: ItemError) -> None:
        self._reset()
        self._told.died(item)
        self._emit(EngineDied(run.order.run_id, item.index, code, "scripted"))
