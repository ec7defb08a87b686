"""`edge-runtime store`: the dispatcher's store while no dispatcher holds it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from edge_runtime.cli.asking import ask
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import DEFAULT_TENANT, readable_file
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient

StorePath = Annotated[Path, Parameter(help="The store's SQLite file.")]


def backup(
    store: Annotated[Path | None, Parameter(help="The store's SQLite file.")] = None,
    target: Annotated[Path | None, Parameter(help="New file to write.")] = None,
    /,
    *,
    url: Annotated[
        str | None,
        Parameter(help="Ask the dispatcher at this HTTP address, which holds the store, instead."),
    ] = None,
) -> int:
    """Copy a store to a new file, whole and fsynced; prints its length in bytes.

    With --url the dispatcher that holds the store copies it, while it works, into its folder of
    backups; the line then ends with where.
    """
    if url is not None:
        return ask(url, DEFAULT_TENANT, _back_up_online)
    if store is None or target is None:
        raise ConfigError("name STORE and TARGET, or --url of the dispatcher that holds the store")
    from edge_runtime.dispatcher.storage.files import backup_file

    readable_file("STORE", store)
    if target.exists():
        raise ConfigError(f"{target} exists; a backup never overwrites")
    if not target.resolve().parent.is_dir():
        raise ConfigError(f"{target}: its folder does not exist")
    print(backup_file(store, target))
    return ExitCode.DONE


async def _back_up_online(client: "EdgeClient") -> None:
    done = await client.backup()
    print(done.bytes, done.path)


def migrate(store: StorePath, /) -> None:
    """Bring a store to this release's version; prints the version before and after."""
    from edge_runtime.dispatcher.storage.files import migrate_file

    before, after = migrate_file(readable_file("STORE", store))
    print(f"{before} {after}")


def check(store: StorePath, /) -> int:
    """Check integrity and consistency; exit code 1 and a line for each thing that is wrong."""
    from edge_runtime.dispatcher.storage.files import check_file

    problems = check_file(readable_file("STORE", store))
    for problem in problems:
        print(problem, file=sys.stderr)
    return ExitCode.FAILED if problems else ExitCode.DONE
