"""What the report is made of. All times are UTC milliseconds."""

from enum import Enum

import msgspec

from edge_runtime.contract.http import AttemptView


class FaultKind(Enum):
    """What the demo did to a car."""

    OWNER_RETURNED = "owner_returned"
    KILLED = "killed"
    OVERHEATED = "overheated"


class FaultMark(msgspec.Struct, frozen=True, kw_only=True):
    """One fault: when it was given, and when the car was ready again (None: not yet)."""

    kind: FaultKind
    vehicle: str
    at_ms: int
    recovered_ms: int | None = None


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job: its id, what people call it, and what runs it."""

    job: str
    label: str
    model: str
    task: str
    items: int


class ResultMark(msgspec.Struct, frozen=True, kw_only=True):
    """When one canonical result was committed."""

    job: str
    at_ms: int


class Box(msgspec.Struct, frozen=True, kw_only=True):
    """Something found in a picture: corners in its pixels, clockwise, and what it is."""

    corners: tuple[tuple[float, float], ...]
    label: str
    score: float


class PictureAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A picture as it was submitted, with what was found in it.

    `hides` says that what was found is private: the page shows how it would be blurred.
    """

    caption: str
    media_type: str
    picture: bytes
    width: int
    height: int
    boxes: tuple[Box, ...]
    vehicle: str
    hides: bool = False


class SimilarAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Two sentences whose embeddings lie close: cosine similarity, 1 is the same meaning."""

    first: str
    second: str
    similarity: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The demo's final JSON object; `lost` and `duplicate_results` are the subscriber's count.

    `stop_latency_ms_max` is the slowest measured stop, None where nothing was stopped.
    """

    cars: int
    jobs: int
    items: int
    results: int
    lost: int
    duplicate_results: int
    attempts: int
    released: int
    reissued: int
    killed_cars: int
    stop_latency_ms_max: float | None
    wall_s: float
    broker: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page. `started_ms` is when the jobs were submitted."""

    summary: Summary
    started_ms: int
    finished_ms: int
    cars: tuple[str, ...]
    jobs: tuple[JobRow, ...]
    attempts: tuple[AttemptView, ...]
    results: tuple[ResultMark, ...]
    faults: tuple[FaultMark, ...]
    pictures: tuple[PictureAnswer, ...] = ()
    similar: tuple[SimilarAnswer, ...] = ()
    machine: str = ""
