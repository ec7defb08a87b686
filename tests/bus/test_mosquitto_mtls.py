"""What `pki init` makes, on a real Mosquitto: who comes in, who does not, and the eight hazards.

The numbers are those of broker/README.md. Of the eight, three and four speak of the dynamic
security plugin, which is not used, and eight of what works.
"""

import asyncio
import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bus_rig import ADAPTERS, CuttableWire, Reader
from cryptography.hazmat.primitives import serialization
from mtls_rig import MtlsBroker, make_mtls

from edge_runtime.bus import BusRefused, BusSettings, Message
from edge_runtime.cli.commands import pki as command
from edge_runtime.contract.topics import Down, Topics, Up
from edge_runtime.pki import authority as authority_module
from edge_runtime.pki.authority import Authority, Branch, Role
from edge_runtime.pki.house import give_revocations, renew_here, revoke
from edge_runtime.pki.identity import IdentityFolder

pytestmark = pytest.mark.mosquitto
NOT_AUTHORIZED = 0x87
TOPICS = Topics("er")
WORK_1 = TOPICS.down("car-1", Down.WORK)
WORK_2 = TOPICS.down("car-2", Down.WORK)


@pytest.fixture
def mtls(tmp_path: Path) -> Iterator[MtlsBroker]:
    broker = make_mtls(tmp_path)
    broker.process.start()
    yield broker
    broker.process.kill()


@pytest.fixture(params=["aiomqtt", "mqttium"])
def adapter(request: pytest.FixtureRequest) -> Any:
    return ADAPTERS[request.param]


async def refused_in_tls(adapter: Any, settings: BusSettings) -> str:
    """Why TLS does not let this one in."""
    async with Reader(adapter(settings)) as reader:
        down = await reader.down()
        assert down.refused is None
        assert not reader.bus.is_connected
        return down.reason


# --- who comes in -------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [5, 4])
async def test_a_car_and_a_dispatcher_talk(mtls: MtlsBroker, adapter: Any, protocol: int) -> None:
    car_settings = mtls.connection(
        "er-car-1", TOPICS.down_all("car-1"),
        identity=mtls.house.car("car-1"), canary_topic=TOPICS.canary("car-1"), protocol=protocol,
    )  # fmt: skip
    service = mtls.service(TOPICS.up_all(), protocol=protocol)
    async with Reader(adapter(service)) as dispatcher, Reader(adapter(car_settings)) as car:
        await dispatcher.up()
        await car.up()
        # Many TLS records, of all sizes up to the largest message, both ways.
        sizes = [1, 16_383, 16_384, 16_385, 200_000, 256 * 1024] + [300] * 500
        up, down = TOPICS.up("car-1", Up.RESULT), WORK_1
        await car.bus.publish_all([Message(up, bytes([n % 256]) * n) for n in sizes])
        await dispatcher.bus.publish_all([Message(down, bytes([n % 256]) * n) for n in sizes])
        for reader, topic in ((dispatcher, up), (car, down)):
            got = []
            while len(got) < len(sizes):
                message = await reader.message()
                if message.topic == topic:
                    got.append(message.payload)
            assert got == [bytes([n % 256]) * n for n in sizes]


async def test_a_car_by_ip_address_and_with_separate_files(
    mtls: MtlsBroker, adapter: Any, tmp_path: Path
) -> None:
    text = IdentityFolder(mtls.house.car("car-1")).identity.read_bytes()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    split = text.index(b"-----BEGIN CERTIFICATE")
    key.write_bytes(text[:split])
    cert.write_bytes(text[split:])
    settings = mtls.connection("car-1", url=mtls.url(mtls.layout.cars_port, "127.0.0.1"))
    settings = replace(settings, tls=replace(settings.tls, cert=cert, key=key))
    async with Reader(adapter(settings)) as car:
        await car.up()


async def test_nobody_comes_in_with_what_is_not_for_this_door(
    mtls: MtlsBroker, adapter: Any, tmp_path: Path
) -> None:
    car, service = mtls.connection("car-1"), mtls.service()
    other = Authority.create(tmp_path / "other")
    stranger = tmp_path / "stranger"
    stranger_rig = replace(mtls, authority=other)
    stranger_rig.enrol("car-1", folder=stranger)
    (stranger / "ca.pem").write_bytes((mtls.house.car("car-1") / "ca.pem").read_bytes())
    posing = mtls.enrol("dispatcher", Role.CAR, tmp_path / "posing")
    for settings in (
        replace(car, tls=replace(car.tls, cert=None)),
        mtls.connection("car-1", identity=stranger),
        mtls.connection("car-1", identity=mtls.house.dispatcher),
        mtls.connection("car-1", identity=mtls.house.broker),
        replace(service, tls=mtls.tls(mtls.house.car("car-1"))),
        replace(service, tls=mtls.tls(posing)),
        replace(service, tls=mtls.tls(mtls.house.broker)),
    ):
        assert await refused_in_tls(adapter, settings)
    plain = replace(car, url=car.url.replace("mqtts", "mqtt"))
    assert await refused_in_tls(adapter, plain)


async def test_a_broker_that_cannot_prove_its_name_is_not_spoken_to(
    mtls: MtlsBroker, adapter: Any, tmp_path: Path
) -> None:
    settings = mtls.connection("car-1")
    other = Authority.create(tmp_path / "other")
    wrong_authority = replace(settings.tls, ca=other.ca_file(Branch.SERVICES))
    reason = await refused_in_tls(adapter, replace(settings, tls=wrong_authority))
    assert "certificate verify failed" in reason
    no_such_name = settings.url.replace("localhost", "127.0.0.2")
    mtls.process.kill()
    mtls.listen_everywhere()
    mtls.process.start()
    reason = await refused_in_tls(adapter, replace(settings, url=no_such_name))
    assert "IP address mismatch" in reason


@pytest.mark.parametrize("damage", ["missing", "empty", "passphrase", "key of another"])
async def test_a_damaged_identity_is_named(mtls: MtlsBroker, adapter: Any, damage: str) -> None:
    identity = IdentityFolder(mtls.house.car("car-1")).identity
    match damage:
        case "missing":
            identity.unlink()
        case "empty":
            identity.write_bytes(b"")
        case "key of another":
            mine = identity.read_bytes()
            other = IdentityFolder(mtls.house.car("car-2")).identity.read_bytes()
            split = b"-----BEGIN CERTIFICATE"
            identity.write_bytes(other.partition(split)[0] + split + mine.partition(split)[2])
        case _:
            whole = identity.read_bytes()
            key = serialization.load_pem_private_key(whole, None)
            locked = key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"x"),
            )
            certificate = whole.partition(b"-----BEGIN CERTIFICATE")
            identity.write_bytes(locked + certificate[1] + certificate[2])
    reason = await refused_in_tls(adapter, mtls.connection("car-1"))
    assert str(identity) in reason


# --- the hazards --------------------------------------------------------------------------------


async def test_1_a_car_writes_nothing_of_another_and_no_name_is_a_wildcard(
    mtls: MtlsBroker, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Reader(adapter(mtls.connection("car-1"))) as car:
        await car.up()
        for topic in (TOPICS.up("car-2", Up.RESULT), WORK_1, WORK_2, TOPICS.host("d"), "x"):
            with pytest.raises(BusRefused) as refused:
                await car.bus.publish(Message(topic, b""))
            assert refused.value.reason_code == NOT_AUTHORIZED
        await car.bus.publish(Message(TOPICS.up("car-1", Up.STATE), b""))
    # The authority never certifies such a name; where one did, Mosquitto's patterns match nothing.
    monkeypatch.setattr(authority_module, "require_name", lambda name: name)
    monkeypatch.setattr("edge_runtime.pki.identity.require_name", lambda name: name)
    wild = mtls.enrol("+", folder=mtls.house.folder / "wild")
    hears = ("er/1/+/v/+/dn/#", "er/1/host/+")
    async with (
        Reader(adapter(mtls.connection("x", *hears, identity=wild))) as intruder,
        Reader(adapter(mtls.service())) as dispatcher,
    ):
        await dispatcher.up()
        await intruder.up()
        for topic in (TOPICS.up("car-2", Up.RESULT), TOPICS.canary("car-1"), WORK_1):
            with pytest.raises(BusRefused):
                await intruder.bus.publish(Message(topic, b""))
        # Not even what every car may read comes, which would have come after the secret.
        await dispatcher.bus.publish(Message(WORK_1, b"secret"))
        await dispatcher.bus.publish(Message(TOPICS.host("d"), b"for all"))
        async with Reader(adapter(mtls.connection("car-1", *hears))) as car:
            await car.up()
            await dispatcher.bus.publish(Message(WORK_1, b"again"))
            assert (await car.message()).payload == b"again"
        assert WORK_1 not in {message.topic for message in intruder.received}


async def test_2_a_car_with_anothers_client_id_takes_neither_session_nor_queue(
    mtls: MtlsBroker, adapter: Any
) -> None:
    kept = mtls.connection("car-1", TOPICS.down_all("car-1"), session_expiry_s=600)
    async with Reader(adapter(kept)) as car:
        await car.up()
    async with Reader(adapter(mtls.service())) as dispatcher:
        await dispatcher.up()
        await dispatcher.bus.publish(Message(WORK_1, b"queued"))
        thief = mtls.connection("car-1", "#", identity=mtls.house.car("car-2"))
        async with Reader(adapter(thief)) as attacker:
            await attacker.up()
            async with Reader(adapter(kept)) as car:
                await car.up()
                assert (await car.message()).payload == b"queued"
                async with Reader(adapter(thief)) as again:
                    await again.up()
                    await dispatcher.bus.publish(Message(WORK_1, b"live"))
                    assert (await car.message()).payload == b"live"
                    assert not again.received
            assert not attacker.received


async def test_2_a_tenant_with_a_cars_client_id_does_not_throw_it_off(
    mtls: MtlsBroker, adapter: Any
) -> None:
    mtls.add_tenant("tenant-demo", "secret")
    port = mtls.layout.tenants_port
    settings = BusSettings(
        f"mqtts://tenant-demo:secret@localhost:{port}", "car-1", session_expiry_s=0,
        tls=replace(mtls.tls(mtls.house.car("car-1")), cert=None),
        subscriptions=(("#", 1),),
    )  # fmt: skip
    async with Reader(adapter(mtls.connection("car-1", WORK_1))) as car:
        await car.up()
        async with Reader(adapter(settings)) as tenant, Reader(adapter(mtls.service())) as service:
            await tenant.up()
            await service.up()
            await service.bus.publish(Message(WORK_1, b"work"))
            assert (await car.message()).payload == b"work"
            await service.bus.publish(Message(TOPICS.job_status("demo", "j"), b"status"))
            assert (await tenant.message()).payload == b"status"
            assert len(tenant.received) == 1
        assert len(car.events) == 2


async def test_5_a_revoked_car_is_out_at_once_and_stays_out(mtls: MtlsBroker, adapter: Any) -> None:
    async with (
        Reader(adapter(mtls.connection("car-1", TOPICS.down_all("car-1")))) as bad,
        Reader(adapter(mtls.connection("car-2", TOPICS.down_all("car-2")))) as good,
        Reader(adapter(mtls.service())) as dispatcher,
    ):
        for reader in (bad, good, dispatcher):
            await reader.up()
        assert len(revoke(mtls.authority, mtls.house, Branch.CARS, "car-1")) == 1
        mtls.reload()
        await command._kick(mtls.services_url, mtls.house.dispatcher, "car-1")
        await bad.down()
        await dispatcher.bus.publish(Message(WORK_1, b"secret"))
        await dispatcher.bus.publish(Message(WORK_2, b"work"))
        assert (await good.message()).payload == b"work"
        assert not bad.received
        assert len(good.events) == 2
    assert "revoked" in await refused_in_tls(adapter, mtls.connection("car-1"))
    # What was revoked stays so over a restart, and enrolling anew is possible.
    mtls.restart()
    assert "revoked" in await refused_in_tls(adapter, mtls.connection("car-1"))
    anew = mtls.enrol("car-1", folder=mtls.house.folder / "anew")
    async with Reader(adapter(mtls.connection("car-1", identity=anew))) as car:
        await car.up()


async def test_6_a_replaced_authority_is_trusted_no_more_after_a_restart(
    mtls: MtlsBroker, adapter: Any, tmp_path: Path
) -> None:
    async with Reader(adapter(mtls.connection("car-1"))) as car:
        await car.up()
    fresh = Authority.create(tmp_path / "fresh")
    ca = mtls.house.broker / "cars-ca.pem"
    ca.write_bytes(fresh.ca_file(Branch.CARS).read_bytes())
    crl = mtls.house.broker / "cars-crl.pem"
    crl.write_bytes(fresh.crl_file(Branch.CARS).read_bytes())
    mtls.restart()
    assert await refused_in_tls(adapter, mtls.connection("car-1"))
    newcomer = tmp_path / "newcomer"
    replace(mtls, authority=fresh).enrol("car-9", folder=newcomer)
    (newcomer / "ca.pem").write_bytes((mtls.house.car("car-1") / "ca.pem").read_bytes())
    async with Reader(adapter(mtls.connection("car-9", identity=newcomer))) as car:
        await car.up()


async def test_7_who_subscribes_to_everything_hears_its_own_only(
    mtls: MtlsBroker, adapter: Any
) -> None:
    everything = ("#", "er/#", "er/1/+/v/+/dn/+", "+/+/+/+/+/+/+", "$share/all/er/#", "$SYS/#")
    async with (
        Reader(adapter(mtls.connection("car-1", *everything))) as nosy,
        Reader(adapter(mtls.service())) as dispatcher,
    ):
        await nosy.up()
        await dispatcher.up()
        for topic in (WORK_2, TOPICS.up("car-2", Up.RESULT), TOPICS.job_results("demo", "j")):
            await dispatcher.bus.publish(Message(topic, b"secret", retain=True))
        await dispatcher.bus.publish(Message(WORK_1, b"yours"))
        assert (await nosy.message()).payload == b"yours"
        assert {message.topic for message in nosy.received} == {WORK_1}


async def test_8_a_cars_will_is_published_and_a_goodbye_publishes_none(
    mtls: MtlsBroker, adapter: Any
) -> None:
    will = Message(TOPICS.up("car-1", Up.STATUS), b"gone", retain=True)
    async with (
        Reader(adapter(mtls.service(TOPICS.up_all()))) as dispatcher,
        CuttableWire(mtls.layout.cars_port) as wire,
    ):
        await dispatcher.up()
        url = wire.url.replace("mqtt:", "mqtts:")
        async with Reader(adapter(mtls.connection("car-1", url=url, will=will))) as car:
            await car.up()
            # A reconnect that was asked for says goodbye first.
            car.bus.reconnect("a test")
            assert (await car.down()).reason == "a test"
            await car.up()
            await car.bus.publish(Message(TOPICS.up("car-1", Up.STATE), b"again"))
            assert (await dispatcher.message()).payload == b"again"
            wire.cut()
            await car.down()
            assert (await dispatcher.message()).payload == b"gone"


# --- renewal ------------------------------------------------------------------------------------


async def test_old_and_new_certificate_overlap_and_a_reconnect_uses_the_new_one(
    mtls: MtlsBroker, adapter: Any, tmp_path: Path
) -> None:
    folder = mtls.house.car("car-1")
    old = tmp_path / "old.pem"
    old.write_bytes((folder / "identity.pem").read_bytes())
    settings = mtls.connection("car-1")
    async with Reader(adapter(settings)) as car:
        await car.up()
        renew_here(mtls.authority, IdentityFolder(folder), 90)
        assert (folder / "identity.pem").read_bytes() != old.read_bytes()
        # The old one is good until its end; the broker takes either.
        async with Reader(adapter(replace(settings, tls=replace(settings.tls, cert=old)))) as same:
            await same.up()
    async with Reader(adapter(settings)) as car:
        await car.up()
        now = IdentityFolder(folder).certificate().serial_number
        (oldest,) = (c for c in mtls.authority.issued(Branch.CARS, "car-1") if c.serial != now)
        # Only the old one is revoked: a reconnect that succeeds has used the new one.
        record = mtls.house.authority / "cars" / "revoked" / oldest.file.name
        record.write_bytes(oldest.file.read_bytes())
        mtls.authority.write_revocations(Branch.CARS)
        give_revocations(mtls.authority, mtls.house.broker)
        mtls.reload()
        car.bus.reconnect("renewed")
        await car.down()
        await car.up()
    stale = replace(settings, tls=replace(settings.tls, cert=old))
    assert "revoked" in await refused_in_tls(adapter, stale)


async def test_an_expired_certificate_is_refused_and_a_renewed_one_is_taken(
    mtls: MtlsBroker, adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=200)
    folder = mtls.house.folder / "expired"
    identity = IdentityFolder(folder)
    with monkeypatch.context() as then:
        then.setattr(authority_module, "_now", lambda: long_ago)
        then.setattr(IdentityFolder, "_check", lambda *_: None)
        mtls.enrol("car-3", folder=folder)
    settings = mtls.connection("car-3", identity=folder)
    async with Reader(adapter(settings)) as car:
        assert "expired" in (await car.down()).reason
        renew_here(mtls.authority, identity, 90)
        async with asyncio.timeout(60):
            await car.up()
