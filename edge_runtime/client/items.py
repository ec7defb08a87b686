"""What a person has, as the items of a job: bytes, text, files."""

import asyncio
import mimetypes
from collections.abc import Iterable
from pathlib import Path

from edge_runtime.client.errors import JobRefused
from edge_runtime.client.objects import too_large
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput

ItemLike = bytes | bytearray | memoryview | str | Path | ItemInput
"""Bytes as they are, a `str` as text, a `Path` as its content with the media type of its name."""

_UNKNOWN_MEDIA_TYPE = "application/octet-stream"


async def to_items(items: ItemLike | Iterable[ItemLike]) -> tuple[ItemInput, ...]:
    """The items of a job; one alone may be given without a list around it.

    `JobRefused` for a file over `OBJECT_MAX_BYTES` (before it is read), `OSError` for one that
    cannot be read.
    """
    if isinstance(items, bytes | bytearray | memoryview | str | Path | ItemInput):
        items = (items,)
    made: list[ItemInput] = []
    for index, item in enumerate(items):
        match item:
            case ItemInput():
                made.append(item)
            case str():
                made.append(ItemInput(media_type="text/plain", text=item))
            case Path():
                made.append(await asyncio.to_thread(_from_file, item, index))
            case _:
                made.append(ItemInput(data=bytes(item)))
    return tuple(made)


def _from_file(path: Path, index: int) -> ItemInput:
    size = path.stat().st_size
    if size > limits.OBJECT_MAX_BYTES:
        raise JobRefused(too_large(f"items[{index}]", size))
    media_type = mimetypes.guess_type(path.name)[0] or _UNKNOWN_MEDIA_TYPE
    return ItemInput(media_type=media_type, data=path.read_bytes())
