"""`edge-runtime schemas`: the generated documents of what travels."""

import sys
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.contract.errors import ConfigError

_DEFAULT_FOLDER: Final = Path("schemas")
Folder = Annotated[Path, Parameter(help="Folder of the documents.", name="--folder")]


def write(*, folder: Folder = _DEFAULT_FOLDER) -> int:
    """Generate the AsyncAPI document, JSON Schemas, topic table and golden vectors.

    The document's page too, where there is a folder docs/asyncapi beside.
    """
    return _run(folder, check=False)


def check(*, folder: Folder = _DEFAULT_FOLDER) -> int:
    """Exit with 1 and name the files where the documents differ from the code."""
    return _run(folder, check=True)


def _run(folder: Path, *, check: bool) -> int:
    from edge_runtime.cli.schemas import write_page, write_schemas

    try:
        faults = write_schemas(folder, check=check)
        faults += write_page(folder, check=check)
    except OSError as error:
        raise ConfigError(f"--folder {folder}: {error.strerror}") from None
    for fault in faults:
        print(fault, file=sys.stderr)
    return ExitCode.FAILED if faults else ExitCode.DONE
