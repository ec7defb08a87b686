"""The process that talks to servers: `python -m edge_runtime.vehicle.models.fetch`.

It lives for one order. What HTTP, TLS and the `tuf` library take of memory is gone with it, and a
server that makes it hang or grow harms nobody else: the car kills it, and it dies with the car.

The order is one line on its input. It answers with one line: verdicts, or the manifest once that
is verified; then, told by a second line to go on, with one line when every file is on disk. A
fault is an answer too. Deliberately absent: deciding where packages lie, and room for them, which
is the store's.
"""

import errno
import os
import resource
import signal
import sys
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.package import PackageFault, PackageFile, PackageRefused, parse_manifest
from edge_runtime.contract.repository import MODELS_PATH
from edge_runtime.lifeline import die_with
from edge_runtime.vehicle.models.download import Downloader, ServerFailed, file_url
from edge_runtime.vehicle.models.orders import (
    GO_ON,
    PACKAGE_FOLDER,
    Answer,
    FilesHeld,
    ManifestHeld,
    ObjectsHeld,
    Order,
    Refusal,
    Sent,
    Trouble,
    UploadsTaken,
    Verdicts,
)
from edge_runtime.vehicle.models.upload import Uploader, UploadRefused

if TYPE_CHECKING:
    from edge_runtime.vehicle.models.trust import Trust

_NICENESS: Final = 10
_GONE: Final = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def main(arguments: list[str]) -> None:
    """Carry out the order on standard input for the process with the given id."""
    die_with(int(arguments[0]))
    # A Ctrl-C in the terminal is for the car's process, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever class the car's process has for the owner's sake, a download can wait.
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(_NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (limits.FETCH_MEMORY_MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    downloader = Downloader(order.patience)
    try:
        _carry_out(order, downloader)
    except PackageRefused as error:
        _answer(Trouble("refused", error.detail, error.reason), downloader)
    except ServerFailed as error:
        _answer(Trouble("failed", str(error)), downloader)
    except OSError as error:
        kind: Literal["full", "failed"] = "full" if error.errno in _FULL else "failed"
        _answer(Trouble(kind, str(error)), downloader)
    except (EdgeError, MemoryError, ImportError) as error:
        _answer(Trouble("failed", str(error) or type(error).__name__), downloader)


def _answer(answer: Answer, downloader: Downloader) -> None:
    answer = msgspec.structs.replace(answer, received_bytes=downloader.received_bytes)
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _carry_out(order: Order, downloader: Downloader) -> None:
    if order.uploads:
        _answer(_uploads(order, downloader), downloader)
        return
    if order.objects:
        _answer(_objects(order, downloader), downloader)
        return
    trust = _trust(order, downloader)
    if order.folder is None:
        _answer(_verdicts(order, trust), downloader)
        return
    (digest,) = order.digests
    proof = trust.proof(digest) if trust is not None else None
    url = f"{order.base_url.rstrip('/')}/{MODELS_PATH}/{digest}"
    size = proof.manifest_bytes if proof else limits.PACKAGE_MANIFEST_MAX_BYTES
    size = min(size, limits.PACKAGE_MANIFEST_MAX_BYTES)
    data = downloader.get_bytes(f"{url}/manifest", size)
    manifest = parse_manifest(data, digest)
    _answer(ManifestHeld(data, proof.publisher if proof else ""), downloader)
    if sys.stdin.buffer.readline() != GO_ON:
        return
    folder = Path(order.folder, PACKAGE_FOLDER)
    for file in manifest.files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        downloader.get_file(file_url(url, file.path), file, target)
    _answer(FilesHeld(), downloader)


def _objects(order: Order, downloader: Downloader) -> ObjectsHeld:
    """Have each object; one that is not there, or not what it should be, spoils no other."""
    broken = {}
    for wanted in order.objects:
        file = PackageFile(path=wanted.sha256, length=wanted.length, sha256=wanted.sha256)
        try:
            downloader.get_file(wanted.url, file, Path(wanted.target))
        except PackageRefused as error:
            broken[wanted.sha256] = error.detail
        except ServerFailed as error:
            if error.status not in _GONE:
                raise
            broken[wanted.sha256] = str(error)
    return ObjectsHeld(broken)


def _uploads(order: Order, downloader: Downloader) -> UploadsTaken:
    """Put each file; one that is refused spoils no other."""
    uploader = Uploader(order.patience, lambda sent: _answer(Sent(sent), downloader))
    refused = {}
    for wanted in order.uploads:
        try:
            uploader.put(wanted)
        except UploadRefused as error:
            refused[wanted.sha256] = Refusal(error.status, error.code, error.message)
    return UploadsTaken(refused)


def _verdicts(order: Order, trust: "Trust | None") -> Verdicts:
    if trust is None:
        return Verdicts(dict.fromkeys(order.digests, ""))
    publishers, not_published = {}, []
    for digest in order.digests:
        try:
            publishers[digest] = trust.proof(digest).publisher
        except PackageRefused as error:
            if error.reason is not PackageFault.NOT_PUBLISHED:
                raise
            not_published.append(digest)
    return Verdicts(publishers, tuple(not_published))


def _trust(order: Order, downloader: Downloader) -> "Trust | None":
    if order.trust is None:
        return None
    # The library takes a quarter of this process's memory: not loaded without a root to trust.
    from edge_runtime.vehicle.models.trust import Trust  # noqa: PLC0415

    root = Path(order.trust.root).read_bytes()
    return Trust(root, Path(order.trust.folder), order.base_url, downloader)


if __name__ == "__main__":
    main(sys.argv[1:])
