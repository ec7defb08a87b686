"""Node.js and what `make .stamps/node` fetched for it: missing, tests skip, and fail in CI."""

import os
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def node() -> str:
    """The program."""
    found = shutil.which("node")
    if found is None:
        _missing("Node.js is not installed")
    return str(found)


def node_modules(part: str) -> Path:
    """The packages of a folder of the repository with a package.json."""
    folder = REPOSITORY / ".data" / "node" / part / "node_modules"
    if not folder.is_dir():
        _missing(f"{folder} is missing; run `make .stamps/node`")
    return folder


def _missing(message: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
