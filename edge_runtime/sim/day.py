"""A recorded day lived by the production car in virtual time, under an owner's policy.

The agent, its core, its journal and its energy ledger are those of every car; what is simulated is
what lies under their ports, as in every world of this package. Sensors tell the trace, second by
second; a broker in memory never fails; a dispatcher always has work; the engine takes `ITEM_S` an
item and draws the power that the settings name.

Invariants
- The same trace, policy and settings make the same record, on any machine and at any speed.
- Nothing is decided here: what a span says of the car, and why, is what its core said.
- What the day came to is the car's own ledger, as its journal has it when the car has left.

Deliberately absent: what the work itself would do to the day. Charge and temperatures stay as they
were recorded; the record says how much energy the work took and from where.
"""

import asyncio
import contextlib
import datetime as dt
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.bus import MemoryBroker, MemoryBus
from edge_runtime.contract import limits
from edge_runtime.contract.clock import NS_PER_MS, Now
from edge_runtime.contract.errors import ConfigError, LocalError
from edge_runtime.contract.messages import Item
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import Value
from edge_runtime.sim.car import EngineScript, SimEngine, SimPackages
from edge_runtime.sim.journal import LoopJournal
from edge_runtime.sim.loop import SimLoop, Stuck
from edge_runtime.sim.plenty import Plenty
from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings
from edge_runtime.vehicle.core.energy_rows import PeriodSummary
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.core.explain import Explanation
from edge_runtime.vehicle.core.stops import StopSummary
from edge_runtime.vehicle.core.wear import UNKNOWN_CELL
from edge_runtime.vehicle.energy.report import read_summary
from edge_runtime.vehicle.owner import WorkDone
from edge_runtime.vehicle.owner_decisions import give_consent
from edge_runtime.vehicle.policy import OwnerPolicy, example_policy, load_policy
from edge_runtime.vehicle.ports import EmitEvent
from edge_runtime.vehicle.sensors.traces import TIME_COLUMN, Trace

ITEM_S: Final = 2.0
_VEHICLE: Final = "day"
_COMMIT_S: Final = 0.002
_THREAD_S: Final = 0.001
_SETTLE_S: Final = 60.0
_STEPS_PER_S: Final = 100
_STEPS_PER_ROW: Final = 20
_NS_PER_S: Final = 1_000_000_000
_PERIOD_NS: Final = limits.SENSOR_PERIOD_MS * NS_PER_MS
_MARK_NS: Final = 60 * _NS_PER_S
_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the kernel's memory file system, where there is one


class DaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is assumed of the car. `compute_power_w` is what its computer draws while it works."""

    compute_power_w: float = 40.0
    pack_kwh: float = 60.0
    cell: str = UNKNOWN_CELL
    region: str = "default"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """From when to when, in seconds since the day's start, the car was in one state, and why.

    `hold` is the deciding reason where no work was taken, `key` the policy's that decided; `why`
    and `needs` are what `owner why` would have said at the beginning of the span.
    """

    from_s: float
    to_s: float
    availability: Availability
    hold: HoldReason | None
    key: str
    why: str
    needs: str


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """What work had taken by so many seconds of the day."""

    at_s: float
    grid_wh: float
    pack_wh: float
    computing_min: float
    wear_percent: float


class DayRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A day, and what the car did in it.

    `signals` are the trace's columns, each with the value at each of `times_s`. Where the policy
    gives no consent, the day is what it would allow (`assumed_consent`). Units were `taken`, then
    either `completed` or `given_back`; `items` reached the dispatcher.
    """

    start_utc_s: float
    length_s: float
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    times_s: tuple[float, ...]
    signals: dict[str, tuple[Value, ...]]
    policy: OwnerPolicy
    settings: DaySettings
    assumed_consent: bool
    took: PeriodSummary
    done: WorkDone
    stops: StopSummary
    taken: int
    completed: int
    given_back: int
    items: int

    def seconds_in(self, *states: Availability) -> float:
        """How long the car was in any of these states."""
        return sum(span.to_s - span.from_s for span in self.spans if span.availability in states)


def live_day(
    trace: Trace,
    policy: Path | None = None,
    settings: DaySettings | None = None,
    *,
    on_time: Callable[[float], None] | None = None,
) -> DayRecord:
    """Run the day under `policy`, or the shipped one; `on_time` hears how much of it is over, in s.

    Raises `PolicyError` where the policy is wrong, `ConfigError` where the trace is too long or a
    setting out of its range, and whatever the car's agent broke with.
    """
    length_s = trace.duration_ns / _NS_PER_S
    if length_s > limits.DAY_MAX_S:
        raise ConfigError(
            f"the trace lasts {length_s / 3600:.1f} hours, at most {limits.DAY_MAX_S / 3600:g}"
        )
    if trace.start_utc_s > limits.DAY_UTC_MAX_S:
        raise ConfigError(
            f"{TIME_COLUMN}: {trace.start_utc_s:g} is at most {limits.DAY_UTC_MAX_S:g}"
        )
    steps_max = round((length_s + _SETTLE_S) * _STEPS_PER_S) + len(trace.rows) * _STEPS_PER_ROW
    with _folder() as folder:
        own = folder / "policy.toml"
        if policy is None:
            own.write_text(example_policy(), encoding="utf-8")
        else:
            load_policy(policy)
            shutil.copyfile(policy, own)
        written = load_policy(own)
        loop = SimLoop(lambda: _THREAD_S, steps_max=steps_max)
        asyncio.set_event_loop(loop)
        day = _Day(
            loop,
            trace,
            written=written,
            policy=own,
            settings=settings or DaySettings(),
            on_time=on_time,
        )
        try:
            loop.run_until_complete(day.live())
            return day.record()
        except Stuck as stuck:
            raise LocalError(f"the day cannot be lived to its end: {stuck}") from None
        finally:
            loop.bury()
            asyncio.set_event_loop(None)
            loop.close()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    name = tempfile.mkdtemp(prefix="edge-day-", dir=_MEMORY if _MEMORY.is_dir() else None)
    try:
        yield Path(name)
    finally:
        shutil.rmtree(name, ignore_errors=True)


class _Day:
    """The car, what surrounds it, and what was seen of it."""

    def __init__(
        self,
        loop: SimLoop,
        trace: Trace,
        *,
        written: OwnerPolicy,
        policy: Path,
        settings: DaySettings,
        on_time: Callable[[float], None] | None,
    ) -> None:
        self._loop = loop
        self._trace = trace
        self._written = written
        self._policy = policy
        self._settings = settings
        self._on_time = on_time
        self._folder = policy.parent
        self._broker = MemoryBroker()
        self._rng = random.Random(0)  # noqa: S311 - a day must be repeatable
        self._plenty = Plenty(_VEHICLE, self.now, written.allowed)
        self._agent: VehicleAgent
        self._diary = _Diary()
        self._done = WorkDone()

    def now(self) -> Now:
        """The car's clocks: the day's UTC, and a boot a second before it."""
        at_s = self._loop.time()
        utc_ms = round(self._trace.start_utc_s * 1000) + int(at_s * 1000)
        return Now(round((at_s + 1.0) * _NS_PER_S), utc_ms)

    async def live(self) -> None:
        """From the first reading to the goodbye."""
        if not self._written.consent.given:
            # As an owner does it: by command, in the car's own state folder.
            today = dt.datetime.fromtimestamp(self._trace.start_utc_s, dt.UTC).date()
            give_consent(self._folder, self._written, today, given=True)
        async with MemoryBus(self._plenty.bus_settings(), self._broker, rng=self._rng) as bus:
            serving = asyncio.ensure_future(self._plenty.serve(bus))
            await self._drive()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _drive(self) -> None:
        """The car's process, until the trace is over or the car breaks."""
        package = self._plenty.package
        sensors = _TraceSensors(self._trace, self.now, self._looked)
        self._agent = VehicleAgent(
            VehicleSettings(
                vehicle=_VEHICLE,
                broker_url=f"memory://{_VEHICLE}",
                state_dir=self._folder,
                policy=self._policy,
                hardware=_VEHICLE,
                **msgspec.structs.asdict(self._settings),
            ),
            open_bus=lambda bus: MemoryBus(bus, self._broker, rng=self._rng),
            make_engine=self._make_engine,
            packages=SimPackages({package.digest: package}, {package.digest}, _fetch_nothing),
            sensors=sensors,
            clock=self.now,
            open_journal=self._open_journal,
            rng=self._rng,
        )
        async with self._agent as agent:
            ended = asyncio.ensure_future(agent.wait_ended())
            over = asyncio.ensure_future(sensors.over.wait())
            await asyncio.wait((ended, over), return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if ended.done():
                await ended
            ended.cancel()
            self._diary.close(self._trace.duration_ns / _NS_PER_S)
        self._done = self._agent.owner_report().done

    def record(self) -> DayRecord:
        """What was seen, and what the car's journal says of it."""
        trace, plenty = self._trace, self._plenty
        columns = zip(*trace.rows, strict=True)
        ledger = read_summary(self._folder / "journal.db", self.now().utc_ms)
        return DayRecord(
            start_utc_s=trace.start_utc_s,
            length_s=trace.duration_ns / _NS_PER_S,
            spans=tuple(self._diary.spans),
            marks=tuple(self._diary.marks),
            times_s=tuple(time_ns / _NS_PER_S for time_ns in trace.times_ns),
            signals=dict(zip(trace.names, columns, strict=True)),
            policy=self._written,
            settings=self._settings,
            assumed_consent=not self._written.consent.given,
            took=ledger.lifetime,
            done=self._done,
            stops=self._agent.stops,
            taken=plenty.taken,
            completed=plenty.completed,
            given_back=plenty.given_back,
            items=plenty.items,
        )

    def _open_journal(self, path: Path) -> LoopJournal:
        return LoopJournal(path, self._loop, lambda: _COMMIT_S)

    def _make_engine(self, emit: EmitEvent) -> SimEngine:
        script = EngineScript(item_s=ITEM_S)
        return SimEngine(emit, self._loop, script, self._rng, _Unwatched())

    def _looked(self, time_ns: int) -> None:
        """The car has just heard its sensors: note what it does, and what it has taken."""
        core, now = self._agent.core, self.now()
        at_s = time_ns / _NS_PER_S
        state = (core.availability, core.hold)
        if state != self._diary.state:
            self._diary.turn(at_s, state, core.explain(now))
        if time_ns % _MARK_NS == 0:
            self._diary.mark(at_s, core.energy_summary(now).lifetime)
            if self._on_time is not None:
                self._on_time(at_s)


class _Diary:
    """What the car did, span by span, and what that had taken, minute by minute."""

    def __init__(self) -> None:
        self.state: tuple[Availability, HoldReason | None] | None = None
        self.spans: list[Span] = []
        self.marks: list[Mark] = []

    def turn(
        self, at_s: float, state: tuple[Availability, HoldReason | None], said: Explanation
    ) -> None:
        """From now on the car is in another state."""
        self.close(at_s)
        self.state = state
        worst = said.forbids[0] if said.forbids and state[1] is not None else None
        self.spans.append(
            Span(
                from_s=at_s,
                to_s=at_s,
                availability=state[0],
                hold=state[1],
                key="" if worst is None else worst.key,
                why=said.summary,
                needs="" if worst is None else worst.change or "",
            )
        )

    def mark(self, at_s: float, took: PeriodSummary) -> None:
        """So much was taken by now."""
        self.marks.append(
            Mark(
                at_s=at_s,
                grid_wh=took.grid_wh,
                pack_wh=took.pack_wh,
                computing_min=took.computing_min,
                wear_percent=took.wear_percent,
            )
        )

    def close(self, at_s: float) -> None:
        """The last span ends; one of no length was none."""
        if not self.spans:
            return
        last = self.spans.pop()
        if at_s > last.from_s:
            self.spans.append(msgspec.structs.replace(last, to_s=at_s))


class _TraceSensors:
    """The trace in virtual time: every row, and every second in between (`ports.Sensors`)."""

    def __init__(
        self, trace: Trace, clock: Callable[[], Now], looked: Callable[[int], None]
    ) -> None:
        self.over = asyncio.Event()
        self._trace = trace
        self._clock = clock
        self._looked = looked

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell the whole day; return at its end."""
        began_ns = self._clock().boot_ns
        for time_ns, values in self._trace.moments(_PERIOD_NS):
            wait_ns = began_ns + time_ns - self._clock().boot_ns
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / _NS_PER_S)
            emit(SignalsRead(values, self._clock().boot_ns))
            self._looked(time_ns)
        wait_ns = began_ns + self._trace.duration_ns - self._clock().boot_ns
        await asyncio.sleep(max(0, wait_ns) / _NS_PER_S)
        self.over.set()

    def note_load(self, *, is_busy: bool) -> None:
        """Nothing: the day is as it was recorded."""


class _Unwatched:
    """Nobody judges this engine (`EngineWatch`): its car does."""

    def started(self, item: Item) -> None:
        """The computation of an item begins."""

    def died(self, item: Item) -> None:
        """No engine of a day dies by itself."""

    def takes_car_down(self) -> None:
        """No item of a day does."""


async def _fetch_nothing() -> None:
    """The only package is there from the beginning."""
