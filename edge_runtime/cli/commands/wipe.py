"""`edge-runtime wipe`: before a car changes hands, take out everything that was the owner's.

Invariants
- The ledger is on disk, whole and synced, before anything is removed.
- Keys go first, the journal last: what an interruption leaves, a second run removes.
- Nothing is removed while the car runs.

Deliberately absent: overwriting. Flash keeps old copies whatever is written over them; what must
not be read from the chips belongs on an encrypted disk, whose key is then destroyed.
"""

import contextlib
import datetime as dt
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from edge_runtime import __version__
from edge_runtime.cli.commands.doctor import DEFAULT_SETTINGS, SettingsFile
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.installation import read_settings
from edge_runtime.contract.errors import ConfigError, LocalError
from edge_runtime.pki.files import sync_path

if TYPE_CHECKING:
    from edge_runtime.cli.commands.vehicle import VehicleOptions

_WORK_TABLES: Final = frozenset({"attempt", "chunk", "fence"})
"""Work of others on its way; everything else in the journal is the owner's account."""
_OURS_ALONE: Final = 0o600


class CarRuns(LocalError):  # noqa: N818 - named for what it is
    """The car works in the folder that is to be wiped."""


def wipe(
    settings: SettingsFile = DEFAULT_SETTINGS,
    /,
    *,
    ledger_to: Annotated[
        Path | None, Parameter(help="New file for the owner's ledger, JSON; written first.")
    ] = None,
    no_ledger: Annotated[
        bool, Parameter(negative="", help="Keep no ledger, or there is none that can be read.")
    ] = False,
    yes: Annotated[
        bool, Parameter(negative="", help="Do it; without, only say what would go.")
    ] = False,
) -> int:
    """Remove keys, policy, consent, journal and model packages of a stopped car.

    Results that were not handed over yet are done again by another car.
    """
    options, _ = read_settings(settings)
    if not yes:
        for path in _belongings(options):
            print(f"would remove {path}")
        raise ConfigError("nothing was removed; say --yes to remove these")
    if (ledger_to is None) is not no_ledger:
        raise ConfigError("say where the ledger goes, --ledger-to FILE, or --no-ledger")
    with _stopped(options.state_dir):
        if ledger_to is not None:
            _export_ledger(options, ledger_to)
        for path in _belongings(options):
            _remove(path)
            print(f"removed {path}")
    print(f"kept {settings}: it holds the car's id, and the broker's address and password")
    return ExitCode.DONE


def _belongings(options: "VehicleOptions") -> list[Path]:
    """Everything of the owner, in the order in which it goes; the lock stays until the end."""
    who = options.who
    keys = [path for path in (who.identity, who.tls_key, who.tls_cert) if path is not None]
    held = sorted(options.state_dir.iterdir()) if options.state_dir.is_dir() else []
    last = {name: place for place, name in enumerate(("journal.db-wal", "journal.db-shm"), 1)}
    last |= {"journal.db": len(last) + 1, "journal.db.lock": len(last) + 2}
    held.sort(key=lambda path: last.get(path.name, 0))
    return [path for path in [*keys, options.policy, *held] if os.path.lexists(path)]


@contextlib.contextmanager
def _stopped(state_dir: Path) -> Iterator[None]:
    """Hold the journal's lock, which a running car has. Raises `CarRuns`."""
    if not state_dir.is_dir():
        yield
        return
    path = state_dir / "journal.db.lock"
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CarRuns(
                f"{state_dir}: the car runs; first: systemctl disable --now edge-runtime-vehicle"
            ) from None
        yield
    path.unlink(missing_ok=True)


def _export_ledger(options: "VehicleOptions", target: Path) -> None:
    """Write the ledger, whole and synced. Raises `ConfigError` or `LocalError`."""
    if target.resolve().is_relative_to(options.state_dir.resolve()):
        raise ConfigError(f"--ledger-to {target}: that folder is about to be removed")
    ledger = {
        "vehicle": options.name,
        "runtime": f"edge-runtime {__version__}",
        "exported_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "journal": _account(options.state_dir / "journal.db"),
    }
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OURS_ALONE)
    except FileExistsError:
        raise ConfigError(f"--ledger-to {target} exists; a ledger never overwrites") from None
    with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor made as no one else's
        file.write(msgspec.json.format(msgspec.json.encode(ledger)) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync_path(target.resolve().parent)


def _account(journal: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of the journal that is not work on its way, by table."""
    from edge_runtime.vehicle.journal import journal_to_read

    if not journal.exists():
        return {}
    try:
        with journal_to_read(journal) as database:
            database.row_factory = sqlite3.Row
            names = [
                name
                for (name,) in database.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name"
                )
                if name not in _WORK_TABLES and not name.startswith("sqlite_")
            ]
            return {
                name: [dict(row) for row in database.execute(f'SELECT * FROM "{name}"')]  # noqa: S608 - a table's own name
                for name in names
            }
    except sqlite3.Error as error:
        raise LocalError(
            f"{journal}: the ledger cannot be read ({error}); --no-ledger wipes without it"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    sync_path(path.parent)
