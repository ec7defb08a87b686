"""Decodes JPEG and PNG with the size checked first, from the header, without decompressing.

Boxes and corners that tasks report are in the pixels of the image as it is shown: a JPEG's EXIF
orientation is applied before anything is computed.
"""

import struct
from typing import Final

import cv2
import numpy as np

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import Array, ItemFailure

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_SIDES: Final = struct.Struct(">II")
_PNG_HEADER_KIND: Final = b"IHDR"
_PNG_HEADER_BYTES: Final = 13
_PNG_END_KIND: Final = b"IEND"
_PNG_CHECKSUM_BYTES: Final = 4
_JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
_JPEG_START_OF_SCAN: Final = 0xDA
_JPEG_END: Final = b"\xff\xd9"
_JPEG_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})

# One computation, one core: OpenCV would otherwise start a thread for each.
cv2.setNumThreads(1)


def decode_image(data: bytes) -> Array:
    """Return the image as uint8 [height, width, 3] in OpenCV's order, blue first.

    Raises `ItemFailure`: undecodable_input, input_too_large.
    """
    if data.startswith(_PNG_SIGNATURE):
        width, height = _png_size(data)
    elif data.startswith(_JPEG_SIGNATURE):
        width, height = _jpeg_size(data)
    else:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the image is neither JPEG nor PNG")
    _check_size(width, height)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"the image is damaged: {error}") from error
    if image is None:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the image is damaged")
    return np.asarray(image)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"the image is {width} x {height} pixels")
    if max(width, height) > limits.IMAGE_MAX_SIDE or width * height > limits.IMAGE_MAX_PIXELS:
        raise ItemFailure(
            ItemError.INPUT_TOO_LARGE,
            f"the image is {width} x {height} pixels; the limit is {limits.IMAGE_MAX_PIXELS} "
            f"pixels and {limits.IMAGE_MAX_SIDE} a side",
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """Walk the chunks to the end: OpenCV makes room for what one claims before it reads it."""
    size: tuple[int, int] | None = None
    position = len(_PNG_SIGNATURE)
    for _ in range(limits.IMAGE_PARTS_MAX):
        if position + _PNG_CHUNK.size > len(data):
            break
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        position += _PNG_CHUNK.size
        if (kind == _PNG_HEADER_KIND) != (size is None):
            raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the PNG has no header or two")
        if length > len(data) - position - _PNG_CHECKSUM_BYTES:
            break
        if size is None:
            if length != _PNG_HEADER_BYTES:
                break
            size = _PNG_SIDES.unpack_from(data, position)
        elif kind == _PNG_END_KIND:
            return size
        position += length + _PNG_CHECKSUM_BYTES
    raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the PNG is damaged or cut short")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Walk the segments to the frame header, and make sure the scan has an end."""
    size: tuple[int, int] | None = None
    position = 2
    for _ in range(limits.IMAGE_PARTS_MAX):
        if position + 4 > len(data):
            break
        if data[position] != 0xFF:  # noqa: PLR2004 - every marker begins so
            break
        marker = data[position + 1]
        if marker == 0xFF or marker in _JPEG_WITHOUT_LENGTH:  # noqa: PLR2004 - padding
            position += 1 if marker == 0xFF else 2  # noqa: PLR2004 - padding
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAME_HEADERS and position + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 5)
            # A second frame header must not slip in behind a harmless first one.
            size = (width, height) if size is None else (max(width, size[0]), max(height, size[1]))
        if marker == _JPEG_START_OF_SCAN:
            if size is not None and data.find(_JPEG_END, position) >= 0:
                return size
            break
        position += 2 + length
    raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the JPEG is damaged or cut short")
