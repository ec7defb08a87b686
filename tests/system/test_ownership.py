"""A car's service life on a real systemd: examined, upgraded, rolled back, wiped.

The commands are those of docs/how-to/install-on-a-car.md.
"""

import asyncio
from collections.abc import Iterator

import pytest
from system_computer import VEHICLE, Computer
from system_jobs import one_job, until_online

from edge_runtime import __version__

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("system")]

PROGRAM = "/opt/edge-runtime/current/bin/edge-runtime"
RELEASES = "/opt/edge-runtime"
PACKAGE = "lib/python3.11/site-packages/edge_runtime"


@pytest.fixture
def car(running: Computer) -> Iterator[Computer]:
    """The car runs the installed release before and after; others are removed."""
    yield running
    script = (
        f"cd {RELEASES} && ln -sfn {__version__} current && rm -rf previous .trial 9.* && "
        f"systemctl reset-failed {VEHICLE} edge-runtime-rollback; systemctl restart {VEHICLE}"
    )
    running.inside.run("sh", "-c", script)


def make_release(computer: Computer, version: str, module: str = "", edit: str = "") -> None:
    """A copy of the installed release under another version; `edit` is a sed script for one file.

    As `install.sh` leaves it: whole, with its own name in its scripts.
    """
    new = f"{RELEASES}/{version}"
    script = (
        f"cp -a {RELEASES}/{__version__} {new} && "
        f"grep -lIr {RELEASES}/{__version__} {new}/bin {new}/pyvenv.cfg | "
        f"xargs sed -i 's|{RELEASES}/{__version__}|{new}|g'"
    )
    if module:
        path = f"{new}/{PACKAGE}/{module}"
        script += f" && cp {path} {path}.before && sed -i '{edit}' {path}"
        script += f" && ! cmp -s {path} {path}.before"
    computer.inside.run("sh", "-c", script)


def release_of(computer: Computer) -> str:
    """The release whose program the service's process runs."""
    pid = computer.main_pid(VEHICLE)
    words = computer.inside.out("cat", f"/proc/{pid}/cmdline").split("\0")
    return words[0].removeprefix(f"{RELEASES}/").split("/")[0]


def test_the_doctor_finds_no_fault_with_a_car_that_runs(running: Computer) -> None:
    pid = running.main_pid(VEHICLE)
    done = running.inside.run(PROGRAM, "doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the car runs" in done.stdout
    assert "the running car has the session" in done.stdout
    assert running.main_pid(VEHICLE) == pid
    assert running.status(VEHICLE) == "ready"


def test_the_doctor_leaves_a_stopped_car_able_to_start(running: Computer) -> None:
    running.stop(VEHICLE)
    done = running.inside.run(PROGRAM, "doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "takes this car" in done.stdout
    running.start(VEHICLE)


def test_the_owner_commands_a_service_whose_user_is_not_root(running: Computer) -> None:
    here = ("--state-dir=/var/lib/edge-runtime", "--policy=/etc/edge-runtime/policy.toml")
    run, until = running.inside.run, running.inside.until
    run(PROGRAM, "owner", "pause", *here)
    until(VEHICLE, "StatusText", "hold: owner_paused", 5)
    running.stop(VEHICLE)
    running.start(VEHICLE)
    until(VEHICLE, "StatusText", "hold: owner_paused", 5)
    run(PROGRAM, "owner", "resume", *here)
    until(VEHICLE, "StatusText", "ready", 10)


async def test_an_upgrade_keeps_the_old_release_to_go_back_to(car: Computer) -> None:
    make_release(car, "9.0.0")
    run = car.inside.run
    await asyncio.to_thread(run, PROGRAM, "upgrade", "9.0.0", "--healthy-s=2")
    assert release_of(car) == "9.0.0"
    await until_online(car.url)
    assert len(await one_job(car.url, items=20)) == 20
    await asyncio.to_thread(run, PROGRAM, "upgrade", "--roll-back")
    assert release_of(car) == __version__
    await until_online(car.url)


def test_a_release_that_its_own_doctor_rejects_is_never_tried(car: Computer) -> None:
    make_release(car, "9.0.1", "vehicle/inference/worker.py", "1i raise SystemExit(3)")
    pid = car.main_pid(VEHICLE)
    done = car.inside.run(PROGRAM, "upgrade", "9.0.1", check=False)
    assert done.returncode == 1
    assert "engine" in done.stderr
    assert car.main_pid(VEHICLE) == pid


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        ('s/"READY=1"/"READY=2"/', "did not say READY"),
        (
            "s/^\\( *\\)settle_memory()/\\1asyncio.get_running_loop().call_later(1, os._exit, 7)/",
            "ended after it had said READY",
        ),
    ],
    ids=["never ready", "ready, then broken"],
)
def test_a_release_that_is_not_healthy_is_taken_back(car: Computer, edit: str, why: str) -> None:
    make_release(car, "9.0.2", "cli/car_life.py", edit)
    drop_in = f"/etc/systemd/system/{VEHICLE}.d/impatient.conf"
    car.inside.write(drop_in, "[Service]\nTimeoutStartSec=5\n")
    car.inside.run("systemctl", "daemon-reload")
    try:
        done = car.inside.run(PROGRAM, "upgrade", "9.0.2", "--healthy-s=5", check=False)
    finally:
        car.inside.run("rm", drop_in)
        car.inside.run("systemctl", "daemon-reload")
    assert done.returncode == 1, done.stderr
    assert why in done.stderr
    assert release_of(car) == __version__
    car.inside.until(VEHICLE, "StatusText", "ready")
    assert car.inside.run("test", "-e", f"{RELEASES}/.trial", check=False).returncode


def test_an_upgrade_that_a_power_cut_ended_is_taken_back_when_it_does_not_come_up(
    car: Computer,
) -> None:
    make_release(car, "9.0.3", "cli/car_life.py", "1i raise SystemExit(3)")
    car.stop(VEHICLE)
    script = (
        f"cd {RELEASES} && touch .trial && ln -sfn {__version__} previous && ln -sfn 9.0.3 current"
    )
    car.inside.run("sh", "-c", script)
    car.inside.run("systemctl", "start", VEHICLE, check=False)
    car.inside.until(VEHICLE, "StatusText", "ready", 90)
    assert release_of(car) == __version__


def test_a_wiped_car_has_nothing_of_its_owner(running: Computer) -> None:
    inside = running.inside
    policy = inside.out("cat", "/etc/edge-runtime/policy.toml")
    refused = inside.run(PROGRAM, "wipe", "--yes", "--ledger-to=/srv/ledger.json", check=False)
    assert refused.returncode == 1
    assert "the car runs" in refused.stderr
    running.stop(VEHICLE)
    inside.run(PROGRAM, "wipe", "--yes", "--ledger-to=/srv/ledger.json")
    assert inside.out("ls", "-A", "/var/lib/edge-runtime/") == ""
    assert inside.run("test", "-e", "/etc/edge-runtime/policy.toml", check=False).returncode
    assert '"vehicle": "car-1"' in inside.out("cat", "/srv/ledger.json")
    assert inside.out("stat", "-c", "%a", "/srv/ledger.json") == "600"
    running.start(VEHICLE)
    inside.until(VEHICLE, "StatusText", "hold: consent_missing")
    inside.write("/etc/edge-runtime/policy.toml", policy + "\n")
    inside.until(VEHICLE, "StatusText", "ready")
