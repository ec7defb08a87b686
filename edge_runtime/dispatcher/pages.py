"""Results cut into messages that every bus takes.

Deliberately absent: the exact length of an encoded entry, which would be a second encoding of every
result. What is counted is never less than half of it.
"""

from collections.abc import Iterable, Iterator

from edge_runtime.contract import limits
from edge_runtime.contract.messages import ResultEntry


def entry_bytes(entry: ResultEntry) -> int:
    """About what an entry takes in a message: a failure's text, too, may be long."""
    size = len(bytes(entry.output)) + limits.ID_MAX_CHARS
    if entry.ref is not None:
        size += 2 * (len(entry.ref.sha256) + limits.ID_MAX_CHARS)
    if entry.error is not None:
        size += len(entry.error.message.encode()) + limits.ID_MAX_CHARS
    return size


def pages(entries: Iterable[ResultEntry]) -> Iterator[list[ResultEntry]]:
    """`entries` in order, cut at `UNIT_MAX_BYTES`; no page is empty."""
    page: list[ResultEntry] = []
    size = 0
    for entry in entries:
        entry_size = entry_bytes(entry)
        if page and size + entry_size > limits.UNIT_MAX_BYTES:
            yield page
            page, size = [], 0
        page.append(entry)
        size += entry_size
    if page:
        yield page
