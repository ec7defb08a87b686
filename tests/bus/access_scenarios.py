"""What each kind of user may read and write, tried on any broker that has the shipped ACLs."""

from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
from bus_rig import Reader

from edge_runtime.bus import BusRefused, BusSettings, Message
from edge_runtime.contract.topics import Down, Topics, Up

NOT_AUTHORIZED = 0x87
TOPICS = Topics("er")


class Guarded(Protocol):
    """A broker with the shipped ACLs, and the URLs by which users log in."""

    def car_url(self, vehicle: str, password: str = "secret") -> str: ...  # noqa: S107 - a test's own password

    def service_url(self, user: str, password: str = "secret") -> str: ...  # noqa: S107 - a test's own password


CAR_WRITES = [TOPICS.up("car-a", kind) for kind in Up] + [TOPICS.canary("car-a")]
CAR_MAY_NOT_WRITE = [
    TOPICS.up("car-b", Up.RESULT),
    TOPICS.up("car-b", Up.STATUS),
    TOPICS.down("car-a", Down.WORK),
    TOPICS.down("car-b", Down.WORK),
    TOPICS.canary("car-b"),
    TOPICS.host("d1"),
    TOPICS.job_results("demo", "j"),
    TOPICS.tenant_request("demo"),
    TOPICS.fleet("eu"),
    "er/2/00/v/car-a/up/state",
    "other/1/00/v/car-a/up/state",
    "anything",
]
CAR_READS = [TOPICS.down("car-a", kind) for kind in Down] + [TOPICS.host("d1")]
CAR_MAY_NOT_READ = [
    TOPICS.down("car-b", Down.WORK),
    TOPICS.up("car-b", Up.STATE),
    TOPICS.up("car-a", Up.STATE),
    TOPICS.job_results("demo", "j"),
    TOPICS.job_status("demo", "j"),
    TOPICS.tenant_request("demo"),
    TOPICS.fleet("eu"),
]
TENANT_READS = [
    TOPICS.job_results("demo", "j"),
    TOPICS.job_status("demo", "j"),
    TOPICS.fleet("eu"),
]
TENANT_MAY_NOT_READ = [
    TOPICS.job_results("other", "j"),
    TOPICS.up("car-a", Up.STATE),
    TOPICS.down("car-a", Down.WORK),
    TOPICS.host("d1"),
]
TENANT_MAY_NOT_WRITE = [
    TOPICS.tenant_request("other"),
    TOPICS.job_results("demo", "j"),
    TOPICS.job_status("demo", "j"),
    TOPICS.fleet("eu"),
    TOPICS.up("tenant-demo", Up.STATE),
    TOPICS.down("car-a", Down.WORK),
    TOPICS.host("d1"),
]


def settings(url: str, client_id: str, *filters: str, **changes: Any) -> BusSettings:
    return BusSettings(
        url,
        client_id,
        subscriptions=tuple((topic_filter, 1) for topic_filter in filters),
        session_expiry_s=0,
        **changes,
    )


async def writes(
    broker: Guarded, adapter: Any, url: str, allowed: list[str], denied: list[str]
) -> None:
    """`url` may publish on each of `allowed`, and the dispatcher gets it; on none of `denied`."""
    dispatcher = adapter(settings(broker.service_url("dispatcher"), "acl-dispatcher", "er/#"))
    async with Reader(dispatcher) as reader, Reader(adapter(settings(url, "car-a"))) as writer:
        await reader.up()
        await writer.up()
        for topic in denied:
            with pytest.raises(BusRefused) as refused:
                await writer.bus.publish(Message(topic, b"denied"))
            assert (refused.value.operation, refused.value.topic) == ("publish", topic)
            assert refused.value.reason_code == NOT_AUTHORIZED
        for topic in allowed:
            await writer.bus.publish(Message(topic, b"allowed"))
        got = await reader.messages(len(allowed))
        assert [(message.topic, message.payload) for message in got] == [
            (topic, b"allowed") for topic in allowed
        ]


async def reads(
    broker: Guarded, adapter: Any, url: str, allowed: list[str], denied: list[str]
) -> None:
    """Of what the dispatcher publishes, `url` sees `allowed` only, even when it asks for all."""
    async with AsyncExitStack() as stack:
        bus = adapter(settings(broker.service_url("dispatcher"), "acl-dispatcher"))
        writer = await stack.enter_async_context(Reader(bus))
        await writer.up()
        filters = ["#", *allowed, *denied]
        reader = await stack.enter_async_context(Reader(adapter(settings(url, "car-a", *filters))))
        await reader.up()
        for topic in denied:
            await writer.bus.publish(Message(topic, b"secret"))
        for topic in allowed:
            await writer.bus.publish(Message(topic, b"yours"))
        while not reader.received or reader.received[-1].topic != allowed[-1]:
            await reader.message()
        assert {message.topic for message in reader.received} == set(allowed)
