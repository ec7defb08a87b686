"""broker/mosquitto.conf and its ACLs on a real Mosquitto: every allow and every deny."""

from contextlib import AsyncExitStack
from typing import Any

import pytest
from access_scenarios import (
    CAR_MAY_NOT_READ,
    CAR_MAY_NOT_WRITE,
    CAR_READS,
    CAR_WRITES,
    NOT_AUTHORIZED,
    TENANT_MAY_NOT_READ,
    TENANT_MAY_NOT_WRITE,
    TENANT_READS,
    TOPICS,
    reads,
    settings,
    writes,
)
from brokers import GuardedBroker
from bus_rig import ADAPTERS, CuttableWire, Reader

from edge_runtime.bus import BusRefused, BusSettings, Message
from edge_runtime.contract.limits import MESSAGE_MAX_BYTES
from edge_runtime.contract.topics import Down, Up

pytestmark = pytest.mark.mosquitto


@pytest.fixture(params=["aiomqtt", "mqttium"])
def adapter(request: pytest.FixtureRequest) -> Any:
    return ADAPTERS[request.param]


async def test_a_car_writes_its_own_up_topics_only(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.car_url("car-a")
    await writes(mosquitto_guarded, adapter, url, CAR_WRITES, CAR_MAY_NOT_WRITE)


async def test_a_car_reads_its_own_dn_and_the_hosts_only(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.car_url("car-a")
    await reads(mosquitto_guarded, adapter, url, CAR_READS, CAR_MAY_NOT_READ)


async def test_a_tenant_writes_its_requests_only(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.service_url("tenant-demo")
    allowed = [TOPICS.tenant_request("demo")]
    await writes(mosquitto_guarded, adapter, url, allowed, TENANT_MAY_NOT_WRITE)


async def test_a_tenant_reads_its_own_jobs_and_the_fleet_only(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.service_url("tenant-demo")
    await reads(mosquitto_guarded, adapter, url, TENANT_READS, TENANT_MAY_NOT_READ)


async def test_a_user_without_a_block_may_do_nothing(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.service_url("tenant-other")
    async with Reader(adapter(settings(url, "nobody"))) as reader:
        await reader.up()
        for topic in (TOPICS.tenant_request("other"), "anything"):
            with pytest.raises(BusRefused):
                await reader.bus.publish(Message(topic, b""))


async def test_a_tenants_will_goes_nowhere_it_may_not_write(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    forged = Message(TOPICS.up("car-a", Up.STATUS), b"forged", retain=True)
    honest = Message(TOPICS.tenant_request("demo"), b"honest")
    port = mosquitto_guarded.services.ports[5]
    dispatcher = adapter(settings(mosquitto_guarded.service_url("dispatcher"), "d-will", "er/#"))
    async with Reader(dispatcher) as reader, AsyncExitStack() as stack:
        await reader.up()
        # The forger's connection breaks first, so its Will would come first.
        for will in (forged, honest):
            wire = await stack.enter_async_context(CuttableWire(port))
            url = wire.url.replace("mqtt://", "mqtt://tenant-demo:secret@")
            client_id = f"will-{will.payload.decode()}"
            client = Reader(adapter(settings(url, client_id, will=will)))
            await stack.enter_async_context(client)
            await client.up()
            wire.cut()
            await client.down()
        assert (await reader.message()).payload == b"honest"
        assert len(reader.received) == 1


@pytest.mark.parametrize("protocol", [5, 4])
@pytest.mark.parametrize(
    "login",
    ["cars car-a wrong", "cars car-x secret", "cars dispatcher secret", "services car-a secret"],
)
async def test_a_wrong_login_is_a_refused_connect_with_its_code(
    mosquitto_guarded: GuardedBroker, adapter: Any, login: str, protocol: int
) -> None:
    port, user, password = login.split()
    guarded = mosquitto_guarded
    url = (guarded.car_url if port == "cars" else guarded.service_url)(user, password)
    async with Reader(adapter(BusSettings(url, "x", protocol=protocol))) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert down.refused.operation == "connect"
        assert down.refused.reason_code == NOT_AUTHORIZED
        with pytest.raises(BusRefused) as refused:
            await reader.bus.publish(Message("a", b""))
        assert refused.value.reason_code == NOT_AUTHORIZED
        assert "secret" not in down.reason


async def test_a_car_cannot_throw_another_off_by_its_client_id(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    a = adapter(settings(mosquitto_guarded.car_url("car-a"), "car-a", TOPICS.down_all("car-a")))
    impostor = adapter(settings(mosquitto_guarded.car_url("car-b"), "car-a"))
    async with Reader(a) as victim, Reader(impostor) as attacker:
        await victim.up()
        await attacker.up()
        dispatcher = adapter(settings(mosquitto_guarded.service_url("dispatcher"), "d"))
        async with Reader(dispatcher) as writer:
            await writer.up()
            await writer.bus.publish(Message(TOPICS.down("car-a", Down.WORK), b"work"))
        assert (await victim.message()).payload == b"work"
        assert len(victim.events) == 2


@pytest.mark.parametrize("protocol", [5, 4])
async def test_the_canary_proves_a_car_that_may(
    mosquitto_guarded: GuardedBroker, adapter: Any, protocol: int
) -> None:
    url = mosquitto_guarded.car_url("car-a")
    allowed = settings(url, "car-a", canary_topic=TOPICS.canary("car-a"), protocol=protocol)
    async with Reader(adapter(allowed)) as reader:
        await reader.up()


@pytest.mark.parametrize("canary", ["written but not read", "neither written nor read"])
async def test_the_canary_finds_what_311_and_mosquitto_hide(
    mosquitto_guarded: GuardedBroker,
    adapter: Any,
    canary: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge_runtime.bus.reconnecting.BUS_CANARY_TIMEOUT_S", 0.3)
    topic = {
        "written but not read": TOPICS.up("car-a", Up.STATE),
        "neither written nor read": TOPICS.canary("car-b"),
    }[canary]
    url = mosquitto_guarded.car_url("car-a")
    # Without the canary everything looks granted: the broker answers success to both.
    async with Reader(adapter(settings(url, "car-a", topic, protocol=4))) as blind:
        await blind.up()
        await blind.bus.publish(Message(topic, b""))
    async with Reader(adapter(settings(url, "car-a", canary_topic=topic, protocol=4))) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert (down.refused.topic, down.refused.reason_code) == (topic, 0)
        assert not reader.bus.is_connected
        with pytest.raises(BusRefused):
            await reader.bus.publish(Message(TOPICS.up("car-a", Up.STATE), b""))


async def test_a_canary_refused_on_mqtt_5_comes_with_its_code(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    topic = TOPICS.canary("car-b")
    url = mosquitto_guarded.car_url("car-a")
    async with Reader(adapter(settings(url, "car-a", canary_topic=topic))) as reader:
        down = await reader.down()
        assert down.refused is not None
        assert (down.refused.operation, down.refused.reason_code) == ("publish", NOT_AUTHORIZED)


async def test_the_shipped_limits_take_the_largest_message(
    mosquitto_guarded: GuardedBroker, adapter: Any
) -> None:
    url = mosquitto_guarded.car_url("car-a")
    dispatcher = adapter(
        settings(mosquitto_guarded.service_url("dispatcher"), "d-large", TOPICS.up_all())
    )
    async with Reader(dispatcher) as reader, Reader(adapter(settings(url, "car-a"))) as car:
        await reader.up()
        await car.up()
        assert car.bus.max_message_bytes == MESSAGE_MAX_BYTES
        topic = TOPICS.up("car-a", Up.RESULT)
        await car.bus.publish(Message(topic, bytes(MESSAGE_MAX_BYTES), content_type="x" * 100))
        assert len((await reader.message()).payload) == MESSAGE_MAX_BYTES
