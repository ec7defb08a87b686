"""`edge-runtime pki` as a person uses it: two machines (folders), and what goes wrong."""

import asyncio
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from brokers import BrokerProcess, _mosquitto, free_port
from command_line import edge_runtime

from edge_runtime.bus import BusSettings, Connected, Disconnected, TlsSettings, open_bus
from edge_runtime.pki.identity import IdentityFolder
from edge_runtime.pki.signing import MessageSigner, TrustedKeys


def pki(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    return edge_runtime("pki", *arguments, cwd=folder, env=env)


def done(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    finished = pki(folder, *arguments, env=env)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A folder with a deployment in `house`."""
    done(tmp_path, "init", "house", "--enroll", "car-1", "--broker-host", "localhost")
    return tmp_path


def test_enrolment_from_another_machine(house: Path) -> None:
    car = house / "elsewhere"
    car.mkdir()
    done(car, "request", "identity", "--id", "car-7")
    request = str(car / "identity" / "request.pem")
    done(house, "enroll", "house", "--csr", request, "--out", "answer.pem")
    said = done(car, "accept", "identity", str(house / "answer.pem"))
    assert said.startswith("car-7  identity  until ")
    assert done(car, "status", "identity") == said
    assert not (house / "house/cars/car-7").exists()


def test_a_renewal_by_hook_takes_the_request_there_and_the_answer_back(house: Path) -> None:
    identity = IdentityFolder(house / "house/cars/car-1")
    before = identity.certificate()
    hook = house / "hook.sh"
    hook.write_text(
        f"#!/bin/sh\nset -e\ncat >copy.pem\ncmp copy.pem $EDGE_RUNTIME_REQUEST\n"
        f"{sys.executable} -m edge_runtime pki enroll house --csr copy.pem --out out.pem >&2\n"
        "cat out.pem\n"
    )
    hook.chmod(0o755)
    renew = ("renew", "house/cars/car-1", "--hook", str(hook))
    assert "not due before" in done(house, *renew, "--if-due")
    assert identity.certificate() == before
    done(house, *renew)
    assert identity.certificate().public_key() != before.public_key()


@pytest.mark.parametrize("hook", ["false", "true", "/nowhere", "echo nonsense", "cat"])
def test_a_hook_that_fails_leaves_the_identity(house: Path, hook: str) -> None:
    identity = house / "house/cars/car-1/identity.pem"
    before = identity.read_bytes()
    failed = pki(house, "renew", "house/cars/car-1", "--hook", hook)
    assert failed.returncode in {1, 3}
    assert len(failed.stderr.splitlines()) == 1
    assert identity.read_bytes() == before


def test_a_passphrase_by_file_or_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("much secret\n")
    done(tmp_path, "init", "house", "--passphrase-file", "secret")
    refused = pki(tmp_path, "enroll", "house", "car-1")
    assert (refused.returncode, "passphrase" in refused.stderr) == (1, True)
    done(tmp_path, "enroll", "house", "car-1", "--passphrase-file", "secret")
    done(tmp_path, "enroll", "house", "car-2", env={"EDGE_RUNTIME_PKI_PASSPHRASE": "much secret"})


def test_the_dispatchers_key_is_changed_without_a_car_that_obeys_nobody(house: Path) -> None:
    home, car = house / "house", house / "house/cars/car-1"
    old = MessageSigner.load(home / "dispatcher/signing.key").key_id
    new = done(house, "signing-key", "house", "new").strip()
    assert set(done(house, "signing-key", "house", "list").split()) == {old, new}
    assert TrustedKeys(car / "trusted-keys").key_ids == [old]
    done(house, "renew", "house/cars/car-1", "--authority", "house")
    assert TrustedKeys(car / "trusted-keys").key_ids == sorted([old, new])
    done(house, "signing-key", "house", "use", new)
    assert MessageSigner.load(home / "dispatcher/signing.key").key_id == new
    done(house, "signing-key", "house", "retire", old)
    done(house, "renew", "house/cars/car-1", "--authority", "house")
    assert TrustedKeys(car / "trusted-keys").key_ids == [new]
    assert pki(house, "signing-key", "house", "use", old).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("enroll house", "--csr"),
        ("enroll house car-1", "already"),
        ("enroll house a/b", "1 to 64"),
        ("enroll nowhere car-1", "no certificate authority"),
        ("enroll house --csr none.pem --out x", "none.pem"),
        ("enroll house --csr policy --out x", "PKCS #10"),
        ("request house/cars/car-1 --id car-1", "already"),
        ("accept house/cars/car-1 policy", "request.key"),
        ("renew house/cars/car-1", "--authority"),
        ("renew house/cars/car-9 --authority house", "identity.pem"),
        ("revoke house car-9", "car-9"),
        ("init house", "nothing was changed"),
        ("kick car-1 --broker mqtts://localhost:1", "--identity"),
        ("kick car-1 --broker mqtt://localhost:1 --identity house/dispatcher", "mqtts://"),
    ],
)
def test_what_is_wrong_is_one_line(house: Path, arguments: str, says: str) -> None:
    (house / "policy").write_text("nonsense")
    failed = pki(house, *arguments.split())
    assert failed.returncode in {1, 2, 3}
    (line,) = failed.stderr.splitlines()
    assert says in line


# --- with a broker --------------------------------------------------------------------------------


@pytest.fixture
def cars_port() -> int:
    return free_port()


@pytest.fixture
def services_port(cars_port: int) -> int:
    while (port := free_port()) == cars_port:
        pass
    return port


@pytest.fixture
def broker(tmp_path: Path, cars_port: int, services_port: int) -> Iterator[BrokerProcess]:
    ports = ("--cars-port", str(cars_port), "--services-port", str(services_port))
    while (third := free_port()) in {cars_port, services_port}:
        pass
    ports += ("--tenants-port", str(third))
    done(tmp_path, "init", "house", "--enroll", "car-1", "--enroll", "car-2", *ports)
    assert (
        f"user {pwd.getpwuid(os.geteuid()).pw_name}\n"
        in (tmp_path / "house/broker/mosquitto.conf").read_text()
    )
    process = _mosquitto(
        tmp_path, tmp_path / "house/broker/mosquitto.conf", {5: cars_port, 4: services_port}
    ).start()
    yield process
    process.kill()


@pytest.mark.mosquitto
async def test_revoke_ends_the_session_and_lets_nobody_back(
    broker: BrokerProcess, tmp_path: Path, cars_port: int, services_port: int
) -> None:
    def settings(name: str) -> BusSettings:
        folder = IdentityFolder(tmp_path / "house/cars" / name)
        tls = TlsSettings(folder.ca, folder.identity)
        return BusSettings(f"mqtts://localhost:{cars_port}", name, session_expiry_s=0, tls=tls)

    assert broker.process is not None
    async with open_bus(settings("car-1")) as bad, open_bus(settings("car-2")) as good:
        bads, goods = bad.events(), good.events()
        assert isinstance(await anext(bads), Connected)
        assert isinstance(await anext(goods), Connected)
        said = await asyncio.to_thread(
            done, tmp_path, "revoke", "house", "car-1", "--broker-pid", str(broker.process.pid),
            "--kick", f"mqtts://localhost:{services_port}",
        )  # fmt: skip
        assert "1 certificate(s) revoked" in said
        async with asyncio.timeout(20):
            assert isinstance(await anext(bads), Disconnected)
        assert good.is_connected
    async with open_bus(settings("car-1")) as again:
        async with asyncio.timeout(20):
            event = await anext(again.events())
        assert isinstance(event, Disconnected)
        assert "revoked" in event.reason


@pytest.mark.mosquitto
def test_without_the_broker_at_hand_the_next_steps_are_said(
    broker: BrokerProcess, tmp_path: Path, services_port: int
) -> None:
    assert broker.process is not None
    said = done(tmp_path, "revoke", "house", "car-1")
    assert "SIGHUP" in said
    assert "pki kick car-1" in said
    url = f"mqtts://localhost:{services_port}"
    kick = ("kick", "car-1", "--broker", url, "--identity", "house/dispatcher")
    assert "ended" in done(tmp_path, *kick)
    by_a_car = pki(tmp_path, "kick", "car-2", "--broker", url, "--identity", "house/cars/car-1")
    assert by_a_car.returncode == 3
