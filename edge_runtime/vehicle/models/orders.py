"""What the car says to the process with a network, and what that answers: lines of JSON.

Every answer says how many bytes of answers that process has received until then: the owner's data
budget pays for what came, not for what was of use. Of what it sends it tells while that goes.
"""

from typing import Literal

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.package import PackageFault


class Patience(msgspec.Struct, frozen=True):
    """How long a server may be silent or slow; `contract.limits` says what each bound means."""

    silence_s: float = limits.FETCH_TIMEOUT_S
    window_s: float = limits.FETCH_RATE_WINDOW_S
    rate_min_bytes_per_s: float = limits.FETCH_RATE_MIN_BYTES_PER_S


class TrustedRoot(msgspec.Struct, frozen=True):
    """The root file that came with the car, and the folder of what was verified since."""

    root: str
    folder: str


class ObjectOrder(msgspec.Struct, frozen=True):
    """One object to have at `target`: where from, and what proves it."""

    url: str
    sha256: str
    length: int
    target: str


class UploadOrder(msgspec.Struct, frozen=True):
    """One file to put under `place`, by its SHA-256."""

    place: str
    sha256: str
    length: int
    source: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """Say whether `digests` are published, and have the files of the one package in `folder`.

    Without `trust` nothing but the digest is asked of a package; without `folder` no file of it
    is fetched: several digests may then be named. With `objects`, or `uploads`, it is about nothing
    else.
    """

    digests: tuple[str, ...] = ()
    base_url: str = ""
    folder: str | None = None
    trust: TrustedRoot | None = None
    patience: Patience = Patience()
    objects: tuple[ObjectOrder, ...] = ()
    uploads: tuple[UploadOrder, ...] = ()


class Verdicts(msgspec.Struct, frozen=True, tag="verdicts"):
    """The publisher of each digest (empty where there is no `trust`), and those with none."""

    publishers: dict[str, str]
    not_published: tuple[str, ...] = ()
    received_bytes: int = 0


class ManifestHeld(msgspec.Struct, frozen=True, tag="manifest"):
    """The verified manifest's bytes; the process waits to be told to go on."""

    data: bytes
    publisher: str
    received_bytes: int = 0


class FilesHeld(msgspec.Struct, frozen=True, tag="files"):
    """Every file is on disk and has the SHA-256 of the manifest."""

    received_bytes: int = 0


class ObjectsHeld(msgspec.Struct, frozen=True, tag="objects"):
    """Every object is on disk, but those that nobody can have: why, by SHA-256."""

    broken: dict[str, str]
    received_bytes: int = 0


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """So much of the uploads has left until now; more answers follow."""

    sent_bytes: int
    received_bytes: int = 0


class Refusal(msgspec.Struct, frozen=True):
    """Why a server will never take an upload."""

    status: int
    code: str
    message: str


class UploadsTaken(msgspec.Struct, frozen=True, tag="uploads"):
    """Every upload is whole there, but those that were refused: why, by SHA-256."""

    refused: dict[str, Refusal]
    received_bytes: int = 0


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """It did not work: the package is not right, the server not to be had, or the disk full."""

    kind: Literal["refused", "failed", "full"]
    detail: str
    fault: PackageFault | None = None
    received_bytes: int = 0


Answer = Verdicts | ManifestHeld | FilesHeld | ObjectsHeld | Sent | UploadsTaken | Trouble
GO_ON = b"go on\n"
PACKAGE_FOLDER = "package"
