"""A batch's file read in stretches, each cut into parts: one durable job for each model in it.

A part remembers for each of its lines where it lies in the file, so that its job's items can be
made again, the same ones, when a crash came between the part's commit and its job's. Nothing here
waits or writes; reading blocks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput
from edge_runtime.dispatcher.api.openai.lines import BadLine, Line, read_line


class PartLine(NamedTuple):
    """A line of a part: where it begins (bytes), how many items it became."""

    custom_id: str
    offset: int
    items: int
    is_base64: bool


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a record of kind `part` says: lines that share a job, or `bad` ones that have none.

    `job` is empty until the job is accepted; `problem` (code, message) is why it never was.
    """

    no: int
    model: str = ""
    lines: tuple[PartLine, ...] = ()
    bad: tuple[BadLine, ...] = ()
    job: str = ""
    problem: tuple[str, str] | None = None


class Place(NamedTuple):
    """How far a file has been read."""

    offset: int = 0
    line: int = 0
    parts: int = 0


class Stretch(NamedTuple):
    """What was read at once: parts with their jobs' items, and where to go on."""

    parts: list[tuple[Part, tuple[ItemInput, ...]]]
    place: Place
    is_end: bool


def read_stretch(
    path: Path,
    place: Place,
    endpoint: str,
    tasks: Mapping[str, str],
    seen: set[str],
    *,
    lines_max: int = limits.BATCH_PART_LINES,
) -> Stretch:
    """Read on from `place`; `seen` are the custom_ids so far, and grows. Raises `OSError`."""
    groups: dict[str, list[tuple[PartLine, Line]]] = {}
    bad: list[BadLine] = []
    offset, number = place.offset, place.line
    lines = size = 0
    is_end = True
    with path.open("rb") as file:
        file.seek(offset)
        for raw, length in _lines(file):
            if lines >= lines_max or size >= limits.BATCH_PART_BYTES:
                is_end = False
                break
            here, offset, number = offset, offset + length, number + 1
            if not raw.strip():
                continue
            lines, size = lines + 1, size + length
            line = read_line(raw, number, endpoint, tasks)
            if isinstance(line, Line) and line.custom_id in seen:
                message = "another line before has this custom_id"
                line = BadLine(number, line.custom_id, "duplicate_custom_id", message, "custom_id")
            if isinstance(line, BadLine):
                bad.append(line)
                continue
            seen.add(line.custom_id)
            at = PartLine(line.custom_id, here, len(line.items), line.is_base64)
            groups.setdefault(line.model, []).append((at, line))
    no = place.parts
    parts: list[tuple[Part, tuple[ItemInput, ...]]] = []
    if bad:
        parts.append((Part(no=no, bad=tuple(bad)), ()))
    for model, found in groups.items():
        for group in _by_items(found):
            at_lines = tuple(at for at, _ in group)
            items = tuple(item for _, line in group for item in line.items)
            parts.append((Part(no=no + len(parts), model=model, lines=at_lines), items))
    return Stretch(parts, Place(offset, number, no + len(parts)), is_end)


def _by_items(
    found: Sequence[tuple[PartLine, Line]],
) -> Iterator[Sequence[tuple[PartLine, Line]]]:
    """Lines with lists of texts may have many items: no job has more than it may."""
    start = count = 0
    for place, (at, _) in enumerate(found):
        if count + at.items > limits.BATCH_PART_ITEMS_MAX and place > start:
            yield found[start:place]
            start, count = place, 0
        count += at.items
    yield found[start:]


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Lines with the bytes each takes; of one that is too long only the beginning is held."""
    most = limits.BATCH_LINE_MAX_BYTES + 2
    while raw := file.readline(most):
        length = len(raw)
        while not raw.endswith(b"\n") and length >= most:
            rest = file.readline(limits.UPLOAD_WRITE_BYTES)
            length += len(rest)
            if rest.endswith(b"\n") or not rest:
                break
        yield raw.removesuffix(b"\n"), length


def items_again(
    path: Path, part: Part, endpoint: str, tasks: Mapping[str, str]
) -> tuple[ItemInput, ...]:
    """A part's items, from its lines in the file. Raises `OSError`."""
    items: list[ItemInput] = []
    with path.open("rb") as file:
        for at in part.lines:
            file.seek(at.offset)
            line = read_line(file.readline().removesuffix(b"\n"), 0, endpoint, tasks)
            if isinstance(line, Line):
                items += line.items
    return tuple(items)


def seen_in(parts: Iterable[Part]) -> set[str]:
    """The custom_ids of parts."""
    return {line.custom_id for part in parts for line in part.lines}
