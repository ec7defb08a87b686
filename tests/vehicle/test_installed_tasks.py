"""A car without the extra `ocr`: it announces what it can do, and says what it lacks."""

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from agent_rig import VEHICLE
from brokers import BrokerProcess
from scripted_dispatcher import row, scripted_dispatcher, unit_offer

from edge_runtime.bus import open_bus
from edge_runtime.contract.messages import Birth, Refused
from edge_runtime.contract.package import (
    KNOWN_TASKS,
    ModelSpec,
    Package,
    PackageFault,
    PackageRefused,
)
from edge_runtime.contract.reasons import RefusalReason
from edge_runtime.vehicle.inference.tasks.installed import installed_tasks, why_not_installed
from edge_runtime.vehicle.inference.tasks.registry import load_task
from edge_runtime.vehicle.models.store import PackageStore

OCR = "image-to-text"
INSTALL = "pip install 'edge-runtime[vehicle,ocr]'"
LACKING = (*("cv2", "PIL", "tokenizers", "huggingface_hub", "msgpack", "aiohttp"), "litestar")
"""What developers have and a car has not."""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of processes to which those libraries are not installed."""
    folder = tmp_path / "bare"
    folder.mkdir()
    absent = "\n".join(f"sys.modules[{name!r}] = None" for name in LACKING)
    (folder / "sitecustomize.py").write_text(f"import sys\n{absent}\n")
    return {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}


def run(env: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


def test_with_everything_installed_every_task_can_be_done() -> None:
    assert set(installed_tasks()) == KNOWN_TASKS


def test_what_is_not_installed_is_refused_with_the_name_of_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert OCR not in installed_tasks()
    assert why_not_installed("object-detection") is None
    spec = ModelSpec(
        name="reader",
        version="1",
        task=OCR,
        licence="MIT",
        source="made up",
        files={},
        reference_ms=1.0,
        memory_bytes=1,
        inputs=(),
        outputs=(),
    )
    with pytest.raises(PackageRefused) as refused:
        load_task(tmp_path, spec, None)  # type: ignore[arg-type]  # it must not come to be used
    assert refused.value.reason is PackageFault.UNKNOWN_TASK
    assert INSTALL in refused.value.detail


def test_a_plain_car_can_import_all_of_its_code(bare: dict[str, str]) -> None:
    script = """
import importlib, pkgutil, edge_runtime.vehicle
for module in pkgutil.walk_packages(edge_runtime.vehicle.__path__, "edge_runtime.vehicle."):
    # What makes packages of models, what needs OpenCV, and what needs the extra `vss`.
    if not any(part in module.name for part in (".importers", ".tasks.ocr", ".kuksa")):
        importlib.import_module(module.name)
from edge_runtime.vehicle.inference.tasks.installed import installed_tasks
print(*installed_tasks())
"""
    assert set(run(bare, "-c", script).split()) == KNOWN_TASKS - {OCR}


async def test_the_doctor_says_what_is_missing(
    bare: dict[str, str],
    tmp_path: Path,
    embedded_broker: BrokerProcess,
    synthetic: Callable[[str], Package],
) -> None:
    reader = tmp_path / "reader"
    shutil.copytree(synthetic("chain").folder, reader)
    spec = (reader / "model.toml").read_text()
    (reader / "model.toml").write_text(spec.replace('task = "tensor"', f'task = "{OCR}"'))
    await PackageStore(tmp_path / "state" / "packages", 1 << 30).add(reader)
    settings = tmp_path / "vehicle.toml"
    settings.write_text(
        f'[vehicle]\nid = "car-1"\nbroker = "{embedded_broker.url(5)}"\n'
        f'state-dir = "{tmp_path / "state"}"\nsensors = "simulated"\n'
    )
    command = (sys.executable, "-m", "edge_runtime", "doctor", str(settings), "--json")
    doctor = await asyncio.create_subprocess_exec(*command, env=bare, stdout=subprocess.PIPE)
    told, _ = await doctor.communicate()
    findings = {finding["subject"]: finding for finding in map(json.loads, told.splitlines())}
    tasks, models = findings["tasks"], findings["models"]
    assert tasks["verdict"] == "ok"
    assert "object-detection" in tasks["says"]
    assert INSTALL in tasks["says"]
    assert models["verdict"] == "warning"
    assert "cannot run" in models["says"]
    assert INSTALL in models["do"]


async def test_a_plain_car_announces_what_it_can_do_and_refuses_the_rest(
    bare: dict[str, str],
    tmp_path: Path,
    embedded_broker: BrokerProcess,
    synthetic: Callable[[str], Package],
) -> None:
    namespace = f"t{secrets.token_hex(4)}"
    url = embedded_broker.url(5)
    policy = tmp_path / "policy.toml"
    policy.write_text("dwell_s = 0\n[consent]\ngiven = true\nversion = 1\n")
    arguments = [
        *(sys.executable, "-m", "edge_runtime", "vehicle", "--id", VEHICLE, "--broker", url),
        *("--state-dir", str(tmp_path / "car"), "--policy", str(policy)),
        *("--namespace", namespace, "--sensors", "simulated"),
    ]
    async with scripted_dispatcher(open_bus, url, VEHICLE, namespace) as peer:
        with (tmp_path / "log").open("wb") as log:
            car = await asyncio.create_subprocess_exec(*arguments, env=bare, stderr=log)
        try:
            await peer.until(lambda: bool(peer.states))
            (birth,) = [status for status in peer.statuses if isinstance(status, Birth)]
            assert set(birth.tasks) == KNOWN_TASKS - {OCR}
            peer.offer(unit_offer(synthetic("chain"), [row(16)], task=OCR))
            await peer.until(lambda: bool(peer.verdicts))
            (verdict,) = peer.verdicts
            assert isinstance(verdict, Refused)
            assert verdict.reason is RefusalReason.TASK_UNKNOWN
        finally:
            car.terminate()
            assert await asyncio.wait_for(car.wait(), 60) == 0
