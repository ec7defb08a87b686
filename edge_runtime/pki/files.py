"""Files of keys and certificates: written whole or not at all, private ones never readable.

A reader that opens a file while it is replaced sees the old or the new one, never a mixture,
also across a crash: written beside, synced, renamed, and the folder synced.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_runtime.contract.errors import LocalError, RemoteError
from edge_runtime.contract.limits import PKI_FILE_MAX_BYTES

PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
PRIVATE_FOLDER_MODE: Final = 0o700


class PkiError(LocalError):
    """A key, certificate or folder of this side cannot be used; the message names it and why."""


class PkiRefused(RemoteError):  # noqa: N818 - a refusal is an answer, not an alarm
    """What the other side handed over (a request, an answer) is not accepted."""


def write_file(
    path: Path, data: bytes, *, mode: int, prepare: Callable[[int], None] | None = None
) -> None:
    """Put `data` at `path`, durably and whole, replacing what is there. Raises OSError.

    `prepare` is called with the open new file before anything is in it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if prepare is not None:
                prepare(file.fileno())
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make what is in a file, or the names in a folder, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path) -> bytes:
    """The bytes of a key, certificate or request. Raises PkiError."""
    try:
        with path.open("rb") as file:
            data = file.read(PKI_FILE_MAX_BYTES + 1)
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}") from None
    if len(data) > PKI_FILE_MAX_BYTES:
        raise PkiError(f"{path}: larger than {PKI_FILE_MAX_BYTES} bytes")
    return data


def new_folder(path: Path) -> Path:
    """`path` as a private folder, made where it is missing. Raises PkiError."""
    try:
        path.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}") from None
    return path
