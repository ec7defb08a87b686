"""The client's and operator's commands against a dispatcher that runs, without a car."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from services import FourProcesses, four_processes

from edge_runtime.contract.tensors import from_numpy
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

Done = subprocess.CompletedProcess[str]
Ask = Callable[..., Done]


def run(*arguments: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "edge_runtime", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FourProcesses]:
    folder = tmp_path_factory.mktemp("commands")
    write_synthetic("noop", folder / "models")
    tensor = from_numpy("x", np.ones(1, np.float32))
    (folder / "item.tensor").write_bytes(msgspec.msgpack.encode([tensor]))
    with four_processes(folder, folder / "models", cars=()) as four:
        # A submission waits for a dispatcher that is still starting.
        item = str(folder / "item.tensor")
        first = run("submit", "--model=noop", "--detach", f"--url={four.url}", item)
        assert first.returncode == 0, first.stderr
        yield four


@pytest.fixture
def ask(running: FourProcesses) -> Ask:
    return lambda *arguments: run(*arguments, f"--url={running.url}")


@pytest.fixture
def item(running: FourProcesses) -> str:
    return str(running.store.parent / "item.tensor")


@pytest.fixture
def job(ask: Ask, item: str) -> str:
    return ask("submit", "--model=noop", "--detach", item).stdout.strip()


def test_a_job_is_listed_explained_cancelled_and_forgotten(ask: Ask, job: str) -> None:
    listed = [json.loads(line) for line in ask("jobs", "list", "--json").stdout.splitlines()]
    assert listed[0]["job"] == job
    assert job in ask("jobs", "list", "--state=accepted").stdout
    assert ask("jobs", "list", "--state=done").stdout == ""
    assert "accepted" in ask("jobs", "status", job).stdout
    why = json.loads(ask("jobs", "why", job, "--json").stdout)
    assert (why["items_open"], why["cars_total"]) == (1, 0)
    assert "no car" in ask("jobs", "why", job).stdout
    assert json.loads(ask("jobs", "cancel", job, "--json").stdout)["state"] == "cancelled"
    assert ask("results", job).stdout == ""
    assert ask("jobs", "requeue", job).stdout == "0\n"
    assert ask("jobs", "delete", job).returncode == 0
    gone = ask("jobs", "status", job)
    assert (gone.returncode, len(gone.stderr.splitlines())) == (3, 1)


def test_an_empty_fleet_and_no_dead_letters_are_no_error(ask: Ask) -> None:
    assert ask("fleet", "list", "--json").stdout == ""
    assert "0 cars" in ask("fleet", "list").stdout
    assert ask("jobs", "dead-letters").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("submit", "--model=none", __file__), 3, "none"),
        (("submit", "--model=noop", __file__), 3, "wrong_tensor"),
        (("submit", "--model=noop"), 2, "--text-lines"),
        (("submit", "--model=noop", "missing.jpg"), 2, "missing.jpg: No such file"),
        (("submit", "--model=noop", "--parameters=[1]", __file__), 2, "must be a JSON object"),
        (("submit", "--model=noop", "--parameters={", __file__), 2, "is not JSON"),
        (("submit", "--model=noop", "--deadline=-1", __file__), 2, "--deadline"),
        (("fleet", "quarantine", "nobody"), 3, "nobody"),
        (("jobs", "status", "j0"), 3, "j0"),
    ],
)
def test_what_is_refused_is_one_line(
    ask: Ask, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = ask(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert says in line


def test_the_same_key_is_the_same_job_and_another_body_is_refused(ask: Ask, item: str) -> None:
    command = ("submit", "--model=noop", "--detach", "--key=k1", item)
    first, again = ask(*command), ask(*command)
    assert first.stdout == again.stdout != ""
    other = ask(*command, item)
    assert (other.returncode, other.stdout) == (3, "")
    assert "409" in other.stderr


def test_a_store_in_use_is_backed_up_by_its_dispatcher(
    ask: Ask, running: FourProcesses, tmp_path: Path
) -> None:
    size, _, path = ask("store", "backup").stdout.strip().partition(" ")
    assert Path(path).stat().st_size == int(size)
    held = run("store", "backup", str(running.store), str(tmp_path / "copy.db"))
    assert held.returncode == 1
    assert "held by" in held.stderr
    assert run("store", "check", path).returncode == 0
    before, after = run("store", "migrate", path).stdout.split()
    assert before == after
    copy = tmp_path / "copy.db"
    assert run("store", "backup", path, str(copy)).returncode == 0
    assert run("store", "backup", path, str(copy)).returncode == 2
    copy.write_bytes(b"no store at all" * 100)
    assert run("store", "check", str(copy)).returncode == 1


def test_a_dispatcher_that_is_not_there_is_one_line_soon() -> None:
    done = run("jobs", "list", "--url=http://127.0.0.1:9")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)


def test_tap_shows_what_the_dispatcher_says(running: FourProcesses) -> None:
    broker = running.broker.arguments[1].removeprefix("--port=")
    command = ("tap", f"--broker=mqtt://127.0.0.1:{broker}", "--topic=er/1/host/+", "--count=1")
    assert "host dispatcher (retained)  host  dispatcher=dispatcher" in run(*command).stdout
    line = json.loads(run(*command, "--json").stdout)
    assert (line["kind"], line["fields"]["online"]) == ("host", True)


def test_a_second_dispatcher_on_the_same_store_names_the_holder(running: FourProcesses) -> None:
    arguments = [a for a in running.dispatcher.arguments if not a.startswith("--http")]
    second = run(*arguments, "--http=127.0.0.1:0")
    assert second.returncode == 1
    assert "held by dispatcher (pid" in second.stderr.splitlines()[-1]
