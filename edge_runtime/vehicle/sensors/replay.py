"""A trace told to a car: a recorded day as if it happened now, at any speed.

Invariants
- What is told is the row of this moment. Where the computer slept, or the speed outruns the loop,
  rows are skipped, never told in a burst.
- At the end of a trace that does not loop the source falls silent, and every signal grows stale.
- A departure is a moment: it is told as far in the future of the replay as it was in the day's.
"""

import asyncio
from collections.abc import Callable

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import Values
from edge_runtime.vehicle.clock import read_clock
from edge_runtime.vehicle.core.events import SignalsRead
from edge_runtime.vehicle.sensors.traces import Trace

log = structlog.get_logger()


class TraceSensors:
    """Tells `trace`, `speed` times as fast as it was; `loops`: from the start again at its end."""

    def __init__(
        self,
        trace: Trace,
        *,
        speed: float = 1.0,
        loops: bool = False,
        clock: Callable[[], Now] = read_clock,
    ) -> None:
        if not 0 < speed <= limits.TRACE_SPEED_MAX:
            raise ConfigError(
                f"a trace's speed is over 0 and at most {limits.TRACE_SPEED_MAX:g}, not {speed:g}"
            )
        self._trace = trace
        self._speed = speed
        self._loops = loops
        self._clock = clock

    def note_load(self, *, is_busy: bool) -> None:
        """Nothing: the day is over."""

    async def run(self, emit: Callable[[SignalsRead], None]) -> None:
        """Tell every row when it is due and every signal once a period; return at the end."""
        started = self._clock()
        period_s, least_s = limits.SENSOR_PERIOD_MS / 1000, limits.SENSOR_FLOOD_MS / 1000
        while True:
            now = self._clock()
            whole_ns = int((now.boot_ns - started.boot_ns) * self._speed)
            laps, time_ns = divmod(whole_ns, self._trace.duration_ns)
            if laps and not self._loops:
                log.info("trace_ended", rows=len(self._trace.rows))
                return
            emit(SignalsRead(self._values(laps, time_ns, started), now.boot_ns))
            wait_s = (self._trace.next_ns(time_ns) - time_ns) / 1e9 / self._speed
            await asyncio.sleep(max(least_s, min(period_s, wait_s)))

    def _values(self, laps: int, time_ns: int, started: Now) -> Values:
        values = self._trace.at(time_ns)
        departure = values.get("departure_utc_s")
        if departure is not None:
            lap_s = laps * self._trace.duration_ns / 1e9
            ahead_s = (departure - self._trace.start_utc_s + lap_s) / self._speed
            values["departure_utc_s"] = round(started.utc_ms / 1000 + ahead_s)
        return values
