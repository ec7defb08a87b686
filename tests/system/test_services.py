"""The units on a real systemd: ready, at work, watched, crashed, asleep, stopped, gone."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from brokers import REPOSITORY
from system_computer import DISPATCHER, POLICY, VEHICLE, Computer
from system_jobs import one_job, submitted, until_online

from edge_runtime.client import EdgeClient

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("system")]

UNITS = (VEHICLE, DISPATCHER)
STOP_MAX_S = 2.0
SLEEP_UNIT = "edge-runtime-sleep.service"
FAKE_SLEEP = f"[Unit]\nRequires={SLEEP_UNIT}\nAfter={SLEEP_UNIT}\n"


def test_systemd_finds_nothing_wrong_with_the_units(computer: Computer) -> None:
    done = computer.inside.run(
        "systemd-analyze",
        "verify",
        *(f"/etc/systemd/system/{unit}" for unit in (*UNITS, SLEEP_UNIT)),
    )
    assert (done.stdout, done.stderr) == ("", "")


async def test_both_start_and_serve_a_real_job(running: Computer) -> None:
    for unit in UNITS:
        assert running.inside.property(unit, "ActiveState") == "active"
    results = await one_job(running.url, items=300)
    assert len(results) == 300
    assert all(result.ok for result in results)


@pytest.mark.parametrize(
    ("model", "item"),
    [("minilm", "Where is my car?"), ("pp-ocr", REPOSITORY / ".data" / "demo" / "page.png")],
)
async def test_real_models_run_in_the_sandbox(
    running: Computer, models: Path, model: str, item: str | Path
) -> None:
    assert (models / model).is_dir(), "run `make models`"
    async with asyncio.timeout(100), EdgeClient(running.url) as client:
        (result,) = [result async for result in client.submit(model, [item])]
    assert result.ok, result


async def test_stopping_in_the_middle_of_work_takes_no_time_and_loses_nothing(
    running: Computer,
) -> None:
    async with submitted(running.url, items=1_200) as job:
        await job.until_results(50)
        await asyncio.to_thread(running.inside.until, VEHICLE, "StatusText", "working, ")
        for unit in UNITS:
            started_s = time.monotonic()
            await asyncio.to_thread(running.stop, unit)
            assert time.monotonic() - started_s < STOP_MAX_S, running.inside.journal(unit)[-3000:]
            assert running.inside.property(unit, "Result") == "success"
        await asyncio.to_thread(running.start, *UNITS)
        assert await job.all_results() == 1_200


TRACES = {
    "the folder of its runtime": "test -e /run/edge-runtime",
    "a user": "ls /run/systemd/dynamic-uid | grep edge-runtime",
    "a place for temporary files": "find /var -maxdepth 2 -name 'systemd-*edge-runtime*' | grep .",
    "its credentials": "ls /run/credentials | grep edge-runtime",
}


def traces(computer: Computer) -> set[str]:
    """What of the services is to be found."""
    run = computer.inside.run
    return {
        what for what, test in TRACES.items() if not run("sh", "-c", test, check=False).returncode
    }


def test_a_stopped_service_leaves_only_its_state(running: Computer) -> None:
    pids = set.union(*(running.processes(unit) for unit in UNITS))
    assert len(pids) >= len(UNITS)
    assert traces(running) == TRACES.keys()
    running.stop(*UNITS)
    assert traces(running) == set()
    assert not any(running.is_alive(pid) for pid in pids)
    for folder in ("edge-runtime", "edge-runtime-dispatcher"):
        assert running.inside.out("stat", "-c", "%a", f"/var/lib/private/{folder}") == "700"


@pytest.mark.parametrize("unit", UNITS)
def test_a_stuck_loop_is_killed_by_the_watchdog_and_begins_again(
    running: Computer, unit: str
) -> None:
    before, pid = running.restarts(unit), running.main_pid(unit)
    running.signal(unit, "STOP")
    running.inside.until(unit, "NRestarts", str(before + 1))
    running.inside.until(unit, "ActiveState", "active")
    assert "Watchdog timeout" in running.inside.journal(unit)
    assert running.main_pid(unit) != pid


@pytest.mark.parametrize("unit", UNITS)
async def test_a_crash_is_restarted_and_leaves_no_process(running: Computer, unit: str) -> None:
    await one_job(running.url, items=20)
    before = running.restarts(unit)
    pids = running.processes(unit)
    running.signal(unit, "KILL")
    running.inside.until(unit, "NRestarts", str(before + 1))
    running.inside.until(unit, "ActiveState", "active")
    assert pids
    assert not any(running.is_alive(pid) for pid in pids)
    await until_online(running.url)
    assert len(await one_job(running.url, items=20)) == 20


async def test_sleep_gives_work_back_and_waking_goes_on(running: Computer) -> None:
    running.inside.write("/etc/systemd/system/fake-sleep.target", FAKE_SLEEP)
    running.inside.run("systemctl", "daemon-reload")
    pid = running.main_pid(VEHICLE)
    async with submitted(running.url, items=800) as job:
        await job.until_results(20)
        started_s = time.monotonic()
        await asyncio.to_thread(running.inside.run, "systemctl", "start", "fake-sleep.target")
        assert time.monotonic() - started_s < 4
        assert running.inside.run("test", "-e", "/run/edge-runtime/asleep")
        assert running.status(VEHICLE) == "asleep"
        await until_online(running.url, cars=0)
        assert running.inside.property(VEHICLE, "ActiveState") == "active"
        await asyncio.to_thread(running.inside.run, "systemctl", "stop", "fake-sleep.target")
        await asyncio.to_thread(running.inside.until, SLEEP_UNIT, "ActiveState", "inactive")
        assert await job.all_results() == 800
    assert running.main_pid(VEHICLE) == pid


def test_the_sandbox_holds_and_the_engine_runs_in_it(running: Computer) -> None:
    """Nothing may be written and executed, no way leads to root, and ONNX Runtime is loaded."""
    # Anew: an agent that has worked hard has given its class back.
    running.inside.run("systemctl", "restart", VEHICLE)
    car, engine = sorted(running.processes(VEHICLE))
    for pid in (car, engine):
        facts = dict(
            line.split(":\t", 1)
            for line in running.inside.out("cat", f"/proc/{pid}/status").splitlines()
            if ":\t" in line
        )
        assert facts["NoNewPrivs"] == "1"
        assert facts["Seccomp"] == "2"
        assert int(facts["CapBnd"], 16) == 0
        assert "0" not in facts["Uid"].split()
        maps = running.inside.out("cat", f"/proc/{pid}/maps")
        assert not [line for line in maps.splitlines() if line.split()[1].startswith("rwx")]
        assert ("onnxruntime" in maps) is (pid == engine)
    assert scheduling_class(running, car) == os.SCHED_RR
    assert scheduling_class(running, engine) == os.SCHED_IDLE
    refused = running.inside.out(
        *("systemd-run", "--pipe", "--quiet", "--wait"),
        *sandbox_of(running),
        "/opt/edge-runtime/current/bin/python",
        "-c",
        PROBE,
    )
    assert refused.split() == ["mmap", "mprotect", "etc", "usr", "raw"]


def scheduling_class(computer: Computer, pid: int) -> int:
    """The class of a process's main thread (proc(5): field 41 of `stat`)."""
    stat = computer.inside.out("cat", f"/proc/{pid}/stat")
    return int(stat[stat.rindex(")") + 2 :].split()[41 - 3])


PROBE = """
import ctypes, mmap, socket
def tries(name, action):
    try:
        action()
    except OSError:
        print(name)
libc = ctypes.CDLL(None, use_errno=True)
page = mmap.mmap(-1, 4096)
def mprotect():
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if libc.mprotect(ctypes.c_void_p(address), 4096, 7):
        raise OSError(ctypes.get_errno(), "mprotect")
tries("mmap", lambda: mmap.mmap(-1, 4096, prot=7))
tries("mprotect", mprotect)
tries("etc", lambda: open("/etc/edge-runtime/x", "w"))
tries("usr", lambda: open("/usr/x", "w"))
tries("raw", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
"""
NOT_SANDBOX = ("Exec", "Type", "Notify", "Watchdog", "Restart", "Timeout", "LoadCredential")


def sandbox_of(computer: Computer) -> list[str]:
    """The unit's own settings as properties of a transient unit, without what makes it serve."""
    text = computer.inside.out("cat", f"/etc/systemd/system/{VEHICLE}")
    lines = text.split("[Service]")[1].split("[Install]")[0].splitlines()
    return [
        f"--property={line}"
        for line in lines
        if "=" in line and not line.startswith(("#", *NOT_SANDBOX, "State", "Runtime", "Kill"))
    ]


def test_an_agent_that_computes_for_long_loses_its_class_and_nothing_else(
    running: Computer,
) -> None:
    pid = running.main_pid(VEHICLE)
    running.signal(VEHICLE, "XCPU")
    deadline_s = time.monotonic() + 10
    while scheduling_class(running, pid) != os.SCHED_OTHER:
        assert time.monotonic() < deadline_s, running.inside.journal(VEHICLE)[-2000:]
        time.sleep(0.05)
    assert running.main_pid(VEHICLE) == pid
    running.stop(VEHICLE)
    assert running.inside.property(VEHICLE, "Result") == "success"


def test_reload_reads_the_policy_at_once(running: Computer) -> None:
    running.inside.write("/etc/edge-runtime/policy.toml", "paused = true\n" + POLICY)
    running.inside.run("systemctl", "reload", VEHICLE)
    running.inside.until(VEHICLE, "StatusText", "hold: owner_paused", 5)
    running.inside.write("/etc/edge-runtime/policy.toml", POLICY)
    running.inside.run("systemctl", "reload", VEHICLE)
    running.inside.until(VEHICLE, "StatusText", "ready", 10)


def test_a_wrong_setting_is_not_tried_again(running: Computer) -> None:
    path = "/etc/edge-runtime/vehicle.toml"
    settings = running.inside.out("cat", path)
    running.stop(VEHICLE)
    try:
        running.inside.write(path, settings.replace("state-dir", "stait-dir"))
        assert running.inside.run("systemctl", "start", VEHICLE, check=False).returncode
        running.inside.until(VEHICLE, "ActiveState", "failed", 10)
        assert running.inside.property(VEHICLE, "ExecMainStatus") == "2"
        assert "stait-dir" in running.inside.journal(VEHICLE)
    finally:
        running.inside.write(path, settings)
