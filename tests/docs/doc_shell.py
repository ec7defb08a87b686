"""A reader's terminal: runs the blocks of one page, in order, in a folder like a fresh clone.

What differs from the page is said here: ports are free ones (in the text, and by the environment
where a command's default is meant), and what a page's own set-up replaces.
"""

import contextlib
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any, Final

import msgspec
from brokers import free_port
from doc_commands import joined
from doc_pages import ROOT, Block

from edge_runtime.cli.app import build_app
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.reference_page import commands, settings_of

STANDARD_PORTS: Final = (1883, 1884, 8080, 8090, 8883, 8884, 8885, 8886, 9001)
MQTT_PORTS: Final = ("1883", "1884", "8883", "8884")
BLOCK_TIMEOUT_S: Final = 150.0
READY_TIMEOUT_S: Final = 60.0
_PORT: Final = re.compile(r"(?<![\d.])(" + "|".join(map(str, STANDARD_PORTS)) + r")(?!\d)")
_FRAME: Final = """\
set -euo pipefail
. "$DOC_STATE"
set -a
{text}
set +a
export -p >"$DOC_STATE"
printf 'cd %q\\n' "$PWD" >>"$DOC_STATE"
"""


@cache
def _defaults_with_ports() -> list[tuple[str, str]]:
    """Variable and default of every setting whose default has a standard port in it."""
    return [
        (f"EDGE_RUNTIME_{'_'.join([*words, one.name.lstrip('-')]).replace('-', '_').upper()}", text)
        for words, command in commands(build_app())
        for one in settings_of(command)
        if _PORT.search(text := str(one.field_info.default))
    ]


@dataclass
class DocShell:
    """One page's terminal. `replace` maps what a page says to what is meant here."""

    folder: Path
    replace: Mapping[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    """Standard port, as text -> the one used here."""
    started: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)
    bad_ends: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for port in map(str, STANDARD_PORTS):
            while port not in self.ports:
                if (free := free_port()) not in self.ports.values():
                    self.ports[port] = free
        for name in ("examples", "broker", "deploy", "docs"):
            copytree(ROOT / name, self.clone / name)
        copyfile(ROOT / "README.md", self.clone / "README.md")
        (self.clone / ".venv").symlink_to(sys.prefix)
        (self.folder / "state").write_text(f"cd {shlex.quote(str(self.clone))}\n")

    @property
    def clone(self) -> Path:
        """Where the reader begins."""
        return self.folder / "clone"

    def substituted(self, text: str) -> str:
        for said, meant in self.replace.items():
            text = text.replace(said, meant)
        return _PORT.sub(lambda match: str(self.ports[match[0]]), text)

    def environment(self) -> dict[str, str]:
        """A new user's, with the ports of this page as every command's defaults."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDGE_RUNTIME_")}
        path = f"{Path(sys.prefix) / 'bin'}:{clean.get('PATH', '')}:/usr/sbin"
        defaults = {name: self.substituted(text) for name, text in _defaults_with_ports()}
        state = str(self.folder / "state")
        return clean | defaults | {"PATH": path, "DOC_STATE": state, "COLUMNS": "100"}

    def run(self, block: Block) -> str:
        """Run a block as it stands; what it printed. Fails the test where it fails."""
        text = block.text
        if block.language == "python":
            program = self.folder / f"block-{block.line}.py"
            program.write_text(self.substituted(text))
            text = f"python -W error {shlex.quote(str(program))}"
        return self.sh(text, block.where)

    def sh(self, text: str, where: str) -> str:
        """Run shell commands; what they printed."""
        try:
            done = subprocess.run(
                ["bash", "-c", _FRAME.format(text=self.substituted(text))],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=BLOCK_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as expired:
            raise AssertionError(f"{where} did not end: {expired.stdout!r}{self.logs()}") from None
        assert done.returncode == 0, (
            f"{where} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}{self.logs()}"
        )
        return done.stdout

    def stays(self, text: str, where: str) -> None:
        """Start each command of `text`, each when what the one before it serves is there."""
        for command in filter(None, map(str.strip, joined(text).splitlines())):
            if not command.startswith("#"):
                self._start(command)
                self._until_ready(where)

    def _until_ready(self, where: str) -> None:
        ready_before_s = time.monotonic() + READY_TIMEOUT_S
        while not self._is_ready():
            for name, process in self.started:
                assert process.poll() is None, f"{where}: {name} ended{self.logs()}"
            assert time.monotonic() < ready_before_s, f"{where} is not ready{self.logs()}"
            time.sleep(0.02)

    def _start(self, command: str) -> None:
        text = self.substituted(command)
        log = (self.folder / f"stays-{len(self.started)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                ["bash", "-c", f'. "$DOC_STATE"\nexec {text}'],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append((command, process))

    def _is_ready(self) -> bool:
        """Whether what was started last serves, or is with the dispatcher."""
        command = self.started[-1][0]
        if re.search(r"edge-runtime broker|mosquitto -c", command):
            return any(_accepts(self.ports[port]) for port in MQTT_PORTS)
        try:
            if "edge-runtime dispatcher" in command:
                self.ask("/readyz")
            if "edge-runtime vehicle" in command:
                online = [car["vehicle"] for car in self.ask("/v1/fleet")["cars"] if car["online"]]
                return any(car in command or "--id " not in command for car in online)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def ask(self, path: str) -> Any:
        """What the dispatcher answers, from JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["8080"], timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != HTTPStatus.OK:
                raise ConnectionRefusedError(answer.status)
            return msgspec.json.decode(answer.read())

    def logs(self) -> str:
        """The end of what each started command said."""
        tails = [
            f"\n--- {name}\n{(self.folder / f'stays-{number}.log').read_text()[-2_000:]}"
            for number, (name, _) in enumerate(self.started)
        ]
        return "".join(tails)

    def kill(self) -> None:
        """End what was started, last first, as Ctrl-C would."""
        for name, process in reversed(self.started):
            if process.poll() is None:
                process.terminate()
            try:
                code = process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait(10)
            if code not in {0, -signal.SIGTERM, ExitCode.INTERRUPTED}:
                self.bad_ends.append(f"{name} ended with {code}")


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def matches(shown: str, printed: str) -> bool:
    """Whether a page's output is what was printed; `…` is anything, alone on a line any lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else _line_pattern(line)
        for line in shown.rstrip().splitlines()
    )
    return re.fullmatch(pattern, printed.rstrip() + "\n") is not None


def _line_pattern(line: str) -> str:
    return ".*?".join(re.escape(part) for part in line.rstrip().split("…")) + r"[ \t]*\n"
