"""The KUKSA source against a databroker process: changes at once, silence when it dies."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sensor_rig import (
    CHARGE,
    COMPUTE_C,
    GEAR,
    GOOD_CAR,
    PARK_LOCK,
    PLUGGED,
    SEAT,
    Databroker,
    Listener,
    databroker,
    listening,
)
from structlog.testing import capture_logs

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.sensors.combined import CombinedSensors
from edge_runtime.vehicle.sensors.kuksa import KuksaSensors, KuksaSettings

NAMES = tuple(signal.name for signal in SIGNALS)


class Eager(random.Random):
    """Waits as little as full jitter may."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, min(b, 0.05))


def sensors_of(address: str, **settings: Any) -> KuksaSensors:
    return KuksaSensors(KuksaSettings(address=address, **settings), NAMES, rng=Eager())


@asynccontextmanager
async def good_car(*arguments: str) -> AsyncIterator[tuple[Databroker, Listener]]:
    """A databroker with a parked car in it, and a listener that has heard of it."""
    async with databroker(*arguments) as broker:
        broker.write_all(GOOD_CAR)
        async with listening(sensors_of(broker.address)) as listener:
            await listener.hears_value("is_parked", value=True)
            yield broker, listener


async def test_a_parked_car_is_read_and_what_it_lacks_is_absent() -> None:
    async with good_car() as (_, listener):
        event = await listener.hears(lambda event: len(event.values) == len(NAMES))
    assert {name: value for name, value in event.values.items() if value is not None} == {
        "charge_percent": 80.0,
        "is_plugged": True,
        "is_occupied": False,
        "compute_temperature_c": 40.0,
        "is_parked": True,
    }


async def test_changes_are_told_one_by_one_without_waiting_for_the_heartbeat() -> None:
    async with good_car() as (broker, listener):
        heard = len(listener.said)
        for turn in range(20):
            broker.write(SEAT, "string", ("OCCUPIED", "EMPTY")[turn % 2])
            event = await listener.hears_value("is_occupied", value=turn % 2 == 0, after=heard)
            heard = listener.said.index(event) + 1
        changes = [event for event in listener.said if event.values.keys() == {"is_occupied"}]
        beats = [event for event in listener.said if len(event.values) > len(GOOD_CAR)]
    assert len(changes) >= 20
    assert len(beats) < 20


async def test_each_part_of_parked_is_enough_to_say_no() -> None:
    async with good_car() as (broker, listener):
        for path, kind, wrong, right in ((GEAR, "int32", 1, 126), (PARK_LOCK, "bool", False, True)):
            heard = len(listener.said)
            broker.write(path, kind, wrong)
            await listener.hears_value("is_parked", value=False, after=heard)
            heard = len(listener.said)
            broker.write(path, kind, right)
            await listener.hears_value("is_parked", value=True, after=heard)


async def test_a_killed_databroker_is_silence_and_a_new_one_is_found() -> None:
    async with good_car() as (broker, listener):
        with capture_logs() as logs:
            await broker.kill()
            heard = len(listener.said)
            await broker.start()
            broker.write_all(GOOD_CAR)
            broker.write(CHARGE, "float", 33.0)
            await listener.hears_value("charge_percent", value=33.0, after=heard)
    events = [entry["event"] for entry in logs]
    assert events.count("databroker_connected") == 1
    assert "databroker_lost" in events
    # What the new databroker had no value for yet is not "this car has none".
    assert not any(event.values.get("is_parked", True) is None for event in listener.said[heard:])


async def test_a_stopped_databroker_says_nothing_and_goes_on_when_it_does() -> None:
    async with good_car() as (broker, listener):
        broker.signal(signal.SIGSTOP)
        await asyncio.sleep(limits.KUKSA_ANSWER_MAX_S)  # what it had sent before is heard
        heard = len(listener.said)
        await asyncio.sleep(2 * limits.SENSOR_PERIOD_MS / 1000)
        assert len(listener.said) == heard
        broker.signal(signal.SIGCONT)
        broker.write(PLUGGED, "bool", value=False)
        await listener.hears_value("is_plugged", value=False, after=heard)


async def test_what_was_there_and_is_not_available_falls_silent() -> None:
    async with good_car() as (broker, listener):
        broker.write(SEAT, "string", "UNKNOWN")
        broker.write(CHARGE, None)
        broker.write(COMPUTE_C, "float", 41.0)
        heard = len(listener.said)
        await listener.hears_value("compute_temperature_c", value=41.0, after=heard)
        heard = len(listener.said)
        await listener.hears(lambda event: "is_plugged" in event.values, after=heard + 1)
    for event in listener.said[heard:]:
        assert "is_occupied" not in event.values
        assert "charge_percent" not in event.values


async def test_an_unknown_path_or_unit_is_said_once_and_is_absent() -> None:
    async with databroker("--stubborn-unit", f"{COMPUTE_C}=kelvin") as broker:
        broker.write_all(GOOD_CAR)
        broker.forget(PLUGGED)
        with capture_logs() as logs:
            async with listening(sensors_of(broker.address)) as listener:
                await listener.hears_value("is_parked", value=True)
                await broker.kill()
                await broker.start()
                broker.write_all(GOOD_CAR)
                await listener.hears_value("is_plugged", value=True)
        first = listener.said[0].values
    assert first.get("compute_temperature_c") is None
    assert first.get("is_plugged") is None
    unlike = [entry for entry in logs if entry["event"] == "databroker_unit_unlike"]
    unknown = [entry["path"] for entry in logs if entry["event"] == "databroker_path_unknown"]
    assert [(entry["path"], entry["unit"]) for entry in unlike] == [(COMPUTE_C, "kelvin")]
    assert sorted(unknown) == sorted((PLUGGED, "Vehicle.Private.EdgeRuntime.IsNetworkMetered"))


async def test_a_token_is_shown_and_one_that_is_missing_is_no_reading(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("wrong\n")
    async with databroker("--token", "right") as broker:
        broker.write_all(GOOD_CAR)
        with capture_logs() as logs:
            async with listening(sensors_of(broker.address, token=token)) as listener:
                async with asyncio.timeout(20):
                    while not logs:  # noqa: ASYNC110 - a log line is told to nobody
                        await asyncio.sleep(0.01)
                assert not listener.said
                token.write_text("right\n")
                await listener.hears_value("is_parked", value=True)
    assert "UNAUTHENTICATED" in logs[0]["why"]


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a databroker")])
    now = datetime.now(UTC)
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = folder / "key.pem", folder / "certificate.pem"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    files[1].write_bytes(certificate.public_bytes(pem))
    return files


async def test_with_a_ca_the_connection_is_tls_and_checked(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    key, certificate = write_certificate(tmp_path)
    _, stranger = write_certificate(tmp_path / "other")
    async with databroker("--tls", str(key), str(certificate)) as broker:
        broker.write_all(GOOD_CAR)
        with capture_logs() as logs:
            async with listening(sensors_of(broker.address, ca=stranger)) as suspicious:
                async with asyncio.timeout(20):
                    while not logs:  # noqa: ASYNC110 - a log line is told to nobody
                        await asyncio.sleep(0.01)
        async with listening(sensors_of(broker.address, ca=certificate)) as listener:
            await listener.hears_value("is_parked", value=True)
    assert not suspicious.said
    assert "certificate" in logs[0]["why"].lower()


async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(random.Random(7).randbytes(64 * 1024))
    await writer.drain()
    writer.close()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize("manners", [garbage, silence])
async def test_a_server_that_is_no_databroker_is_no_reading_and_no_crash(manners: Any) -> None:
    server = await asyncio.start_server(manners, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with capture_logs() as logs:
        async with listening(sensors_of(f"127.0.0.1:{port}")) as listener:
            async with asyncio.timeout(20):
                while not logs:  # noqa: ASYNC110 - a log line is told to nobody
                    await asyncio.sleep(0.01)
    server.close()
    await server.wait_closed()
    assert not listener.said
    assert {entry["event"] for entry in logs} == {"databroker_lost"}


async def test_nobody_there_is_tried_again_and_said_once() -> None:
    async with databroker() as broker:
        await broker.kill()
        with capture_logs() as logs:
            async with listening(sensors_of(broker.address)) as listener:
                async with asyncio.timeout(20):
                    while not logs:  # noqa: ASYNC110 - a log line is told to nobody
                        await asyncio.sleep(0.01)
                await broker.start()
                broker.write_all(GOOD_CAR)
                await listener.hears_value("is_parked", value=True)
    assert [entry["event"] for entry in logs].count("databroker_lost") == 1


async def test_a_flood_of_writes_is_heard_in_portions_and_its_last_word_counts() -> None:
    async with databroker() as broker:
        broker.write_all(GOOD_CAR)
        source = sensors_of(broker.address)
        both = CombinedSensors({"kuksa": (source, frozenset(NAMES))})
        async with listening(both) as listener:
            await listener.hears_value("is_parked", value=True)
            heard = len(listener.said)
            started_s = asyncio.get_running_loop().time()
            broker.write(CHARGE, "float", 50.0, times=5_000)
            broker.write(SEAT, "string", "OCCUPIED")
            await listener.hears_value("is_occupied", value=True, after=heard)
            seconds = asyncio.get_running_loop().time() - started_s
    per_second = limits.SENSOR_EDGES_PER_S_MAX + 1000 / limits.SENSOR_FLOOD_MS
    assert both.ears["kuksa"].merged > 0
    assert len(listener.said) - heard <= (seconds + 2) * per_second


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"address": "here"}, "HOST:PORT or unix:PATH, not 'here'"),
        ({"address": "host:99999"}, "HOST:PORT"),
        ({"address": "host:²"}, "HOST:PORT"),
        ({"address": "unix:"}, "HOST:PORT"),
        ({"parked_by": ()}, "at least one of park-lock, gear, brake"),
        ({"parked_by": ("mood",)}, "mood"),
        ({"frozen_after_ms": -1}, "0 or more, not -1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        KuksaSettings(**settings)
