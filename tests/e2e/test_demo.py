"""The demo of README.md itself, small: real models, real input, every fault, on both brokers."""

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from brokers import make_mosquitto
from node_tools import node, node_modules
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from edge_runtime.cli.demo.director import Director
from edge_runtime.cli.demo.house import House, HouseOptions
from edge_runtime.cli.demo.live import PlainView, Scene
from edge_runtime.cli.demo.report.data import FaultKind
from edge_runtime.cli.demo.run import Demo, DemoOptions, Outcome, make_programme

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models"))
CARS = 4
ITEMS = 30
ENCORE = 20
SUMMARY = {
    "cars", "jobs", "items", "results", "lost", "duplicate_results", "attempts", "released",
    "reissued", "killed_cars", "stop_latency_ms_max", "wall_s", "broker",
}  # fmt: skip

pytestmark = [pytest.mark.models, pytest.mark.timeout(240)]


@pytest.fixture(autouse=True)
def _needs_models() -> None:
    if not MODELS.is_dir():
        message = f"{MODELS} is missing; run `make models`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def mosquitto_url(tmp_path: Path) -> Iterator[str]:
    broker = make_mosquitto(tmp_path).start()
    yield broker.url(5)
    broker.kill()


def demo_arguments(folder: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "edge_runtime", "demo", "--json", "--seed=7"),
        f"--cars={CARS}",
        f"--models={MODELS}",
        f"--data={MODELS.parent / 'demo'}",
        f"--cache={MODELS.parent / 'cache'}",
        f"--report={folder / 'report.html'}",
        f"--state-dir={folder / 'state'}",
        *more,
    ]


def assert_good(done: subprocess.CompletedProcess[str], folder: Path) -> dict[str, object]:
    assert done.returncode == 0, done.stderr[-4_000:]
    (line,) = done.stdout.splitlines()
    summary: dict[str, object] = json.loads(line)
    assert set(summary) == SUMMARY
    assert (summary["lost"], summary["duplicate_results"]) == (0, 0)
    assert summary["items"] == summary["results"]
    page = (folder / "report.html").read_text()
    assert "Nothing was lost" in page
    assert 'class="picture"' in page
    return summary


def run_demo(folder: Path, *more: str) -> dict[str, object]:
    done = subprocess.run(
        demo_arguments(folder, *more), capture_output=True, text=True, timeout=230, check=False
    )
    return assert_good(done, folder)


def test_it_stays_until_it_is_told_to_go(tmp_path: Path) -> None:
    arguments = demo_arguments(tmp_path, "--stay", "--no-faults", "--items=3")
    with (tmp_path / "said").open("wb") as said, (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(arguments, stdout=out, stderr=said, stdin=subprocess.DEVNULL)
        try:
            deadline_s = time.monotonic() + 150
            while b"until Ctrl-C" not in (tmp_path / "said").read_bytes():
                assert demo.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            lines = (tmp_path / "said").read_text().splitlines()
            page = address_in(lines, "dashboard")
            with urllib.request.urlopen(page, timeout=10) as answer:  # noqa: S310 - the demo's own
                assert b"edge-runtime" in answer.read()
            run_examples(address_in(lines, "HTTP API"), address_in(lines, "MQTT broker"), tmp_path)
            for _ in range(2):
                kill_car(demo.pid, "car-2", tmp_path / "said")
            children = psutil.Process(demo.pid).children(recursive=True)
            demo.send_signal(signal.SIGINT)
            assert demo.wait(60) == 0
        finally:
            if demo.poll() is None:
                demo.kill()
                demo.wait()
    assert json.loads((tmp_path / "out").read_text())["lost"] == 0
    assert psutil.wait_procs(children, timeout=10)[1] == []


def address_in(lines: list[str], name: str) -> str:
    """What the demo says of where something is."""
    (said,) = [line for line in lines if line.startswith(f"{name} ")]
    return said.removeprefix(name).split()[0]


def run_examples(api: str, broker: str, folder: Path) -> None:
    """Every example does real work on the demo's stack, with nothing of ours on its way."""
    examples = folder / "examples"
    shutil.copytree(ROOT / "examples", examples)
    script = examples / "subscribe" / "javascript"
    (script / "node_modules").symlink_to(node_modules("examples/subscribe/javascript"))
    request = urllib.request.Request(f"{api}/jobs", headers={"X-Tenant": "demo"})  # noqa: S310 - the demo's own
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - the demo's own
        job = json.loads(answer.read())[0]
    address = api.removeprefix("http://").removesuffix("/v1")

    def said_by(*command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": "", "OPENAI_BASE_URL": api},
        )
        return done.stdout

    name, _, value = said_by(
        sys.executable, examples / "triton_infer.py", address, "minilm", "Where is my car?"
    ).partition(" ")
    assert name == "output"
    assert json.loads(value)["shape"] == [384]
    text = said_by(sys.executable, examples / "chat" / "chat.py", "Tell me of a car.")
    assert len(text.split()) > ITEMS
    for reader in (
        (sys.executable, examples / "subscribe" / "python" / "subscribe.py"),
        (node(), script / "subscribe.js"),
    ):
        told = said_by(*reader, broker, "demo", "--job", job["job"]).splitlines()
        assert len([line for line in told if "cursor" in json.loads(line)]) == job["items"]


def kill_car(demo: int, name: str, said: Path) -> None:
    """SIGKILL one car of a demo that stays; it is started again, and the demo says so."""
    (car,) = [p for p in psutil.Process(demo).children() if f"--id={name}" in p.cmdline()]
    line = f"{name} ended; it was started again"
    before = said.read_text().count(line)
    car.kill()
    deadline_s = time.monotonic() + 20
    while said.read_text().count(line) == before:
        assert psutil.pid_exists(demo)
        assert time.monotonic() < deadline_s, said.read_text()
        time.sleep(0.05)


def retained_on(url: str) -> list[str]:
    """Topics with a retained message."""
    host, _, port = url.removeprefix("mqtt://").partition(":")
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    topics: list[str] = []
    done = threading.Event()

    def on_message(_client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        # Retained messages come before what is published after the subscription.
        if message.topic == "end":
            done.set()
        else:
            topics.append(message.topic)

    client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
    client.on_subscribe = lambda client, *_: client.publish("end", b"", qos=1)
    client.on_message = on_message
    client.connect(host, int(port))
    client.loop_start()
    assert done.wait(10)
    client.disconnect()
    client.loop_stop()
    return topics


def assert_disturbed(summary: dict[str, object]) -> None:
    """Every fault struck; where the cars were done before, they were asked for more."""
    jobs = int(str(summary["jobs"]))
    assert summary["items"] == 3 * ITEMS + (jobs - 3) * ENCORE
    killed = int(str(summary["killed_cars"]))
    assert 1 <= killed <= jobs - 2, "once; a kill that came too late is given again in an encore"
    for figure in ("released", "reissued"):
        assert int(str(summary[figure])) >= 1
    latency = summary["stop_latency_ms_max"]
    assert isinstance(latency, float)
    assert 0 < latency < 1_000


def test_the_demo_loses_nothing_on_the_embedded_broker(tmp_path: Path) -> None:
    summary = run_demo(tmp_path, f"--items={ITEMS}")
    assert_disturbed(summary)
    assert summary["broker"] == "embedded"


@pytest.mark.mosquitto
def test_the_demo_loses_nothing_on_mosquitto(tmp_path: Path, mosquitto_url: str) -> None:
    summary = run_demo(tmp_path, f"--items={ITEMS}", f"--broker={mosquitto_url}")
    assert_disturbed(summary)
    assert summary["broker"] == mosquitto_url
    assert retained_on(mosquitto_url) == []


class LateDirector(PlainView):
    """Wants the owner back when everything was answered: too late for the jobs there are."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.director: Director | None = None
        self.said: list[str] = []

    def show(self, scene: Scene) -> None:
        is_over = all(job.done == job.items for job in scene.jobs) and len(scene.jobs) == 3
        if is_over and self.director is not None and not self.director.marks():
            self.director.wanted[:] = [FaultKind.OWNER_RETURNED]

    def say(self, line: str) -> None:
        self.said.append(line)


def test_where_the_cars_were_done_before_a_fault_they_are_asked_for_more(tmp_path: Path) -> None:
    options = DemoOptions(
        cars=2,
        items=1,
        seed=7,
        broker="embedded",
        faults=False,
        models=MODELS,
        data=MODELS.parent / "demo",
        cache=MODELS.parent / "cache",
        state_dir=tmp_path,
        timeout_s=170,
    )
    view = LateDirector()

    async def run() -> Outcome:
        house = House(HouseOptions(cars=2, broker="embedded", models=MODELS, state_dir=tmp_path))
        programme = await asyncio.to_thread(make_programme, options, view)
        async with house.running():
            demo = Demo(options, house, view)
            view.director = demo._director
            return await demo.run(programme)

    outcome = asyncio.run(run())
    assert outcome.faults == []
    assert "submitted text again: 20 items for pp-ocr" in view.said
    assert (
        outcome.summary.items == outcome.summary.results == 3 + ENCORE * (outcome.summary.jobs - 3)
    )
    assert outcome.summary.released >= 1
    assert [fault.kind for fault in outcome.report.faults] == [FaultKind.OWNER_RETURNED]
    assert outcome.report.jobs[-1].label == "text again"
    assert len(outcome.report.pictures) == 2


def test_without_faults_no_car_is_disturbed(tmp_path: Path) -> None:
    summary = run_demo(tmp_path, "--items=3", "--no-faults")
    assert (summary["killed_cars"], summary["items"]) == (0, 9)
    assert "No car was disturbed" in (tmp_path / "report.html").read_text()


def test_nothing_is_left_of_a_demo_that_is_killed(tmp_path: Path) -> None:
    arguments = demo_arguments(tmp_path, f"--items={ITEMS}")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if b"submitted" in line:
                break
        descendants = psutil.Process(demo.pid).children(recursive=True)
        assert len(descendants) >= CARS + 3
        demo.kill()
        deadline_s = time.monotonic() + 15
        gone, alive = psutil.wait_procs(descendants, max(0.0, deadline_s - time.monotonic()))
        assert alive == []
        assert len(gone) == len(descendants)
