"""The dispatcher's shell on a memory broker: real core, real SQLite, scripted cars."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripted_car import ScriptedCar, echo
from service_rig import House, job_request, tensor_item

from edge_runtime.bus import (
    BusSettings,
    Connected,
    DropReason,
    MemoryBroker,
    MemoryBus,
    Message,
)
from edge_runtime.contract import codec, limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import (
    Fence,
    FetchSince,
    ItemFailed,
    ItemResult,
    JobResults,
    JobStatus,
    Taken,
)
from edge_runtime.contract.reasons import ChunkVerdict, ItemError, JobState
from edge_runtime.contract.topics import Topics, Up
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings, system_clock
from edge_runtime.dispatcher.storage import SqliteStore, StoreBusy, StoreFull

OpenHouse = Callable[..., Any]


async def test_a_job_runs_and_its_results_stream_in_order(house: House) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(300)
        entries, status = await house.collect(job)
    assert [entry.cursor for entry in entries] == list(range(1, 301))
    assert sorted(entry.item for entry in entries) == list(range(300))
    assert status.state is JobState.DONE
    assert all(msgspec.msgpack.decode(e.output) == {"item": e.item} for e in entries)
    house.service.core.check()


async def test_a_reader_resumes_from_its_cursor(house: House) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(50)
        await house.collect(job)
        entries, _ = await house.collect(job, cursor=30)
    assert [entry.cursor for entry in entries] == list(range(31, 51))


async def test_the_same_key_is_the_same_job_and_another_body_is_refused(house: House) -> None:
    first, second = await house.desk.submit("t1", [job_request(2, idempotency_key="k")] * 2)
    assert first.status is not None
    assert second.status is not None
    assert second.status.job == first.status.job
    assert (first.existing, second.existing) == (False, True)
    (again,) = await house.desk.submit("t1", [job_request(2, idempotency_key="k")])
    assert again.status is not None
    assert (again.status.job, again.existing) == (first.status.job, True)
    (other,) = await house.desk.submit("t1", [job_request(3, idempotency_key="k")])
    assert other.problem is not None
    assert (other.problem.status, other.problem.field) == (409, "idempotency_key")
    (tenant,) = await house.desk.submit("t2", [job_request(3, idempotency_key="k")])
    assert tenant.existing is False


async def test_a_default_spelled_out_is_the_same_body(house: House) -> None:
    (first,) = await house.desk.submit("t1", [job_request(1, idempotency_key="k")])
    spelled = job_request(1, idempotency_key="k", deadline_s=float(limits.JOB_DEADLINE_DEFAULT_S))
    (again,) = await house.desk.submit("t1", [spelled])
    assert first.status is not None
    assert again.status is not None
    assert (again.status.job, again.existing) == (first.status.job, True)


async def test_the_same_key_from_two_requests_at_once_is_one_job(house: House) -> None:
    answers = await asyncio.gather(
        *(house.desk.submit("t1", [job_request(1, idempotency_key="k")]) for _ in range(8))
    )
    jobs = {answer.status.job for (answer,) in answers if answer.status is not None}
    assert len(jobs) == 1
    assert sum(not answer.existing for (answer,) in answers) == 1


@pytest.mark.parametrize(
    ("request_", "status", "field"),
    [
        (JobRequest(model="nothing", items=(tensor_item(),)), 404, "model"),
        (JobRequest(model="noop", items=()), 422, "items"),
        (JobRequest(model="noop", items=(ItemInput(data=b"\xc1"),)), 422, "items[0].data"),
        (JobRequest(model="noop", items=(tensor_item(), ItemInput())), 422, "items[1]"),
        (
            JobRequest(model="noop", items=(ItemInput(data=bytes(limits.ITEM_MAX_BYTES + 1)),)),
            413,
            "items[0]",
        ),
    ],
)
async def test_bad_jobs_are_refused_with_field(
    house: House, request_: JobRequest, status: int, field: str
) -> None:
    (answer,) = await house.desk.submit("t1", [request_])
    assert answer.problem is not None
    assert (answer.problem.status, answer.problem.field) == (status, field)


async def test_a_wrong_tensor_is_refused_by_name(house: House) -> None:
    tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": bytes(8)}
    item = ItemInput(data=msgspec.msgpack.encode([tensor]))
    (answer,) = await house.desk.submit("t1", [JobRequest(model="noop", items=(item,))])
    assert answer.problem is not None
    assert answer.problem.field == "items[0].x.datatype"


async def test_a_failed_item_is_a_result_and_a_dead_letter_that_can_run_again(
    house: House,
) -> None:
    broken = True

    def answer(index: int) -> ItemResult:
        if index == 1 and broken:
            return ItemFailed(index=1, code=ItemError.UNDECODABLE_INPUT, message="not a JPEG")
        return echo(index)

    async with ScriptedCar(house.broker, "car1", answer=answer):
        job = await house.submit(3)
        entries, status = await house.collect(job)
        assert (status.done, status.failed) == (2, 1)
        (failed,) = [entry for entry in entries if entry.error is not None]
        assert failed.error is not None
        assert (failed.item, failed.error.code) == (1, ItemError.UNDECODABLE_INPUT)
        (letter,) = await house.desk.dead_letters("t1", None, limit=10)
        assert (letter.job, letter.item) == (job, 1)
        broken = False
        assert await house.desk.requeue("t1", job, ()) == 1
        await house.until(lambda: job not in house.service.core.state.jobs)
        entries, status = await house.collect(job)
    assert (status.state, status.done, status.failed) == (JobState.DONE, 3, 0)
    assert sorted(entry.item for entry in entries) == [0, 1, 2]
    assert await house.desk.dead_letters("t1", None, limit=10) == []


async def ended_with_a_failure(house: House) -> str:
    job = await house.submit(2, deadline_s=0.05, retention_s=0.01)
    _, status = await house.collect(job)
    assert (status.state, status.failed) == (JobState.EXPIRED, 2)
    return job


def hesitate(house: House) -> tuple[asyncio.Event, asyncio.Event]:
    """A requeue stops between reading the dead letters and running them; (it has read, go on)."""
    has_read, go_on = asyncio.Event(), asyncio.Event()
    read = house.service.store.failed_items

    async def reading(*arguments: Any) -> Any:
        event = await read(*arguments)
        has_read.set()
        await go_on.wait()
        return event

    house.service.store.failed_items = reading  # type: ignore[method-assign]  # the real one, slower
    return has_read, go_on


@pytest.mark.parametrize("how", ["delete", "sweep"])
async def test_an_ended_job_is_either_deleted_or_run_again(house: House, how: str) -> None:
    job = await ended_with_a_failure(house)
    has_read, go_on = hesitate(house)
    requeue = asyncio.create_task(house.desk.requeue("t1", job, ()))
    await asyncio.wait_for(has_read.wait(), 10)
    is_sweep = how == "sweep"
    deleting = Chores(house.service).sweep() if is_sweep else house.desk.delete("t1", job)
    delete = asyncio.create_task(deleting)
    await asyncio.wait({delete}, timeout=0.3)  # it has every chance to come first
    go_on.set()
    assert await requeue == 2
    await delete
    kept = await house.service.store.job(job)
    assert (kept is None) == (how == "delete"), "the later one wins"
    assert (job in house.service.core.state.jobs) == (kept is not None)
    house.service.core.check()


async def test_cancel_takes_the_unit_back_and_later_chunks_are_not_wanted(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        job = await house.submit(4)
        await car.until(lambda c: bool(c.offers))
        status = await house.desk.cancel("t1", job)
        assert status.state is JobState.CANCELLED
        await car.until(lambda c: bool(c.cancels))
        car.chunks(car.finished(car.offers[0]))
        await car.until(lambda c: bool(c.answers))
    assert car.answers[0].verdict is ChunkVerdict.NOT_WANTED
    assert (await house.desk.cancel("t1", job)).state is JobState.CANCELLED


async def test_a_deleted_job_is_gone_and_its_chunks_are_not_wanted(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as car:
        job = await house.submit(4)
        await car.until(lambda c: bool(c.offers))
        await house.desk.delete("t1", job)
        with pytest.raises(Refusal) as refusal:
            await house.desk.job("t1", job)
        assert refusal.value.problem.status == 404
        car.chunks(car.finished(car.offers[0]))
        await car.until(lambda c: bool(c.answers))
    assert car.answers[0].verdict is ChunkVerdict.NOT_WANTED


async def test_garbage_on_every_topic_is_counted_and_the_service_goes_on(house: House) -> None:
    async with ScriptedCar(house.broker, "car1") as car:
        bomb = b"\x91" * 100_000
        for kind in Up:
            for payload in (b"", b"\xc1", bomb, b"\x93\xa3abc\x01\x02", bytes(300_000)):
                if len(payload) <= limits.MESSAGE_MAX_BYTES:
                    car.publish(kind, payload)
        car.publish(Up.STATE, codec.encode(["state"]), vehicle="car2")
        car.verdicts(Taken(unit=99, fence=Fence(1, 1)))
        car.bus.publish_soon(Message("er/1/zz/v/car1/up/state", b"x"))
        await car.until(lambda c: bool(c.cancels))
        job = await house.submit(5)
        _, status = await house.collect(job)
    assert status.done == 5
    counters = house.service.all_counters()
    assert counters["rejected_malformed"] >= 4
    assert counters["rejected_wrong_type"] >= 4
    assert counters["rejected_wrong_shard"] == 1
    assert counters["taken_stale"] == 1


async def test_another_cars_id_is_rejected(house: House) -> None:
    async with ScriptedCar(house.broker, "car1") as car, ScriptedCar(house.broker, "car2"):
        await house.until(lambda: len(house.service.core.fleet) == 2)
        car.seq = 99
        car.publish(Up.STATE, b"", vehicle="car2")
        state = ScriptedCar(house.broker, "car3")
        state.bus = car.bus
        state.birth()  # car3's messages on car3's topics are fine …
        await house.until(lambda: "car3" in house.service.core.fleet.row_of)
        liar = msgspec.msgpack.decode(codec.encode(["offline", "car1", 1, 1]))
        car.publish(Up.STATUS, msgspec.msgpack.encode(liar), vehicle="car2")  # … these are not
        await house.until(lambda: house.service.counters["rejected_wrong_vehicle"] == 1)
    assert house.service.core.fleet.view(0, 0).online


async def test_a_full_disk_refuses_new_work_keeps_what_it_has_and_recovers(house: House) -> None:
    store = house.service.store
    assert isinstance(store, SqliteStore)
    commit = store.commit
    full = True

    async def failing(commands: Any) -> int:
        if full:
            raise StoreFull("database or disk is full (SQLITE_FULL)")
        return await commit(commands)

    async with ScriptedCar(house.broker, "car1") as car:
        job = await house.submit(1)
        await house.collect(job)
        store.commit = failing  # type: ignore[method-assign]  # a real full disk is in test_store_*
        waiting = asyncio.create_task(house.submit(2))
        await house.until(lambda: house.service.store_state != "ok")
        with pytest.raises(Refusal) as refusal:
            await house.desk.submit("t1", [job_request()])
        assert refusal.value.problem.status == 507
        assert "full" in refusal.value.problem.message
        offers = len(car.offers)
        full = False
        _, status = await house.collect(await waiting)
    assert status.done == 2
    assert len(car.offers) > offers
    assert house.service.store_state == "ok"


async def test_a_nearly_full_disk_is_kept_for_results(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(1)
        monkeypatch.setattr(limits, "STORE_RESERVE_BYTES", 1 << 62)
        with pytest.raises(Refusal) as refusal:
            await house.desk.submit("t1", [job_request()])
        _, status = await house.collect(job)
    assert status.done == 1
    assert refusal.value.problem.status == 507
    assert "kept for results" in refusal.value.problem.message


async def test_a_restart_goes_on_where_the_store_stands(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with ScriptedCar(broker, "car1", works=False) as car:
        async with open_house(broker) as house:
            job = await house.submit(40)
            await car.until(lambda c: bool(c.offers))
            waiting = await house.submit(3)
        first = car.offers[0]
        async with open_house(broker) as house:
            assert house.service.core.state.epoch > first.fence.epoch
            car.works = True
            car.chunks(car.finished(first))  # taken before the restart, finished after it
            entries, status = await house.collect(job)
            await house.collect(waiting)
            house.service.core.check()
    assert status.done == 40
    assert sorted(entry.item for entry in entries) == list(range(40))
    assert [entry.cursor for entry in entries] == list(range(1, 41))


async def test_a_second_dispatcher_on_the_same_store_is_refused_by_name(house: House) -> None:
    second = SqliteStore(house.service.store.path, holder="another")  # type: ignore[attr-defined]
    service = DispatcherService(
        DispatcherSettings("memory://"), second, lambda s: MemoryBus(s, house.broker)
    )
    with pytest.raises(StoreBusy, match="held by dispatcher"):
        async with service:
            raise AssertionError("it started")


async def _read(bus: MemoryBus, decode: Callable[[Message], bool]) -> None:
    async with asyncio.timeout(15):
        async for event in bus.events():
            if isinstance(event, Message) and decode(event):
                return


async def test_third_parties_see_every_result_and_the_final_status(house: House) -> None:
    topics = Topics()
    settings = BusSettings(
        url="memory://", client_id="third", subscriptions=((topics.tenant_all("t1"), 1),)
    )
    seen: dict[int, int] = {}
    final: list[JobStatus] = []

    def take(message: Message) -> bool:
        match codec.decode_public(message.payload):
            case JobResults(results=results):
                seen.update((entry.cursor, entry.item) for entry in results)
            case JobStatus() as status if status.state.is_terminal:
                final.append(status)
        return bool(final) and len(seen) == 100

    async with MemoryBus(settings, house.broker) as bus, ScriptedCar(house.broker, "car1"):
        await house.submit(100)
        await _read(bus, take)
    assert sorted(seen) == list(range(1, 101))
    assert sorted(seen.values()) == list(range(100))
    assert final[0].last_cursor == 100


async def test_results_committed_while_the_broker_is_away_are_published_later(
    open_house: OpenHouse, tmp_path: Any
) -> None:
    """After a kill between commit and publish, the next dispatcher publishes what is above
    the published cursor."""
    broker = MemoryBroker()
    async with open_house(broker) as house, ScriptedCar(broker, "car1"):
        job = await house.submit(10)
        await house.collect(job)
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("UPDATE job SET published = 4")
    db.close()
    topics = Topics()
    settings = BusSettings(
        url="memory://", client_id="third", subscriptions=((topics.job_results("t1", job), 1),)
    )
    seen: list[int] = []

    def take(message: Message) -> bool:
        decoded = codec.decode_public(message.payload)
        assert isinstance(decoded, JobResults)
        seen.extend(entry.cursor for entry in decoded.results)
        return len(seen) == 6

    async with MemoryBus(settings, broker) as bus:
        async for event in bus.events():
            if isinstance(event, Connected):
                break
        async with open_house(broker):
            await _read(bus, take)
    assert seen == [5, 6, 7, 8, 9, 10]


async def _retained_states(broker: MemoryBroker, expected: int) -> dict[str, JobState]:
    """What the broker keeps of a tenant's jobs, once it is so many."""
    states: dict[str, JobState] = {}
    filters = ((Topics().tenant_all("t1"), 1),)
    settings = BusSettings(url="memory://", client_id="third", subscriptions=filters)

    def take(message: Message) -> bool:
        told = codec.decode_public(message.payload)
        if isinstance(told, JobStatus):
            states[told.job] = told.state
        return len(states) == expected

    async with MemoryBus(settings, broker) as bus:
        await _read(bus, take)
    return states


async def test_a_broker_that_forgot_everything_is_told_all_though_the_clock_was_set_back(
    tmp_path: Path, models_dir: Path
) -> None:
    broker, back_ms = MemoryBroker(), 0

    def clock() -> Now:
        now = system_clock()
        return Now(now.boot_ns, now.utc_ms - back_ms)

    settings = DispatcherSettings("memory://", models_dir=models_dir)
    store = SqliteStore(tmp_path / "store.db")
    async with (
        DispatcherService(settings, store, lambda s: MemoryBus(s, broker), clock) as service,
        ScriptedCar(broker, "car1"),
    ):
        house = House(service, broker)
        jobs = [await house.submit(1) for _ in range(3)]
        for job in jobs:
            await house.collect(job)
        await _retained_states(broker, 3)
        back_ms = 3_600_000
        broker.kill()
        broker.start()
        assert await _retained_states(broker, 3) == dict.fromkeys(jobs, JobState.DONE)


async def test_a_dispatcher_that_died_while_it_told_an_empty_broker_tells_it_all_again(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one finds the session of the one before: that proves nothing."""
    monkeypatch.setattr(limits, "JOB_STATUS_AGAIN_S", -60)
    first, second = MemoryBroker(), MemoryBroker()
    async with open_house(first) as house, ScriptedCar(first, "car1"):
        jobs = [await house.submit(1) for _ in range(3)]
        for job in jobs:
            await house.collect(job)
        await _retained_states(first, 3)
        await house.service.publisher.flush()
    # It came as far as its session on the new broker, and no further.
    settings = BusSettings("memory://", "er-dispatcher-dispatcher", session_expiry_s=3_600)
    async with MemoryBus(settings, second) as bus:
        await anext(bus.events())
    async with open_house(second):
        assert await _retained_states(second, 3) == dict.fromkeys(jobs, JobState.DONE)


async def test_fetch_since_answers_on_a_topic_of_the_same_tenant_only(house: House) -> None:
    Chores(house.service).start()
    topics = Topics()
    mine = "er/1/t/t1/inbox"
    settings = BusSettings(
        url="memory://", client_id="third", subscriptions=((mine, 1), ("er/1/t/t2/#", 1))
    )
    async with MemoryBus(settings, house.broker) as bus, ScriptedCar(house.broker, "car1"):
        job = await house.submit(10)
        await house.collect(job)
        for target in ("er/1/t/t2/inbox", "er/1/t/t1/#", mine):
            ask = codec.encode(FetchSince(job=job, cursor=7, respond_to=target))
            bus.publish_soon(Message(topics.tenant_request("t1"), ask))
        seen: list[int] = []

        def take(message: Message) -> bool:
            assert message.topic == mine
            decoded = codec.decode_public(message.payload)
            assert isinstance(decoded, JobResults)
            seen.extend(entry.cursor for entry in decoded.results)
            return True

        await _read(bus, take)
    assert seen == [8, 9, 10]
    assert house.service.counters["rejected_request_not_allowed"] == 2


async def test_retention_deletes_and_status_topics_are_cleared(house: House) -> None:
    async with ScriptedCar(house.broker, "car1"):
        job = await house.submit(1, retention_s=0.001)
        await house.collect(job)
        kept = await house.submit(1)
        await house.collect(kept)
        await house.until(lambda: not house.service.core.state.jobs)
        ended = await house.desk.job("t1", job)
        assert ended.finished_ms is not None
        await house.until(lambda: house.service.clock().utc_ms > (ended.finished_ms or 0) + 2)
        await Chores(house.service).sweep()
    assert await house.service.store.job(kept) is not None


async def test_statuses_are_cleared_though_the_clock_was_years_ahead_for_a_while(
    tmp_path: Path, models_dir: Path
) -> None:
    broker, ahead_ms = MemoryBroker(), 0
    day_ms = limits.JOB_STATUS_RETAINED_S * 1000

    def clock() -> Now:
        now = system_clock()
        return Now(now.boot_ns, now.utc_ms + ahead_ms)

    settings = DispatcherSettings("memory://", models_dir=models_dir)
    store = SqliteStore(tmp_path / "store.db")
    async with (
        DispatcherService(settings, store, lambda s: MemoryBus(s, broker), clock) as service,
        ScriptedCar(broker, "car1"),
    ):
        house, chores = House(service, broker), Chores(service)
        ahead_ms = 3_650 * day_ms
        await chores.sweep()
        ahead_ms = 0
        await chores.sweep()
        await house.collect(await house.submit(1))
        await _retained_states(broker, 1)
        ahead_ms = day_ms + 60_000
        await chores.sweep()
        await house.until(lambda: not service.publisher._statuses)
        await house.until(lambda: not [t for t in broker._retained if "/jobs/" in t])
    assert not [topic for topic in broker._retained if "/jobs/" in topic]


async def test_the_feed_follows_all_jobs_of_a_tenant(house: House) -> None:
    feed = house.desk.feed("t1", position=None, follow=True)
    assert list(await anext(feed)) == []
    async with ScriptedCar(house.broker, "car1"):
        jobs = {await house.submit(2) for _ in range(5)}
        await house.desk.submit("t2", [job_request()])
        entries = []
        async with asyncio.timeout(10):
            async for page in feed:
                entries += page
                if len(entries) == 10:
                    break
    assert {entry.job for entry in entries} == jobs
    positions = [entry.position for entry in entries]
    assert positions == sorted(set(positions))


async def test_why_names_the_cause(house: House) -> None:
    job = await house.submit(1)
    why = await house.desk.why("t1", job)
    assert why.summary == "no car has ever connected"
    async with ScriptedCar(house.broker, "car1", works=False, units_max=1) as car:
        await car.until(lambda c: bool(c.offers))
        blocked = await house.submit(1)
        why = await house.desk.why("t1", blocked)
    assert why.cars_excluded == {"busy": 1}
    assert "1 busy" in why.summary


async def test_a_quarantined_car_gets_no_work(house: House) -> None:
    async with ScriptedCar(house.broker, "car1", works=False) as bad:
        job = await house.submit(4)
        await bad.until(lambda c: bool(c.offers))
        await house.desk.quarantine("car1", on=True)
        await bad.until(lambda c: bool(c.cancels))
        bad.chunks(bad.finished(bad.offers[0]))
        await bad.until(lambda c: bool(c.answers))
        assert bad.answers[0].verdict is ChunkVerdict.NOT_WANTED
        async with ScriptedCar(house.broker, "car2"):
            entries, status = await house.collect(job)
    assert status.done == 4
    assert {entry.vehicle for entry in entries} == {"car2"}


async def test_a_restarted_dispatcher_asks_the_cars_it_knew(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with ScriptedCar(broker, "car1") as car:
        async with open_house(broker) as house:
            await house.until(lambda: len(house.service.core.fleet) == 1)
            await house.collect(await house.submit(1))
        before = car.seq
        async with open_house(broker) as house:
            await house.collect(await house.submit(1))  # long before the next state refresh
        assert car.seq > before


async def test_a_clean_stop_says_that_it_is_off_and_drops_nothing(open_house: OpenHouse) -> None:
    broker = MemoryBroker()
    async with open_house(broker) as house:
        await house.until(lambda: house.service.bus.is_connected)
        house.service.announce("http://models")
    dropped = house.service.bus.counters.dropped
    assert not dropped[DropReason.UNACKNOWLEDGED]
    assert not dropped[DropReason.NOT_CONNECTED]
    settings = BusSettings("memory://", "reader", subscriptions=((Topics().host("dispatcher"), 1),))
    async with MemoryBus(settings, broker) as reader:
        async for event in reader.events():
            if isinstance(event, Message):
                status = codec.host_decoder().decode(event.payload)
                break
    assert (status.online, status.models_url) == (False, "http://models")
