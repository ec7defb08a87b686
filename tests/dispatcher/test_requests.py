"""Requests of tenants over the bus: rates, queues, answers and refusals."""

import asyncio
from collections.abc import AsyncIterator
from typing import Self

import msgspec
import pytest
from scripted_car import ScriptedCar
from service_rig import House

from edge_runtime.bus import BusSettings, Connected, MemoryBus, Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import (
    FetchSince,
    ItemFailed,
    JobResults,
    PublicMessage,
    RequestRefused,
    ResultEntry,
    ResultError,
)
from edge_runtime.contract.reasons import ItemError, JobState, RequestRefusal
from edge_runtime.contract.topics import Topics
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.pages import entry_bytes, pages

TOPICS = Topics()
ANSWERS = TOPICS.tenant_answers("t1", "reader")


class Asker:
    """Asks for `tenant` and collects what comes back, on any topic of the two tenants."""

    def __init__(self, house: House, tenant: str = "t1") -> None:
        self.tenant = tenant
        self.heard: list[tuple[str, PublicMessage]] = []
        self.changed = asyncio.Event()
        self.bus = MemoryBus(
            BusSettings(
                "memory://", f"asker-{tenant}", subscriptions=((f"er/1/t/{tenant}/answers/#", 1),)
            ),
            house.broker,
        )

    async def __aenter__(self) -> Self:
        await self.bus.__aenter__()
        up = asyncio.Event()
        self._task = asyncio.create_task(self._listen(up))
        await asyncio.wait_for(up.wait(), 10)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.bus.__aexit__(*exc)

    async def _listen(self, up: asyncio.Event) -> None:
        async for event in self.bus.events():
            if isinstance(event, Connected):
                up.set()
            elif isinstance(event, Message):
                self.heard.append((event.topic, codec.decode_public(event.payload)))
                self.changed.set()

    async def send(self, payload: bytes, **properties: object) -> None:
        topic = TOPICS.tenant_request(self.tenant)
        await self.bus.publish(Message(topic, payload, **properties))  # type: ignore[arg-type]

    async def ask(self, job: str, cursor: int = 0, respond_to: str | None = None) -> None:
        answers = TOPICS.tenant_answers(self.tenant, "reader")
        request = FetchSince(job=job, cursor=cursor, respond_to=respond_to or answers)
        await self.send(codec.encode(request))

    async def told(self, count: int = 1) -> list[PublicMessage]:
        """The next `count` messages."""
        async with asyncio.timeout(20):
            while len(self.heard) < count:
                self.changed.clear()
                await self.changed.wait()
        told, self.heard = self.heard[:count], self.heard[count:]
        return [message for _, message in told]

    async def refusal(self) -> RequestRefused:
        (message,) = await self.told()
        assert isinstance(message, RequestRefused)
        return message


@pytest.fixture
async def asker(house: House) -> AsyncIterator[Asker]:
    Chores(house.service).start()
    async with Asker(house) as opened:
        yield opened


async def test_an_answer_says_what_was_asked_and_how_the_job_is(house: House, asker: Asker) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(10)
        await house.collect(job)
        await asker.ask(job, 7)
        await asker.ask(job, 10)
        page, nothing = await asker.told(2)
    assert isinstance(page, JobResults)
    assert isinstance(nothing, JobResults)
    assert [entry.cursor for entry in page.results] == [8, 9, 10]
    assert page.since == 7
    assert (nothing.since, nothing.results) == (10, ())
    assert nothing.status is not None
    assert (nothing.status.state, nothing.status.last_cursor) == (JobState.DONE, 10)


async def test_a_long_job_is_answered_in_pages_that_leave_nothing_out(
    house: House, asker: Asker
) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(700)
        await house.collect(job)
        cursors: list[int] = []
        sizes = []
        while not cursors or cursors[-1] < 700:
            await asker.ask(job, cursors[-1] if cursors else 0)
            (page,) = await asker.told()
            assert isinstance(page, JobResults)
            cursors += [entry.cursor for entry in page.results]
            sizes.append(len(page.results))
    assert cursors == list(range(1, 701))
    assert max(sizes) <= limits.FEED_PAGE_ITEMS


async def test_failures_with_long_words_are_published_and_fetched(
    house: House, asker: Asker
) -> None:
    """512 of them with 512 characters each are more than any one message holds."""

    def fails(index: int) -> ItemFailed:
        words = "w" * limits.TEXT_MAX_CHARS
        return ItemFailed(index=index, code=ItemError.WRONG_SHAPE, message=words)

    live = MemoryBus(
        BusSettings("memory://", "live", subscriptions=((TOPICS.tenant_all("t1"), 1),)),
        house.broker,
    )
    seen: list[int] = []
    async with live, ScriptedCar(house.broker, "car1", units_max=1, answer=fails):
        events = live.events()
        assert isinstance(await anext(events), Connected)
        job = await house.submit(512)
        async with asyncio.timeout(30):
            while len(seen) < 512:
                event = await anext(events)
                if isinstance(event, Message) and event.topic.endswith("/results"):
                    told = codec.decode_public(event.payload)
                    assert isinstance(told, JobResults)
                    seen += [entry.cursor for entry in told.results]
        cursor = 0
        while cursor < 512:
            await asker.ask(job, cursor)
            (page,) = await asker.told()
            assert isinstance(page, JobResults)
            assert page.results[0].cursor == cursor + 1
            cursor = page.results[-1].cursor
    assert seen == list(range(1, 513))
    assert house.service.counters["publish_refused"] == 0


@pytest.mark.parametrize(
    "target",
    [
        "er/1/t/t2/answers/reader",
        "er/1/t/t1/#",
        "er/1/t/t1/+/x",
        "er/1/t/t1/answers/a\0b",
        "er/1/t/t1/request",
        "er/1/t/t1/jobs/j1/results",
        "er/1/t/t1/",
        "er/1/t/t1/answers/" + "x" * 300,
        "er/1/t/t1/a/b/c/d/e",
        "other",
        "$SYS/x",
    ],
)
async def test_nothing_is_answered_where_it_may_not(
    house: House, asker: Asker, target: str
) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(1)
        await house.collect(job)
        await asker.ask(job, 0, target)
        await asker.ask(job, 0)
        await asker.told()
    assert house.service.counters["rejected_request_not_allowed"] == 1
    assert asker.heard == []


async def test_anothers_job_is_no_job(house: House, asker: Asker) -> None:
    async with ScriptedCar(house.broker, "car1"), Asker(house, "t2") as stranger:
        job = await house.submit(1)
        await house.collect(job)
        await stranger.ask(job)
        refused = await stranger.refusal()
        await asker.ask("never-there", 3)
        same = await asker.refusal()
    assert (refused.reason, refused.job) == (RequestRefusal.UNKNOWN_JOB, job)
    assert (same.reason, same.job, same.since) == (RequestRefusal.UNKNOWN_JOB, "never-there", 3)
    assert house.service.counters["rejected_request_unknown_job"] == 2


@pytest.mark.parametrize(
    ("payload", "reason", "counter"),
    [
        (b"\xc1", RequestRefusal.MALFORMED, "malformed"),
        (msgspec.msgpack.encode({"type": "tomorrow"}), RequestRefusal.MALFORMED, "unknown_tag"),
        (
            msgspec.msgpack.encode({"type": "fetch_since", "job": "j", "cursor": -1}),
            RequestRefusal.MALFORMED,
            "wrong_type",
        ),
        (b"\x81" * 100_000, RequestRefusal.OVERSIZE, "oversize"),
        (bytes(limits.REQUEST_MAX_BYTES + 1), RequestRefusal.OVERSIZE, "oversize"),
    ],
)
async def test_what_is_no_request_is_refused_with_its_reason(
    house: House, asker: Asker, payload: bytes, reason: RequestRefusal, counter: str
) -> None:
    await asker.send(payload, response_topic=ANSWERS, correlation=b"7")
    assert (await asker.refusal()).reason is reason
    await asker.send(payload)
    await house.until(lambda: house.service.counters[f"rejected_request_{counter}"] == 2)
    assert asker.heard == []


async def test_a_correlation_is_part_of_the_requests_size(asker: Asker) -> None:
    ask = codec.encode(FetchSince(job="j", cursor=0))
    await asker.send(ask, response_topic=ANSWERS, correlation=bytes(limits.REQUEST_MAX_BYTES))
    assert (await asker.refusal()).reason is RequestRefusal.OVERSIZE


async def test_who_asks_thousands_of_times_is_refused_and_delays_nobody(
    house: House, asker: Asker
) -> None:
    async with ScriptedCar(house.broker, "car1"), Asker(house, "t2") as flooder:
        job = await house.submit(5)
        await house.collect(job)
        for _ in range(3_000):
            request = FetchSince(job="none", cursor=0, respond_to="er/1/t/t2/answers/x")
            flooder.bus.publish_soon(Message(TOPICS.tenant_request("t2"), codec.encode(request)))
        await asker.ask(job)
        (mine,) = await asker.told()
        assert isinstance(mine, JobResults)
        counters = house.service.counters
        kinds = ("rate_exceeded", "unknown_job", "busy")
        await house.until(
            lambda: sum(counters[f"rejected_request_{kind}"] for kind in kinds) == 3_000
        )
        refused = counters["rejected_request_rate_exceeded"]
    reasons = [told.reason for _, told in flooder.heard if isinstance(told, RequestRefused)]
    over = [reason for reason in reasons if reason is RequestRefusal.RATE_EXCEEDED]
    answered = 3_000 - refused
    # The burst, and what its rate allowed while the flood was taken; said seldom, not each time.
    assert limits.REQUESTS_BURST <= answered <= 1_000
    assert 1 <= len(over) <= 20


async def test_an_empty_request_is_how_a_reader_tries_its_rights(
    house: House, asker: Asker
) -> None:
    before = dict(house.service.counters)
    await asker.send(b"")
    await asker.ask("none")
    await asker.refusal()
    counted = {k: v for k, v in house.service.counters.items() if before.get(k, 0) != v}
    assert counted == {"rejected_request_unknown_job": 1}


def test_pages_are_cut_by_what_entries_take() -> None:
    error = ResultError(code=ItemError.UNKNOWN, message="w" * limits.TEXT_MAX_CHARS)
    entries = [ResultEntry(cursor=n, item=n, at_ms=0, error=error) for n in range(1, 1_000)]
    cut = list(pages(entries))
    assert [entry for page in cut for entry in page] == entries
    for page in cut:
        assert sum(map(entry_bytes, page)) <= limits.UNIT_MAX_BYTES
        message = codec.encode(JobResults(job="j", results=tuple(page)))
        assert len(message) <= limits.UNIT_MAX_BYTES
    large = ResultEntry(cursor=1, item=1, at_ms=0, output=msgspec.Raw(bytes(200_000)))
    assert list(pages([large, large])) == [[large], [large]]
    assert list(pages([])) == []
