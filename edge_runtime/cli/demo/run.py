"""The demo's course: start, submit, disturb, count, tell.

The demo succeeds only where the separate subscriber counted exactly one canonical result for
every item, and every fault struck a running unit. Where the cars were done before that, there is
an encore: pictures to read, which are counted as all items are.
"""

import asyncio
import contextlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

from edge_runtime.cli.demo.answers import Answer, JobAnswers, closest_pairs, few_lines, pictures
from edge_runtime.cli.demo.director import Act, Action, Director, is_running
from edge_runtime.cli.demo.house import TENANT, House, HouseOptions
from edge_runtime.cli.demo.live import JobProgress, Scene, View
from edge_runtime.cli.demo.questions import (
    FACES_DEFAULT,
    SENTENCES_DEFAULT,
    TEXTS_DEFAULT,
    Question,
    ask_faces,
    ask_sentences,
    ask_texts,
)
from edge_runtime.cli.demo.report.data import (
    FaultKind,
    JobRow,
    ReportData,
    ResultMark,
    Summary,
)
from edge_runtime.cli.demo.report.timeline import fault_name
from edge_runtime.contract.errors import EdgeError, LocalError
from edge_runtime.contract.http import AttemptEnd, AttemptView, CarView
from edge_runtime.contract.reasons import Availability

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient, JobHandle

_READY_TIMEOUT_S: Final = 90.0
_RECOVER_TIMEOUT_S: Final = 30.0
_COUNT_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.2
_PAGE: Final = 1_000
_PAIRS_SHOWN: Final = 2
_ENCORES_ALLOWED: Final = 5
_OWNER_IN: Final = {"is_occupied": True}
_OWNER_OUT: Final = {"is_occupied": False}
_HOT: Final = {"compute_temperature_c": 97.0}
_COOL: Final = {"compute_temperature_c": 45.0}


class DemoFailed(LocalError):  # noqa: N818 - named for what happened
    """The demo did not end as it must; the message says in what."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`items` is per job, None for each job's own number; `timeout_s` bounds the jobs."""

    cars: int
    items: int | None
    seed: int
    broker: str
    faults: bool
    models: Path
    data: Path
    cache: Path
    state_dir: Path
    timeout_s: float


@dataclass(slots=True)
class _Job:
    """A submitted job and what came back."""

    question: Question
    handle: "JobHandle"
    answers: JobAnswers
    is_encore: bool
    marks: list[ResultMark] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The dispatcher's id of it."""
        return self.handle.id


@dataclass(slots=True)
class Outcome:
    """How the demo ended: its figures, the report's data, and what was wrong (empty: nothing)."""

    summary: Summary
    report: ReportData
    faults: list[str]


@dataclass(frozen=True, slots=True)
class Programme:
    """The jobs, and one more for where they were done before every fault had struck."""

    questions: Sequence[Question]
    encore: Callable[[], Question]
    """Makes it (blocking): most runs need none."""


def make_programme(options: DemoOptions, view: View) -> Programme:
    """Make the jobs' items (blocking). Raises `LocalError` where the data is missing."""
    from edge_runtime.vehicle.models.importers.data import fetch_demo_data

    data = fetch_demo_data(options.cache, options.data, view.say)
    return Programme(
        questions=(
            ask_faces(data.frames_video, options.items or FACES_DEFAULT),
            ask_texts(data.text_images, options.items or TEXTS_DEFAULT),
            ask_sentences(options.items or SENTENCES_DEFAULT, options.seed),
        ),
        encore=partial(ask_texts, data.text_images, TEXTS_DEFAULT),
    )


class Demo:
    """One run."""

    def __init__(self, options: DemoOptions, house: House, view: View) -> None:
        self._options = options
        self._house = house
        self._view = view
        self._jobs: list[_Job] = []
        self._collecting: list[asyncio.Task[None]] = []
        self._attempts: list[AttemptView] = []
        self._killed = 0
        wanted = [FaultKind.OWNER_RETURNED, FaultKind.KILLED, FaultKind.OVERHEATED]
        self._director = Director(wanted if options.faults else [])

    async def run(self, programme: Programme) -> Outcome:
        """Run the whole course in a house that is running. Raises `EdgeError`."""
        from edge_runtime.client import EdgeClient

        async with EdgeClient(self._house.url, TENANT, unreachable_after_s=_POLL_S) as client:
            await self._await_ready(client)
        async with EdgeClient(self._house.url, TENANT) as client:
            started_ms = _now_ms()
            try:
                for question in programme.questions:
                    await self._ask(client, question)
                await self._watch(client, programme.encore)
            finally:
                for task in self._collecting:
                    task.cancel()
                await asyncio.gather(*self._collecting, return_exceptions=True)
            finished_ms = max(
                (mark.at_ms for job in self._jobs for mark in job.marks), default=_now_ms()
            )
            counted = await self._count()
            self._attempts = await _all_attempts(client)
        return self._conclude(counted, started_ms, finished_ms)

    # --- before ------------------------------------------------------------

    async def _await_ready(self, client: "EdgeClient") -> None:
        """Wait until every car says that it is ready, and the subscriber that it listens."""
        self._view.say(
            f"broker {self._house.broker_url}, dispatcher {self._house.url}, "
            f"{len(self._house.cars)} cars, each its own process"
        )
        message = await self._house.subscriber.receive()
        if message.get("event") != "subscribed":
            raise DemoFailed(f"the subscriber could not subscribe: {message}")
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        cars: Sequence[CarView] = ()
        while sum(car.availability is Availability.READY for car in cars) < len(self._house.cars):
            if time.monotonic() > deadline_s:
                raise DemoFailed(f"not every car became ready: {_states(cars)}")
            self._house.check()
            # The dispatcher may still be starting.
            with contextlib.suppress(EdgeError):
                cars = (await client.fleet(limit=_PAGE)).cars
                self._show(cars, ())
            await asyncio.sleep(_POLL_S)
        self._view.say(f"{len(cars)} cars are ready")

    async def _ask(
        self, client: "EdgeClient", question: Question, *, is_encore: bool = False
    ) -> None:
        """Submit a job, and take in its results from now on."""
        handle = client.submit(question.model, question.items, deadline_s=self._options.timeout_s)
        status = await handle
        job = _Job(question, handle, JobAnswers(question), is_encore)
        self._jobs.append(job)
        await self._house.subscriber.send({"job": status.job, "items": len(question.items)})
        self._view.say(
            f"submitted {question.label}: {len(question.items)} items for {question.model}"
        )
        self._collecting.append(asyncio.create_task(self._collect(job), name=job.name))

    # --- while ------------------------------------------------------------

    async def _collect(self, job: _Job) -> None:
        """Take in a job's results as they come."""
        async for result in job.handle:
            job.marks.append(ResultMark(job=job.name, at_ms=result.at_ms))
            if result.error is not None:
                job.answers.failed[result.item] = result.error.code.value
            else:
                job.answers.by_item[result.item] = Answer(result.output, result.vehicle)
        if not job.is_encore:
            for line in few_lines(job.answers):
                self._view.say(f"  {line}")

    async def _watch(self, client: "EdgeClient", encore: Callable[[], Question]) -> None:
        """Show, and disturb, until the jobs have ended and the disturbed cars are back."""
        deadline_s = time.monotonic() + self._options.timeout_s
        over_s: float | None = None
        encores = 0
        while True:
            self._house.check()
            fleet, attempts = await asyncio.gather(client.fleet(limit=_PAGE), _all_attempts(client))
            self._show(fleet.cars, attempts)
            for task in self._collecting:
                if task.done():
                    task.result()
            is_over = all(task.done() for task in self._collecting)
            for action in self._director.observe(
                fleet.cars,
                attempts,
                _now_ms(),
                is_over=is_over,
                items_waiting=self._items_waiting(attempts),
            ):
                await self._act(action)
            if is_over and self._director.wanted and encores < _ENCORES_ALLOWED:
                encores += 1
                question = replace(await asyncio.to_thread(encore), label="text again")
                await self._ask(client, question, is_encore=True)
            elif is_over:
                over_s = over_s or time.monotonic()
                is_late = time.monotonic() > over_s + _RECOVER_TIMEOUT_S
                if self._director.is_done or self._director.wanted or is_late:
                    return
            elif time.monotonic() > deadline_s:
                raise DemoFailed(f"not done after {self._options.timeout_s:g} s: {self._progress}")
            await asyncio.sleep(_POLL_S)

    def _items_waiting(self, attempts: Sequence[AttemptView]) -> int:
        """Items that are neither finished nor on a car, as far as is known."""
        on_cars = sum(a.items - a.items_done for a in attempts if a.end is None)
        return sum(job.items - job.done for job in self._progress) - on_cars

    async def _act(self, action: Action) -> None:
        car = self._house.cars[action.vehicle]
        match action.act:
            case Act.OWNER_RETURNS:
                self._view.say(f"! {action.vehicle}: the owner gets in")
                await car.send(_OWNER_IN)
            case Act.OWNER_LEAVES:
                self._view.say(f"  {action.vehicle}: the owner leaves")
                await car.send(_OWNER_OUT)
            case Act.OVERHEAT:
                self._view.say(f"! {action.vehicle}: its computer is at {_HOT_C:.0f} °C")
                await car.send(_HOT)
            case Act.COOL_DOWN:
                self._view.say(f"  {action.vehicle}: it cools down")
                await car.send(_COOL)
            case Act.KILL_AND_RESTART:
                self._view.say(f"! {action.vehicle}: SIGKILL to process {car.pid}")
                self._killed += 1
                await self._house.restart_car(action.vehicle)
            case _:
                assert_never(action.act)

    def _show(self, cars: Sequence[CarView], attempts: Sequence[AttemptView]) -> None:
        labels = {job.name: job.question.label for job in self._jobs}
        current: dict[str, str] = {}
        done: dict[str, int] = {}
        for attempt in attempts:
            done[attempt.vehicle] = done.get(attempt.vehicle, 0) + attempt.items_done
            if is_running(attempt):
                current.setdefault(attempt.vehicle, labels.get(attempt.job, ""))
        ordered = sorted(cars, key=lambda car: (len(car.vehicle), car.vehicle))
        self._view.show(Scene(ordered, current, done, self._progress))

    @property
    def _progress(self) -> list[JobProgress]:
        return [
            JobProgress(job.question.label, len(job.marks), len(job.question.items))
            for job in self._jobs
        ]

    # --- after ------------------------------------------------------------

    async def _count(self) -> dict[str, Any]:
        """The subscriber's count."""
        subscriber = self._house.subscriber
        await subscriber.send({"finish": _COUNT_TIMEOUT_S})
        counted = await subscriber.receive()
        if counted.get("event") != "counted":
            raise DemoFailed(f"the subscriber could not count: {counted}")
        return counted

    def _conclude(self, counted: dict[str, Any], started_ms: int, finished_ms: int) -> Outcome:
        summary = Summary(
            cars=len(self._house.cars),
            jobs=len(self._jobs),
            items=counted["items"],
            results=counted["results"],
            lost=counted["lost"],
            duplicate_results=counted["duplicates"],
            attempts=len(self._attempts),
            released=sum(a.end is AttemptEnd.RELEASED for a in self._attempts),
            reissued=count_reissued(self._attempts),
            killed_cars=self._killed,
            stop_latency_ms_max=max(
                (a.stop_latency_ms for a in self._attempts if a.stop_latency_ms is not None),
                default=None,
            ),
            wall_s=round((finished_ms - started_ms) / 1000, 2),
            broker=self._options.broker,
        )
        return Outcome(
            summary, self._report(summary, started_ms, finished_ms), self._wrong(summary)
        )

    def _report(self, summary: Summary, started_ms: int, finished_ms: int) -> ReportData:
        answered = [job.answers for job in self._jobs if not job.is_encore]
        pairs = [
            pair
            for answers in answered
            if answers.question.task == "feature-extraction"
            for pair in closest_pairs(answers, _PAIRS_SHOWN)
        ]
        return ReportData(
            summary=summary,
            started_ms=started_ms,
            finished_ms=finished_ms,
            cars=tuple(self._house.cars),
            jobs=tuple(
                JobRow(
                    job=job.name,
                    label=job.question.label,
                    model=job.question.model,
                    task=job.question.task,
                    items=len(job.question.items),
                )
                for job in self._jobs
            ),
            attempts=tuple(self._attempts),
            results=tuple(mark for job in self._jobs for mark in job.marks),
            faults=self._director.marks(),
            pictures=pictures(answered),
            similar=tuple(pairs),
            machine=f"{os.cpu_count()} shared cores, {platform.system()} {platform.machine()}.",
        )

    def _wrong(self, summary: Summary) -> list[str]:
        """Everything that keeps this run from being a success, a line each."""
        wrong = []
        if summary.lost:
            wrong.append(f"{summary.lost} items have no canonical result")
        if summary.duplicate_results:
            wrong.append(f"{summary.duplicate_results} results are there twice")
        if summary.results != summary.items:
            wrong.append(f"{summary.results} results for {summary.items} items")
        wrong += [
            f"{job.question.label}: item {item} failed with {code}"
            for job in self._jobs
            for item, code in job.answers.failed.items()
        ]
        wrong += [
            f"no unit was running when it was to happen: {fault_name(kind)}"
            for kind in self._director.unfired
        ]
        if not self._director.unfired and not self._director.is_done:
            wrong.append("a disturbed car did not come back")
        return wrong


_HOT_C: Final = _HOT["compute_temperature_c"]


async def run_demo(
    options: DemoOptions, view: View, tell: Callable[[Outcome], None], *, stay: bool = False
) -> None:
    """Run the demo from nothing to its figures, and `tell` them. Raises `EdgeError`.

    With `stay`, the house goes on until this is cancelled. Leaves no process.
    """
    house = House(
        HouseOptions(
            cars=options.cars,
            broker=options.broker,
            models=options.models,
            state_dir=options.state_dir,
        )
    )
    programme = asyncio.create_task(asyncio.to_thread(make_programme, options, view))
    async with house.running():
        tell(await Demo(options, house, view).run(await programme))
        if stay:
            await _stay(house, view)


async def _stay(house: House, view: View) -> None:
    """Say where everything is, and keep it running until cancelled, whoever is killed."""
    for name, url in (
        ("dashboard", f"{house.url}/dashboard/"),
        ("HTTP API", f"{house.url}/v1"),
        ("its description", f"{house.url}/openapi.json"),
        ("metrics", f"{house.url}/metrics"),
        ("MQTT broker", f"{house.broker_url} (namespace {house.namespace}, tenant {TENANT})"),
        ("OpenAI's client", f"export OPENAI_BASE_URL={house.url}/v1"),
        ("Triton's client", f"triton_infer.py {house.url.removeprefix('http://')} minilm Hello"),
    ):
        view.say(f"{name:<16} {url}")
    view.say("everything keeps running until Ctrl-C; whom you kill is started again")
    while True:
        for line in await house.restart_ended():
            view.say(line)
        await asyncio.sleep(_POLL_S)


def count_reissued(attempts: Sequence[AttemptView]) -> int:
    """Attempts of a unit that an earlier car had taken and not brought to its end."""
    cut: dict[tuple[str, int], tuple[int, int]] = {}
    for attempt in attempts:
        taken = attempt.taken_ms is not None
        if taken and attempt.end in {AttemptEnd.RELEASED, AttemptEnd.LEASE_EXPIRED}:
            fence = (attempt.epoch, attempt.counter)
            unit = (attempt.job, attempt.unit)
            cut[unit] = min(fence, cut.get(unit, fence))
    return sum(
        attempt.taken_ms is not None
        and (attempt.job, attempt.unit) in cut
        and (attempt.epoch, attempt.counter) > cut[attempt.job, attempt.unit]
        for attempt in attempts
    )


async def _all_attempts(client: "EdgeClient") -> list[AttemptView]:
    attempts: list[AttemptView] = []
    while True:
        page = await client.attempts(limit=_PAGE, after=len(attempts))
        attempts += page
        if len(page) < _PAGE:
            return attempts


def _states(cars: Sequence[CarView]) -> str:
    return (
        ", ".join(
            f"{car.vehicle} {car.availability.value}{f' ({car.hold.value})' if car.hold else ''}"
            for car in cars
        )
        or "no car was seen"
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
