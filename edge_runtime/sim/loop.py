"""An asyncio event loop in virtual time, on which hosts die as processes do.

Invariants
- Time passes only in `select`: a timer costs nothing, and nothing takes any time.
- The same program and seed run the same callbacks in the same order: tasks and futures hash by
  their number, so that sets of them have one order under any PYTHONHASHSEED.
- What a host started (its context says which) never runs again once the host is dead: no
  `finally`, no callback, as with kill -9. Its tasks are kept until the world ends, since a
  coroutine that is collected would run its `finally` blocks.
- Work handed to a thread runs as one step of the loop, after a moment of virtual time: no thread
  exists.

Deliberately absent: sockets, signals, subprocesses, real threads.
"""

import asyncio
import contextvars
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar, TypeVarTuple

import structlog

from edge_runtime.contract.limits import SIM_STEPS_MAX

_log = structlog.get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Stuck(Exception):  # noqa: N818 - named for what the world is
    """Nothing is due, ever, and the main coroutine is not done; or it never ends."""


class Life(Protocol):
    """One life of a host's process."""

    @property
    def is_dead(self) -> bool:
        """Whether nothing of it may run any more."""
        ...

    @property
    def is_paused(self) -> bool:
        """Whether nothing of it runs for now, as under SIGSTOP."""
        ...

    @property
    def held(self) -> list[asyncio.Handle]:
        """What came while it was paused."""
        ...


current_life: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)

_numbers = itertools.count()


class _Task(asyncio.Task[Any]):
    """A task whose place in a set depends on when it was made."""

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = next(_numbers)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Future(asyncio.Future[Any]):
    """A future whose place in a set depends on when it was made."""

    def __init__(self, **options: Any) -> None:
        self._number = next(_numbers)
        super().__init__(**options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Selector:
    """Lets time pass instead of waiting for files."""

    def __init__(self, loop: "SimLoop") -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        """Sleep: at once."""
        self._loop.pass_time(timeout)
        return []


class SimLoop(asyncio.BaseEventLoop):
    """See the module. `thread_delay_s` is asked how long each call to a thread takes.

    After `steps_max` steps a world is taken to run in a circle.
    """

    # asyncio's own queues, which its types do not show.
    _ready: deque[Any]
    _scheduled: list[Any]
    _stopping: bool

    def __init__(
        self, thread_delay_s: Callable[[], float], *, steps_max: int | None = None
    ) -> None:
        super().__init__()
        self._steps_max = steps_max
        self._selector = _Selector(self)
        self._now_s = 0.0
        self._thread_delay_s = thread_delay_s
        self.steps = 0
        self.before_step: Callable[[int], None] | None = None
        self.on_time: Callable[[float], None] | None = None
        self._tasks: dict[Life | None, list[_Task]] = {}
        self.set_task_factory(self._make_task)
        self.failures: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.failures.append(context))

    # --- time ---

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now_s

    def pass_time(self, timeout_s: float | None) -> None:
        """Go to the next timer."""
        if timeout_s is None:
            raise Stuck("nothing will ever happen again")
        self._now_s += timeout_s

    # --- what asyncio asks of a loop ---

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """As the base class; timers of one moment go in the order in which they were set."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._scheduled, (when, next(_numbers), timer))
        timer._scheduled = True  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio's own bookkeeping
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return _Future(loop=self)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task = _Task(coro, loop=loop, **options)
        context = options.get("context")
        life = current_life.get() if context is None else context.get(current_life)
        self._tasks.setdefault(life, []).append(task)
        return task

    def _process_events(self, event_list: list[Any]) -> None:
        """There are no files."""

    def _write_to_self(self) -> None:
        """There is no other thread to be woken from."""

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """Run `func` as a step of its own after a moment; its future is done right after."""
        del executor
        future: asyncio.Future[T] = self.create_future()

        def step() -> None:
            try:
                value = func(*args)
            except BaseException as error:  # noqa: BLE001 - an executor hands over whatever it was
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(value)

        self.call_later(self._thread_delay_s(), step)
        return future

    # --- steps ---

    def resume(self, life: Life) -> None:
        """A paused life goes on with what came meanwhile."""
        self._ready.extend(life.held)
        life.held.clear()

    def _run_once(self) -> None:
        """As the base class, but callbacks of the dead are dropped and every step is counted."""
        while self._scheduled and self._scheduled[0][2].cancelled():
            heapq.heappop(self._scheduled)
        if self._ready:
            timeout: float | None = 0.0
        elif self._scheduled:
            timeout = max(0.0, self._scheduled[0][0] - self._now_s)
        else:
            timeout = None
        if not self._stopping or self._ready:
            self._selector.select(timeout)
        # Exactly at its time: adding a difference may fall short of it by a rounding.
        while self._scheduled and self._scheduled[0][0] <= self._now_s + 1e-12:
            when, _, handle = heapq.heappop(self._scheduled)
            handle._scheduled = False  # noqa: SLF001 - this is asyncio's own bookkeeping
            self._now_s = max(self._now_s, when)
            self._ready.append(handle)
        if self.on_time is not None:
            self.on_time(self._now_s)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if handle.cancelled():
                continue
            life = handle._context.get(current_life)  # noqa: SLF001 - whose callback it is
            if life is not None and life.is_dead:
                continue
            if life is not None and life.is_paused:
                # A stopped process: what came meanwhile is done when it goes on, in order.
                life.held.append(handle)
                continue
            self.steps += 1
            if self.steps > (self._steps_max or SIM_STEPS_MAX):
                raise Stuck(f"more than {self._steps_max or SIM_STEPS_MAX} steps")
            if self.before_step is not None:
                self.before_step(self.steps)
                if handle.cancelled() or (life is not None and life.is_dead):
                    continue
            handle._run()  # noqa: SLF001 - as the base class does

    def bury(self) -> None:
        """The world has ended: let go of every coroutine without a word about it."""
        self._ready.clear()
        self._scheduled.clear()
        while self._tasks:  # a `finally` block may start tasks of its own
            _, tasks = self._tasks.popitem()
            for task in tasks:
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio's own switch
                _let_go(task.get_coro())
        self._ready.clear()
        self._scheduled.clear()


def _let_go(coroutine: Generator[Any, Any, Any] | Coroutine[Any, Any, Any] | None) -> None:
    """Close what is left of a coroutine; whatever its `finally` blocks object is moot."""
    if coroutine is None:
        return
    try:
        coroutine.close()
    except BaseException as error:  # noqa: BLE001 - the world it belongs to is gone
        _log.debug("buried", error=repr(error))
