"""`edge-runtime upgrade`: run another release, and go back by itself where it is not healthy.

Releases stand side by side in `/opt/edge-runtime/<version>`; `current` names the one that runs,
`previous` the one before. Healthy is a release whose doctor finds no fault, whose service says
READY and then stays the same process for a while.

Invariants
- A release that does not get past its own doctor is never switched to.
- A link always names a whole release: links are replaced, not edited.
- Going back takes the journal of before along where the new release has changed its format.
- From the switch until the verdict `.trial` is there. Where this command dies, or the computer
  does, `edge-runtime-rollback.service` goes back once systemd gives the new release up.

Deliberately absent: fetching a release (deploy/install.sh does), and the dispatcher's upgrade,
whose store is backed up with `edge-runtime store backup`.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.commands.doctor import DEFAULT_SETTINGS
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError, LocalError

_ROOT: Final = Path("/opt/edge-runtime")
_UNIT: Final = "edge-runtime-vehicle.service"
_LOOK_EVERY_S: Final = 0.5
_COMMAND_MAX_S: Final = limits.UPGRADE_COMMAND_MAX_S


class Unhealthy(LocalError):  # noqa: N818 - named for what it is
    """The new release is not healthy; the message says why."""


def upgrade(
    version: Annotated[
        str | None, Parameter(help="A release in the folder of releases, such as 0.2.0.")
    ] = None,
    /,
    *,
    roll_back: Annotated[
        bool, Parameter(negative="", help="Go back to the release before this one.")
    ] = False,
    healthy_s: Annotated[
        float, Parameter(help="How long the new service must run undisturbed, seconds.")
    ] = 30.0,
    settings: Annotated[
        Path, Parameter(help="The settings that the car runs with.")
    ] = DEFAULT_SETTINGS,
    releases: Annotated[Path, Parameter(help="Folder of releases.")] = _ROOT,
    unit: Annotated[str, Parameter(help="The car's service.")] = _UNIT,
) -> int:
    """Switch the car to a release that is installed beside this one; back, if it is not healthy.

    Exit code 1 where the old release runs again.
    """
    if (version is None) is not roll_back:
        raise ConfigError("name the VERSION to run, or say --roll-back")
    if not 0 <= healthy_s <= limits.UPGRADE_HEALTHY_MAX_S:
        raise ConfigError(f"--healthy-s must be 0 to {limits.UPGRADE_HEALTHY_MAX_S:g}")
    from edge_runtime.cli.installation import read_settings

    journal = read_settings(settings)[0].state_dir / "journal.db"
    installed = Releases(releases, unit, settings, journal)
    if version is None:
        _say(f"back to {installed.go_back()}")
        return ExitCode.DONE
    old = installed.named("current")
    if old == version:
        _say(f"{version} runs already")
        return ExitCode.DONE
    installed.examine(version)
    installed.switch_to(version)
    try:
        installed.watch(healthy_s)
    except Unhealthy as error:
        _say(f"{version} is not healthy: {error}")
        _say(f"back to {installed.go_back()}")
        return ExitCode.FAILED
    installed.settle()
    _say(f"{version} runs; {old} is kept for --roll-back")
    return ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases on this computer, and the service that runs one of them."""

    folder: Path
    unit: str
    settings: Path
    journal: Path

    @property
    def _trial(self) -> Path:
        return self.folder / ".trial"

    @property
    def _kept_journal(self) -> Path:
        return self.journal.with_name("journal.db.before-upgrade")

    def named(self, link: str) -> str:
        """The release that `current` or `previous` names. Raises `ConfigError`."""
        try:
            return (self.folder / link).readlink().name
        except OSError as error:
            raise ConfigError(f"{self.folder / link}: {error.strerror}") from None

    def examine(self, version: str) -> None:
        """Have the new release's own doctor look. Raises `ConfigError` or `LocalError`."""
        program = self._program(version)
        if version != Path(version).name or not program.is_file():
            raise ConfigError(f"{program} is not there; install it with deploy/install.sh")
        self._consult(version)

    def _program(self, version: str) -> Path:
        return self.folder / version / "bin" / "edge-runtime"

    def _consult(self, version: str) -> None:
        """Raise `Unhealthy` with what a release's doctor finds at fault."""
        done = _run(str(self._program(version)), "doctor", "--quick", str(self.settings))
        if done.returncode:
            told = " ".join((done.stdout + done.stderr).split())
            raise Unhealthy(f"its doctor says: {told[-limits.TEXT_MAX_CHARS :]}")

    def switch_to(self, version: str) -> None:
        """Stop the car, keep its journal, and point the links at the new release."""
        self._systemctl("stop")
        self._keep_journal()
        self._trial.touch()
        self._link("previous", self.named("current"))
        self._link("current", version)

    def watch(self, healthy_s: float) -> None:
        """Start the service and see it run. Raises `Unhealthy`."""
        started = _run("systemctl", "start", self.unit)
        if started.returncode:
            raise Unhealthy("its service did not say READY: " + " ".join(started.stderr.split()))
        process = self._process()
        deadline_s = time.monotonic() + healthy_s
        while time.monotonic() < deadline_s:
            time.sleep(min(_LOOK_EVERY_S, healthy_s))
            if self._process() != process or process == "0":
                raise Unhealthy("its service ended after it had said READY")
        self._consult(self.named("current"))

    def _process(self) -> str:
        """The service's main process where it is active, "0" otherwise."""
        state = _run("systemctl", "is-active", "--quiet", self.unit)
        if state.returncode:
            return "0"
        return _run("systemctl", "show", self.unit, "--property=MainPID", "--value").stdout.strip()

    def settle(self) -> None:
        """The new release is the one that runs; what going back needed is removed."""
        self._trial.unlink(missing_ok=True)
        self._kept_journal.unlink(missing_ok=True)

    def go_back(self) -> str:
        """Run the previous release again; returns it. Raises where not even that starts."""
        version = self.named("previous")
        self._systemctl("stop")
        self._link("current", version)
        self._restore_journal()
        self._trial.unlink(missing_ok=True)
        _run("systemctl", "reset-failed", self.unit)
        self._systemctl("start")
        return version

    # --- links and journal ---------------------------------------------------------------

    def _link(self, name: str, version: str) -> None:
        fresh = self.folder / f".{name}-{os.getpid()}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(version)
        fresh.replace(self.folder / name)

    def _keep_journal(self) -> None:
        """Copy the journal of the stopped car, as a backup of SQLite makes it."""
        self._kept_journal.unlink(missing_ok=True)
        if not self.journal.exists():
            return
        with (
            contextlib.closing(sqlite3.connect(self.journal)) as source,
            contextlib.closing(sqlite3.connect(self._kept_journal)) as copy,
        ):
            source.backup(copy)
        _own_as(self.journal, self._kept_journal)

    def _restore_journal(self) -> None:
        """Put the journal of before back where the newer one is in another format.

        What the newer one knew more is work of the trial: its leases run out, it is done again.
        """
        kept = self._kept_journal
        if not kept.exists():
            return
        if self.journal.exists() and _format(self.journal) == _format(kept):
            kept.unlink()
            return
        for suffix in ("-wal", "-shm"):
            self.journal.with_name(self.journal.name + suffix).unlink(missing_ok=True)
        kept.replace(self.journal)

    def _systemctl(self, verb: str) -> None:
        done = _run("systemctl", verb, self.unit)
        if done.returncode:
            raise LocalError(f"systemctl {verb} {self.unit}: {' '.join(done.stderr.split())}")


def _format(journal: Path) -> int:
    """The version of a journal's schema; -1 where it cannot be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
            return int(database.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error:
        return -1


def _own_as(model: Path, copy: Path) -> None:
    """The service's user, who exists only while it runs, must be able to use the copy."""
    owner = model.stat()
    os.chown(copy, owner.st_uid, owner.st_gid)
    shutil.copymode(model, copy)


def _run(*argv: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=_COMMAND_MAX_S
        )
    except subprocess.TimeoutExpired:
        raise LocalError(f"{argv[0]} did not end within {_COMMAND_MAX_S:g} s") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
