"""Decodes JPEG and PNG with the size checked first, from the header, without decompressing.

Boxes and corners that tasks report are in the pixels of the image as it is shown: the EXIF
orientation of a JPEG or PNG is applied before anything is computed.

Pixels are those that OpenCV decodes, to the bit, for every kind of PNG and JPEG that the tests
know; the decoders here (libjpeg-turbo, libspng) take 1.5 MB instead of its 160. A JPEG with a
subsampling that libjpeg-turbo has no name for (3:1, 4:1:0) is refused, where OpenCV reads it.
"""

import struct
from typing import Final

import numpy as np
import pyspng
import simplejpeg

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import Array, ItemFailure

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK: Final = struct.Struct(">I4s")
_PNG_SIDES: Final = struct.Struct(">II")
_PNG_HEADER_KIND: Final = b"IHDR"
_PNG_HEADER_BYTES: Final = 13
_PNG_END_KIND: Final = b"IEND"
_PNG_PIXEL_KINDS: Final = frozenset({_PNG_HEADER_KIND, b"PLTE", b"IDAT", _PNG_END_KIND})
_PNG_EXIF_KIND: Final = b"eXIf"
_PNG_CHECKSUM_BYTES: Final = 4
_JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
_JPEG_START_OF_SCAN: Final = 0xDA
_JPEG_END: Final = b"\xff\xd9"
_JPEG_FRAME_HEADERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_EXIF: Final = 0xE1
_JPEG_INKS: Final = 4
_EXIF_NAME: Final = b"Exif\0\0"
_EXIF_ENTRY_BYTES: Final = 12
_EXIF_ORIENTATION: Final = 0x0112
_EXIF_SHORT: Final = 3


def decode_image(data: bytes) -> Array:
    """Return the image as uint8 [height, width, 3], red first; transparency is left out.

    Raises `ItemFailure`: undecodable_input, input_too_large.
    """
    if data.startswith(_PNG_SIGNATURE):
        width, height = _png_size(data)
        decode = _decode_png
    elif data.startswith(_JPEG_SIGNATURE):
        width, height = _jpeg_size(data)
        decode = _decode_jpeg
    else:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, "the image is neither JPEG nor PNG")
    _check_size(width, height)
    try:
        image, exif = decode(data)
    except (ValueError, RuntimeError) as error:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"the image is damaged: {error}") from error
    return _upright(image, _orientation(exif))


def resized(image: Array, width: int, height: int) -> Array:
    """Return the image at another size, float32, between pixels linearly (not averaged).

    The centres of the corner pixels' areas correspond, as with OpenCV's INTER_LINEAR, from which
    this differs by less than one level, its rounding.
    """
    above, below, share = _neighbours(image.shape[0], height)
    rows = _between(image[above], image[below], share[:, None, None])
    left, right, share = _neighbours(image.shape[1], width)
    return _between(np.take(rows, left, axis=1), np.take(rows, right, axis=1), share[:, None])


def _neighbours(given: int, wanted: int) -> tuple[Array, Array, Array]:
    """For each wanted pixel the two given ones it lies between, and the share of the second."""
    position = np.clip((np.arange(wanted) + 0.5) * (given / wanted) - 0.5, 0, given - 1)
    first = position.astype(np.intp)
    return first, np.minimum(first + 1, given - 1), (position - first).astype(np.float32)


def _between(first: Array, second: Array, share: Array) -> Array:
    start = first.astype(np.float32)
    step = second.astype(np.float32)
    step -= start
    step *= share
    step += start
    return step


def _decode_png(data: bytes) -> tuple[Array, bytes]:
    """Decode the chunks that make the pixels; the others cost memory or say nothing here."""
    pixels, exif = [_PNG_SIGNATURE], b""
    position = len(_PNG_SIGNATURE)
    while position < len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, position)
        end = position + _PNG_CHUNK.size + length + _PNG_CHECKSUM_BYTES
        if kind in _PNG_PIXEL_KINDS:
            pixels.append(data[position:end])
        elif kind == _PNG_EXIF_KIND and not exif:
            exif = data[position + _PNG_CHUNK.size : end - _PNG_CHECKSUM_BYTES]
        if kind == _PNG_END_KIND:
            break
        position = end
    return np.asarray(pyspng.load(b"".join(pixels), "RGB")), exif


def _decode_jpeg(data: bytes) -> tuple[Array, bytes]:
    colours, exif = _jpeg_parts(data)
    # What can be made good (a missing piece of a scan) is: cameras write such files.
    if colours == _JPEG_INKS:
        inks = np.asarray(simplejpeg.decode_jpeg(data, "CMYK", strict=False)).astype(np.int32)
        # Adobe writes inks the other way round; the rounding is that of OpenCV.
        black = inks[:, :, 3:]
        return (black - ((255 - inks[:, :, :3]) * black >> 8)).astype(np.uint8), exif
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=False)), exif


def _jpeg_parts(data: bytes) -> tuple[int, bytes]:
    """How many colours the frame has, and the first EXIF segment's contents, if there is one.

    The segments were walked before.
    """
    colours, exif, position = 0, b"", 2
    while position + 4 <= len(data) and data[position + 1] != _JPEG_START_OF_SCAN:
        marker = data[position + 1]
        if marker == 0xFF or marker in _JPEG_WITHOUT_LENGTH:  # noqa: PLR2004 - padding
            position += 1 if marker == 0xFF else 2  # noqa: PLR2004 - padding
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment = data[position + 4 : position + 2 + length]
        if marker in _JPEG_FRAME_HEADERS:
            colours = segment[5] if len(segment) > 5 else 0  # noqa: PLR2004 - after the sides
        elif marker == _JPEG_EXIF and segment.startswith(_EXIF_NAME) and not exif:
            exif = segment[len(_EXIF_NAME) :]
        position += 2 + length
    return colours, exif


def _orientation(exif: bytes) -> int:
    """The orientation that a TIFF header's first directory names, 1 (upright) where it does not."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(min(count, limits.IMAGE_PARTS_MAX)):
            at = start + 2 + entry * _EXIF_ENTRY_BYTES
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if tag == _EXIF_ORIENTATION and kind == _EXIF_SHORT:
                return int(value)
    except struct.error:
        return 1  # it ends before it says so
    return 1


def _upright(image: Array, orientation: int) -> Array:
    """Turn and mirror as EXIF 2.32 says (§4.6.4, Orientation); unknown values mean upright."""
    match orientation:
        case 2:
            image = image[:, ::-1]
        case 3:
            image = image[::-1, ::-1]
        case 4:
            image = image[::-1]
        case 5:
            image = image.transpose(1, 0, 2)
        case 6:
            image = image[::-1].transpose(1, 0, 2)
        case 7:
            image = image[::-1, ::-1].transpose(1, 0, 2)
        case 8:
            image = image[:, ::-1].transpose(1, 0, 2)
        case _:
            pass
    return np.ascontiguousarray(image)


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
    """Walk the chunks to the end: what one claims is not believed before its bytes are there."""
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
