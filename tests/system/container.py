"""A computer with its own systemd: systemd-nspawn on a Debian root that `make test-system` made.

The root is never written to: each container has an overlay in memory, gone with it. It shares
the network of this machine, so that a broker outside is at 127.0.0.1.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

BOOT_S: Final = 60.0
COMMAND_S: Final = 120.0
NSPAWN: Final = (
    *("systemd-nspawn", "--boot", "--volatile=overlay", "--register=no", "--keep-unit"),
    *("--quiet", "--console=pipe"),
)
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Container:
    """A booted container; `init` is its systemd's pid, seen from outside."""

    nspawn: "subprocess.Popen[bytes]"
    init: int
    console: Path

    @property
    def enter(self) -> list[str]:
        """The words before a command that runs it inside."""
        spaces = ("--mount", "--uts", "--ipc", "--pid", "--root")
        return ["nsenter", f"--target={self.init}", *spaces, "--wdns=/"]

    def run(
        self, *argv: str, check: bool = True, stdin: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, as root; its output is text."""
        done = subprocess.run(
            [*self.enter, "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *argv],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def out(self, *argv: str) -> str:
        """What a command prints."""
        return self.run(*argv).stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Make a file inside."""
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text)

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` prints it."""
        return self.out("systemctl", "show", unit, f"--property={name}", "--value")

    def journal(self, unit: str) -> str:
        """What a unit logged since the boot."""
        return self.run("journalctl", "--unit", unit, "--output=cat", check=False).stdout

    def until(self, unit: str, name: str, wanted: str, seconds: float = 60.0) -> float:
        """Wait until a property has a value (a prefix); how long that took, in seconds."""
        started_s = time.monotonic()
        while not self.property(unit, name).startswith(wanted):
            if time.monotonic() - started_s > seconds:
                raise AssertionError(
                    f"{unit} {name} is {self.property(unit, name)!r}, not {wanted!r}:\n"
                    f"{self.run('systemctl', 'status', '--no-pager', unit, check=False).stdout}\n"
                    f"{self.journal(unit)[-6_000:]}"
                )
            time.sleep(0.05)
        return time.monotonic() - started_s


@contextmanager
def booted(root: Path, folder: Path, *arguments: str) -> Iterator[Container]:
    """A running container, ended with everything in it."""
    console = folder / "console.log"
    with console.open("wb") as output:
        nspawn = subprocess.Popen(
            [*NSPAWN, f"--directory={root}", *arguments, "systemd.show_status=false"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
        )
    try:
        container = Container(nspawn, _init_of(nspawn, console), console)
        _wait_booted(container)
        yield container
        container.run("systemctl", "poweroff", check=False)
        nspawn.wait(30)
    finally:
        nspawn.kill()
        nspawn.wait(10)


def _init_of(nspawn: "subprocess.Popen[bytes]", console: Path) -> int:
    deadline_s = time.monotonic() + BOOT_S
    while time.monotonic() < deadline_s and nspawn.poll() is None:
        for process in psutil.Process(nspawn.pid).children(recursive=True):
            if process.name() == "systemd":
                return process.pid
        time.sleep(0.05)
    raise AssertionError(f"no systemd came up in the container:\n{console.read_text()[-2000:]}")


def _wait_booted(container: Container) -> None:
    deadline_s = time.monotonic() + BOOT_S
    state = ""
    while time.monotonic() < deadline_s:
        state = container.run("systemctl", "is-system-running", check=False).stdout.strip()
        if state in {"running", "degraded"}:
            return
        time.sleep(0.1)
    raise AssertionError(f"the container is {state!r}:\n{container.console.read_text()[-2000:]}")
