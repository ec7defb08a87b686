"""Third parties with accounts on a real Mosquitto, a real dispatcher and a car, all processes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from subscribe_rig import (
    STRANGER,
    TENANT,
    Stack,
    cursors_of,
    is_final,
    read_to_end,
    submitted,
    subscribe_stack,
)

from edge_runtime.bus import BusError, BusRefused, BusSettings, Connected, Message, TlsSettings
from edge_runtime.bus.mqtt import AiomqttBus
from edge_runtime.client import JobLost, JobResult, Subscription, SubscriptionRefused
from edge_runtime.client.subscription_state import Entry
from edge_runtime.contract import codec, limits
from edge_runtime.contract.messages import FetchSince, JobResults, JobStatus, RequestRefused
from edge_runtime.contract.reasons import RequestRefusal
from edge_runtime.contract.topics import Topics
from edge_runtime.pki.tenants import Account, remove_account

pytestmark = [pytest.mark.mosquitto, pytest.mark.timeout(240)]
TOPICS = Topics()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with subscribe_stack(tmp_path_factory.mktemp("subscribe")) as running:
        yield running


def mqtt(stack: Stack, account: Account, *filters: str) -> AiomqttBus:
    settings = BusSettings(
        stack.url(account),
        account.user,
        session_expiry_s=0,
        subscriptions=tuple((topic_filter, 1) for topic_filter in filters),
        tls=TlsSettings(ca=stack.ca),
    )
    return AiomqttBus(settings)


async def connected(bus: AiomqttBus) -> None:
    async with asyncio.timeout(20):
        async for event in bus.events():
            if isinstance(event, Connected):
                return


async def publish_until_refused(bus: AiomqttBus) -> None:
    while True:
        await bus.publish(Message(TOPICS.tenant_request(TENANT), b""))


async def test_away_and_back_with_the_dispatcher_killed_meanwhile(stack: Stack) -> None:
    account = stack.add(TENANT, "away")
    job = await submitted(stack, 3_000)
    first: list[Entry] = []
    async with stack.subscription(account, job=job) as subscription, asyncio.timeout(90):
        async for entry in subscription:
            first.append(entry)
            if isinstance(entry, JobResult) and entry.result.cursor >= 200:
                break
        kept = subscription.cursors
    stack.restart_dispatcher()
    async with stack.subscription(account, job=job, cursors=kept) as subscription:
        second = await read_to_end(subscription, job)
    assert cursors_of([*first, *second], job) == list(range(1, 3_001))
    final = second[-1]
    assert isinstance(final, JobStatus)
    assert final.last_cursor == 3_000


async def test_the_dispatcher_and_the_broker_die_under_a_reader(stack: Stack) -> None:
    account = stack.add(TENANT, "brave")
    entries: list[Entry] = []
    async with stack.subscription(account) as subscription, asyncio.timeout(150):
        job = await submitted(stack, 4_000)
        deaths = {
            500: stack.restart_dispatcher,
            1_500: stack.broker.kill,
            1_501: stack.broker.start,
        }
        async for entry in subscription:
            entries.append(entry)
            if isinstance(entry, JobResult) and entry.job == job:
                deaths.get(entry.result.cursor, int)()
            if is_final(entry) and entry.job == job:  # type: ignore[union-attr]  # a status
                break
    assert cursors_of(entries, job) == list(range(1, 4_001))


async def test_one_wildcard_discovers_every_job_of_the_tenant_and_none_of_others(
    stack: Stack,
) -> None:
    account = stack.add(TENANT, "wild")
    mine = [await submitted(stack, 3) for _ in range(3)]
    theirs = await submitted(stack, 3, STRANGER)
    async with stack.subscription(stack.add(STRANGER), STRANGER, job=theirs) as subscription:
        await read_to_end(subscription, theirs)
    entries: list[Entry] = []
    async with stack.subscription(account) as subscription, asyncio.timeout(60):
        wanted = set(mine)
        async for entry in subscription:
            entries.append(entry)
            if is_final(entry):
                wanted.discard(entry.job)  # type: ignore[union-attr]  # a status
            if not wanted:
                break
    for job in mine:
        assert cursors_of(entries, job) == [1, 2, 3]
    assert theirs not in {getattr(entry, "job", None) for entry in entries}


async def test_a_tenant_reads_and_writes_nothing_of_others(stack: Stack) -> None:
    account, stranger = stack.add(TENANT, "prey"), stack.add(STRANGER, "prying")
    job = await submitted(stack, 5)
    async with stack.subscription(account, job=job) as subscription:
        await read_to_end(subscription, job)
    async with (
        mqtt(stack, stranger, "#", f"er/1/t/{TENANT}/#", "er/1/+/v/#", "er/#", "$SYS/#") as bus,
    ):
        await connected(bus)
        for topic in (
            TOPICS.tenant_request(TENANT),
            TOPICS.job_results(STRANGER, "j"),
            TOPICS.job_status(STRANGER, "j"),
            TOPICS.tenant_answers(STRANGER, "x"),
            TOPICS.fleet("default"),
            TOPICS.host("dispatcher"),
        ):
            with pytest.raises(BusRefused):
                await bus.publish(Message(topic, b"x"))
        own = TOPICS.tenant_answers(STRANGER, "x")
        await bus.publish(
            Message(
                TOPICS.tenant_request(STRANGER),
                codec.encode(FetchSince(job=job, cursor=0, respond_to=own)),
            )
        )
        heard = []
        async with asyncio.timeout(20):
            async for event in bus.events():
                if isinstance(event, Message):
                    heard.append(event)
                    if event.topic == own:
                        break
        allowed = (f"er/1/t/{STRANGER}/", "er/1/pub/fleet/")
        assert all(message.topic.startswith(allowed) for message in heard)
        answer = codec.decode_public(heard[-1].payload)
        assert isinstance(answer, RequestRefused)
        assert answer.reason is RequestRefusal.UNKNOWN_JOB


async def test_a_subscription_to_anothers_tenant_is_refused(stack: Stack) -> None:
    stranger = stack.add(STRANGER, "foreign")
    async with stack.subscription(stranger, TENANT) as subscription, asyncio.timeout(30):
        with pytest.raises(SubscriptionRefused, match="publish"):
            await anext(aiter(subscription))


async def test_a_wrong_password_and_no_password_are_refused(stack: Stack) -> None:
    account = stack.add(TENANT, "forgetful")
    for wrong in (
        account._replace(password=account.password[::-1]),
        account._replace(user="tenant-nobody"),
    ):
        async with stack.subscription(wrong) as subscription, asyncio.timeout(30):
            with pytest.raises(SubscriptionRefused, match="connect"):
                await anext(aiter(subscription))
    plain = f"mqtt://{account.user}:{account.password}@127.0.0.1:{stack.tenants_port}"
    async with Subscription(plain, TENANT) as subscription:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await anext(aiter(subscription))


async def test_a_removed_account_is_out_at_once(stack: Stack) -> None:
    account = stack.add(TENANT, "gone")
    async with mqtt(stack, account, f"er/1/t/{TENANT}/#") as bus:
        await connected(bus)
        remove_account(stack.house / "broker", TENANT, "gone")
        stack.reload()
        job = await submitted(stack, 1)
        async with asyncio.timeout(20):
            with pytest.raises(BusError):
                await publish_until_refused(bus)
    async with stack.subscription(account, job=job) as subscription, asyncio.timeout(30):
        with pytest.raises(SubscriptionRefused):
            await anext(aiter(subscription))


async def test_a_cursor_of_yesterday_reads_what_was_missed_without_a_retained_status(
    stack: Stack,
) -> None:
    """The retained status is cleared a day after the end; here by the house's own account."""
    account = stack.add(TENANT, "late")
    job = await submitted(stack, 50)
    async with stack.subscription(account, job=job) as subscription:
        await read_to_end(subscription, job)
    service = BusSettings(
        f"mqtts://localhost:{stack.broker.ports[1]}",
        "clearing",
        tls=TlsSettings(ca=stack.ca, cert=stack.house / "dispatcher" / "identity.pem"),
    )
    async with AiomqttBus(service) as bus:
        await connected(bus)
        await bus.publish(Message(TOPICS.job_status(TENANT, job), b"", retain=True))
    async with stack.subscription(account, cursors={job: 20}) as subscription:
        entries = await read_to_end(subscription, job)
    assert cursors_of(entries, job) == list(range(21, 51))
    async with stack.client() as client:
        await client.delete(job)
    async with stack.subscription(account, job=job, cursors={job: 20}) as subscription:
        async with asyncio.timeout(30):
            told = [entry async for entry in subscription]
    assert told == [JobLost(job, "unknown_job")]


async def test_thousands_of_requests_and_nonsense_delay_nobody(stack: Stack) -> None:
    flooder, account = stack.add(STRANGER, "flooder"), stack.add(TENANT, "patient")
    job = await submitted(stack, 2_000)
    topic = TOPICS.tenant_request(STRANGER)
    own = TOPICS.tenant_answers(STRANGER, "flood")
    request = codec.encode(FetchSince(job="none", cursor=0, respond_to=own))
    nonsense = [b"\xc1", b"\x91" * 200_000, request, bytes(limits.REQUEST_MAX_BYTES + 1)]
    async with mqtt(stack, flooder, own) as bus:
        await connected(bus)
        for number in range(4_000):
            payload = nonsense[number % 4] if number < 40 else request
            bus.publish_soon(Message(topic, payload, response_topic=own))
        async with stack.subscription(account, job=job) as subscription:
            entries = await read_to_end(subscription, job)
        reasons: set[RequestRefusal] = set()
        wanted = {
            RequestRefusal.RATE_EXCEEDED,
            RequestRefusal.MALFORMED,
            RequestRefusal.OVERSIZE,
            RequestRefusal.UNKNOWN_JOB,
        }
        async with asyncio.timeout(60):
            async for event in bus.events():
                if isinstance(event, Message):
                    told = codec.decode_public(event.payload)
                    assert not isinstance(told, JobResults)
                    if isinstance(told, RequestRefused):
                        reasons.add(told.reason)
                if wanted <= reasons:
                    break
    assert cursors_of(entries, job) == list(range(1, 2_001))
    async with stack.client() as client:
        health = await client.health()
    assert health.counters["rejected_request_rate_exceeded"] > 1_000


def test_the_dispatcher_has_logged_no_fault(stack: Stack, tmp_path: Path) -> None:
    del tmp_path
    log = stack.dispatcher.log.read_text()
    assert "Traceback" not in log, log[-3_000:]
    assert stack.dispatcher.is_running
