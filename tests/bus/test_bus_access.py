"""The memory broker obeys the shipped ACL files as Mosquitto does (`test_mosquitto_acl.py`)."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from access_scenarios import (
    CAR_MAY_NOT_READ,
    CAR_MAY_NOT_WRITE,
    CAR_READS,
    CAR_WRITES,
    TENANT_MAY_NOT_READ,
    TENANT_MAY_NOT_WRITE,
    TENANT_READS,
    TOPICS,
    reads,
    settings,
    writes,
)
from brokers import GUARDED_CARS, GUARDED_SERVICES, REPOSITORY
from bus_rig import Reader

from edge_runtime.bus import BusRefused, BusSettings, MemoryBroker, MemoryBus, Message
from edge_runtime.bus.access import Access, AccessList
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.topics import Up


def shipped() -> MemoryBroker:
    access = {
        listener: AccessList((REPOSITORY / "broker" / f"acl-{listener}").read_text())
        for listener in ("cars", "services")
    }
    users = dict.fromkeys([*GUARDED_CARS, *GUARDED_SERVICES], "secret")
    return MemoryBroker(users=users, access=access)


@dataclass
class GuardedMemory:
    """A memory broker with the shipped ACLs."""

    broker: MemoryBroker = field(default_factory=shipped)

    def car_url(self, vehicle: str, password: str = "secret") -> str:  # noqa: S107 - a test's own password
        return f"memory://{vehicle}:{password}@cars"

    def service_url(self, user: str, password: str = "secret") -> str:  # noqa: S107 - a test's own password
        return f"memory://{user}:{password}@services"

    def adapter(self, bus_settings: BusSettings) -> Any:
        return MemoryBus(bus_settings, self.broker)


@pytest.fixture
def guarded() -> GuardedMemory:
    return GuardedMemory()


async def test_a_car_writes_its_own_up_topics_only(guarded: GuardedMemory) -> None:
    url = guarded.car_url("car-a")
    await writes(guarded, guarded.adapter, url, CAR_WRITES, CAR_MAY_NOT_WRITE)


async def test_a_car_reads_its_own_dn_and_the_hosts_only(guarded: GuardedMemory) -> None:
    url = guarded.car_url("car-a")
    await reads(guarded, guarded.adapter, url, CAR_READS, CAR_MAY_NOT_READ)


async def test_a_tenant_writes_its_requests_only(guarded: GuardedMemory) -> None:
    url = guarded.service_url("tenant-demo")
    allowed = [TOPICS.tenant_request("demo")]
    await writes(guarded, guarded.adapter, url, allowed, TENANT_MAY_NOT_WRITE)


async def test_a_tenant_reads_its_own_jobs_and_the_fleet_only(guarded: GuardedMemory) -> None:
    url = guarded.service_url("tenant-demo")
    await reads(guarded, guarded.adapter, url, TENANT_READS, TENANT_MAY_NOT_READ)


async def test_a_user_without_a_block_may_do_nothing(guarded: GuardedMemory) -> None:
    url = guarded.service_url("tenant-other")
    async with Reader(guarded.adapter(settings(url, "nobody"))) as reader:
        await reader.up()
        for topic in (TOPICS.tenant_request("other"), "anything"):
            with pytest.raises(BusRefused):
                await reader.bus.publish(Message(topic, b""))


async def test_a_tenants_will_goes_nowhere_it_may_not_write(guarded: GuardedMemory) -> None:
    forged = Message(TOPICS.up("car-a", Up.STATUS), b"forged", retain=True)
    honest = Message(TOPICS.tenant_request("demo"), b"honest")
    dispatcher = guarded.adapter(settings(guarded.service_url("dispatcher"), "d-will", "er/#"))
    async with Reader(dispatcher) as reader:
        await reader.up()
        for will in (forged, honest):
            client_id = f"will-{will.payload.decode()}"
            url = guarded.service_url("tenant-demo")
            async with Reader(guarded.adapter(settings(url, client_id, will=will))) as client:
                await client.up()
                guarded.broker.cut(client_id)
                await client.down()
        assert (await reader.message()).payload == b"honest"
        assert len(reader.received) == 1


async def test_what_was_retained_or_queued_is_not_shown_to_who_may_not_read_it(
    guarded: GuardedMemory,
) -> None:
    secret, public = TOPICS.job_status("other", "j"), TOPICS.fleet("eu")
    tenant = BusSettings(
        guarded.service_url("tenant-demo"), "er-t", subscriptions=(("#", 1),), session_expiry_s=60
    )
    service = guarded.adapter(settings(guarded.service_url("dispatcher"), "d"))
    async with Reader(service) as dispatcher:
        await dispatcher.up()
        await dispatcher.bus.publish(Message(secret, b"retained", retain=True))
        async with Reader(guarded.adapter(tenant)) as reader:
            await reader.up()
        await dispatcher.bus.publish(Message(secret, b"queued"))
        await dispatcher.bus.publish(Message(public, b"for all"))
        async with Reader(guarded.adapter(tenant)) as reader:
            await reader.up()
            assert (await reader.message()).payload == b"for all"
            assert len(reader.received) == 1


@pytest.mark.parametrize(
    "text",
    ["topic read a/#", "user", "pattern deny a", "user a\ntopic maybe b", "who knows", "user a b"],
)
def test_a_line_that_is_not_understood_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="line"):
        AccessList("# a comment\n" + text)


def test_a_client_id_stands_for_itself() -> None:
    access = AccessList("pattern write a/%c/b")
    assert access.allows(Access.WRITE, "u", "c1", "a/c1/b")
    assert not access.allows(Access.WRITE, "u", "c1", "a/c2/b")
    assert not access.allows(Access.READ, "u", "c1", "a/c1/b")
