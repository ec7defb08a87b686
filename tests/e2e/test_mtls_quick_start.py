"""The README's five commands, as they stand there, from nothing to work on two enrolled cars."""

import asyncio
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import find_mosquitto, free_port
from services import Service
from test_four_processes import tensor_items, until_ready

from edge_runtime.client import EdgeClient
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

README = Path(__file__).parents[2] / "README.md"
PROGRAM = ".venv/bin/edge-runtime "
HEADING = "## With certificates"


def five_commands() -> list[str]:
    """The block under the heading that begins with `pki init`."""
    section = README.read_text().split(HEADING)[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(\S+ pki init .*?)```", section, re.DOTALL)
    return block.splitlines()


def distinct_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


@pytest.mark.mosquitto
@pytest.mark.timeout(180)
def test_the_five_commands_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = five_commands()
    assert len(commands) == 5
    cars, services, tenants, http = distinct_ports(4)
    write_synthetic("mlp5ms", tmp_path / "models")
    policy = tmp_path / "examples"
    policy.mkdir()
    (policy / "policy.toml").write_text((README.parent / "examples/policy.toml").read_text())
    monkeypatch.chdir(tmp_path)
    init, broker, *runs = (
        command.replace(":8883", f":{cars}").replace(":8884", f":{services}")
        for command in commands
    )
    # Only ports and the models differ from what is written.
    init += f" --cars-port {cars} --services-port {services} --tenants-port {tenants}"
    arguments = shlex.split(init.removeprefix(PROGRAM))
    subprocess.run([sys.executable, "-m", "edge_runtime", *arguments], check=True)
    mosquitto = shlex.split(broker)
    assert Path(mosquitto[0]).name == "mosquitto"
    mosquitto[0] = find_mosquitto() or ""
    with ExitStack() as stack:
        log = stack.enter_context((tmp_path / "mosquitto.log").open("wb"))
        process = subprocess.Popen(mosquitto, stdout=log, stderr=log)
        stack.callback(process.wait, 10)
        stack.callback(process.kill)
        started = []
        for number, command in enumerate(runs):
            words = shlex.split(command.removeprefix(PROGRAM))
            if words[0] == "dispatcher":
                words += ["--http", f"127.0.0.1:{http}", "--models", "models"]
            service = Service(f"{words[0]}-{number}", words, tmp_path).start()
            stack.callback(service.kill)
            started.append(service)
        asyncio.run(_work(f"http://127.0.0.1:{http}"))
        for service in started:
            assert service.stop() == 0, service.log.read_text()[-2_000:]
        logs = "".join(service.log.read_text() for service in started)
    assert logs.count("messages_verified") == 2
    assert "rejected" not in logs


async def _work(url: str) -> None:
    async with EdgeClient(url) as client:
        await until_ready(client, 2)
        results = [r async for r in client.submit("mlp5ms", tensor_items(400))]
    assert all(result.ok for result in results)
    assert len(results) == 400
    assert {result.vehicle for result in results} == {"car-1", "car-2"}
