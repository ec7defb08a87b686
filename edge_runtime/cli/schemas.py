"""Writes or checks the generated folder `schemas/`.

Golden vectors that exist are never overwritten: a change of their meaning is a fault that names
them, and then nothing is written at all.
"""

from pathlib import Path

from edge_runtime.cli.asyncapi_page import asyncapi_page
from edge_runtime.contract.golden import GoldenChanged
from edge_runtime.contract.schemas import asyncapi, schema_files


def write_schemas(folder: Path, check: bool) -> list[str]:
    """Bring `folder` in line with the code, or with `check` only say what is not.

    Returns one line per fault, empty when all is well: with `check` every file that differs, is
    missing or is not generated any more; without it only what must not be done by a program
    (changed or orphaned golden vectors). Raises `OSError`.
    """
    golden = {path.name: path.read_bytes() for path in (folder / "golden").glob("*.msgpack")}
    try:
        files = schema_files(golden)
    except GoldenChanged as error:
        return [str(error)]
    orphans = sorted(name for name in golden if f"golden/{name}" not in files)
    if orphans:
        return [
            f"golden vector {name} is in no table: put it back, never drop one" for name in orphans
        ]
    stale = [path for path in (folder / "json").glob("*.json") if f"json/{path.name}" not in files]
    differing = {name: data for name, data in files.items() if not _holds(folder / name, data)}
    if check:
        return [
            *(f"{folder / name} differs from the code" for name in sorted(differing)),
            *(f"{path} is not generated any more" for path in stale),
        ]
    for path in stale:
        path.unlink()
    for name, data in differing.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return []


def write_page(folder: Path, check: bool) -> list[str]:
    """Bring `docs/asyncapi/index.html` beside `folder`, if that is there, in line with the code.

    As `write_schemas`; raises `OSError`.
    """
    page = folder.resolve().parent / "docs" / "asyncapi" / "index.html"
    if not page.parent.is_dir():
        return []
    data = asyncapi_page(asyncapi()).encode()
    if _holds(page, data):
        return []
    if check:
        return [f"{page} differs from the code"]
    page.write_bytes(data)
    return []


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
