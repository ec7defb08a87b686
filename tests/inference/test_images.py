"""Pictures are decoded to the bit as OpenCV does, and faces are found as with OpenCV's resizing."""

import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest

from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks import detection
from edge_runtime.vehicle.inference.tasks.base import Array, ItemFailure, Session
from edge_runtime.vehicle.inference.tasks.images import decode_image, resized
from edge_runtime.vehicle.models.importers.data import video_frames

Model = Callable[[str], Package]
DemoFile = Callable[[str], Path]

CMYK_JPEG = bytes.fromhex(
    "ffd8ffee000e41646f626500640000000000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213"
    "271c1e17202e2931302e292d2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fff"
    "c000140800080008044311004d11005911004b1100ffc4001700000301000000000000000000000000000204"
    "0506ffc4001810000203000000000000000000000000000005062232ffda000e0443004d0059004b00003f00"
    "6640f7572b81207bab9b63ffd9"
)
"""8 x 8 pixels of four inks, as an image program writes them."""


def as_opencv(data: bytes) -> Array:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return np.asarray(image)[:, :, ::-1]


def picture(height: int, width: int) -> Array:
    """Something with edges and slopes, blue first."""
    rows, columns = np.indices((height, width))
    noise = np.random.default_rng(1).integers(0, 40, (height, width))
    layers = [rows * 3 + noise, columns * 5, (rows // 8 + columns // 8) % 2 * 200 + noise]
    return np.stack(layers, axis=-1).astype(np.uint8)


# --- PNG ---------------------------------------------------------------------------------------

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2),
         (0, 1, 1, 2)]  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(kind: int, depth: int, *, interlaced: bool = False, more: bytes = b"") -> bytes:
    """13 x 9 random pixels of a colour type and depth, every row filtered in another way."""
    random = np.random.default_rng(kind * 100 + depth)
    passes = ADAM7 if interlaced else [(0, 1, 0, 1)]
    raw = bytearray()
    for x_start, x_step, y_start, y_step in passes:
        width, height = -(-(13 - x_start) // x_step), -(-(9 - y_start) // y_step)
        for row in range(height):
            raw.append(row % 5)
            raw += random.bytes(-(-width * CHANNELS[kind] * depth // 8))
    palette = chunk(b"PLTE", random.bytes(3 << depth)) if kind == 3 else b""
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 9, depth, kind, 0, 0, interlaced)),
            palette,
            more,
            chunk(b"IDAT", zlib.compress(bytes(raw))),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize("interlaced", [False, True], ids=["plain", "interlaced"])
@pytest.mark.parametrize(
    ("kind", "depth"), [(kind, depth) for kind in DEPTHS for depth in DEPTHS[kind]]
)
def test_every_kind_of_png(kind: int, depth: int, *, interlaced: bool) -> None:
    data = png(kind, depth, interlaced=interlaced)
    assert np.array_equal(decode_image(data), as_opencv(data))


def test_transparency_is_left_out() -> None:
    data = png(3, 8, more=chunk(b"tRNS", bytes(range(256))))
    assert np.array_equal(decode_image(data), as_opencv(data))


def test_what_is_no_pixel_is_not_unpacked() -> None:
    # Ten megabytes of zeros in ten kilobytes, in the places where a PNG may have such.
    bomb = zlib.compress(bytes(10_000_000), 9)
    more = chunk(b"iCCP", b"profile\0\0" + bomb) + chunk(b"zTXt", b"Comment\0\0" + bomb)
    assert np.array_equal(decode_image(png(2, 8, more=more)), decode_image(png(2, 8)))


@pytest.mark.parametrize("place", [b"IDAT", b"IHDR"])
def test_a_damaged_png_is_refused(place: bytes) -> None:
    data = bytearray(png(6, 8))
    data[data.index(place) + 6] ^= 0xFF
    with pytest.raises(ItemFailure) as failed:
        decode_image(bytes(data))
    assert failed.value.code in (ItemError.UNDECODABLE_INPUT, ItemError.INPUT_TOO_LARGE)


# --- JPEG --------------------------------------------------------------------------------------

SAMPLINGS = [0x111111, 0x211111, 0x221111, 0x411111, 0x121111]


def jpeg(*options: int, image: Array | None = None) -> bytes:
    image = picture(61, 83) if image is None else image
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


@pytest.mark.parametrize(
    ("sampling", "progressive"), list(product(SAMPLINGS, (0, 1))), ids=lambda value: f"{value:x}"
)
def test_every_sampling_of_jpeg(sampling: int, progressive: int) -> None:
    data = jpeg(
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive
    )
    assert np.array_equal(decode_image(data), as_opencv(data))


def test_other_jpegs() -> None:
    damaged = bytearray(jpeg())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 20] = bytes(20)
    for data in (
        jpeg(image=picture(61, 83)[:, :, :1]),
        jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        jpeg(cv2.IMWRITE_JPEG_QUALITY, 5),
        jpeg(image=picture(1, 1)),
        jpeg() + b"something after the end",
        CMYK_JPEG,
        jpeg()[:-900] + b"\xff\xd9",
        bytes(damaged),
    ):
        assert np.array_equal(decode_image(data), as_opencv(data))


@pytest.mark.parametrize("sampling", [0x14, 0x31, 0x34])
def test_a_rare_sampling_is_decoded_or_refused(sampling: int) -> None:
    data = bytearray(jpeg())
    data[data.index(b"\xff\xc0") + 11] = sampling
    if sampling == 0x14:  # one across, four down
        assert np.array_equal(decode_image(bytes(data)), as_opencv(bytes(data)))
    else:
        with pytest.raises(ItemFailure, match="subsampling") as failed:
            decode_image(bytes(data))
        assert failed.value.code is ItemError.UNDECODABLE_INPUT


# --- orientation -------------------------------------------------------------------------------


def exif(orientation: int, order: str = "<", *, kind: int = 3, entries: int = 2) -> bytes:
    """A TIFF header with a directory of the maker's name and the orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    maker = struct.pack(f"{order}HHI4s", 0x010F, 2, 4, b"car\0")
    turned = struct.pack(f"{order}HHIHH", 0x0112, kind, 1, orientation, 0)
    return mark + struct.pack(f"{order}IH", 8, entries) + maker + turned + bytes(4)


def with_exif(data: bytes, contents: bytes) -> bytes:
    if data.startswith(b"\x89PNG"):
        return data[:33] + chunk(b"eXIf", contents) + data[33:]
    body = b"Exif\0\0" + contents
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("data", [jpeg(), png(2, 8)], ids=["jpeg", "png"])
def test_images_are_turned_as_they_are_shown(data: bytes, orientation: int, order: str) -> None:
    turned = with_exif(data, exif(orientation, order))
    found = decode_image(turned)
    assert np.array_equal(found, as_opencv(turned))
    assert (found.shape[:2] != decode_image(data).shape[:2]) == (5 <= orientation <= 8)


@pytest.mark.parametrize(
    "contents",
    [b"", b"II", b"II*\0", b"II*\0\xff\xff\xff\xff", exif(6)[:-8], exif(6, entries=1),
     exif(6, kind=4), b"XX*\0" + exif(6)[4:], exif(6)[:8] + b"\xff\xff" + bytes(40)],
)  # fmt: skip
def test_broken_exif_turns_nothing(contents: bytes) -> None:
    for data in (jpeg(), png(2, 8)):
        assert np.array_equal(decode_image(with_exif(data, contents)), decode_image(data))


def test_exif_after_other_segments_counts() -> None:
    data = jpeg()
    comment = b"\xff\xfe" + struct.pack(">H", 6) + b"note" + b"\xff"
    turned = with_exif(data, exif(3))
    assert np.array_equal(decode_image(turned[:2] + comment + turned[2:]), decode_image(turned))


# --- size, and what is found -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((176, 144), (192, 160)), ((83, 61), (83, 61)), ((1_280, 720), (1_024, 576)),
     ((3, 1), (32, 32)), ((1, 1), (64, 32)), ((640, 480), (64, 480)), ((33, 500), (64, 64))],
)  # fmt: skip
def test_resizing_is_opencvs_but_for_rounding(
    given: tuple[int, int], wanted: tuple[int, int]
) -> None:
    image = picture(given[1], given[0])
    found = resized(image, *wanted)
    assert found.dtype == np.float32
    assert found.shape == (wanted[1], wanted[0], 3)
    assert np.abs(found - cv2.resize(image, wanted).astype(np.float32)).max() < 1.01


class PlainRuntime:
    """Runs models at once, in this process."""

    def load(self, path: Path) -> Session:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session: Session = onnxruntime.InferenceSession(str(path), options)
        return session

    def run(self, session: Any, outputs: list[str], feeds: Any) -> list[Array]:
        found: list[Array] = session.run(outputs, feeds)
        return found

    def rows_max(self, session: Session) -> int | None:
        del session
        return None


@pytest.mark.models
def test_faces_are_those_found_with_opencv(
    model: Model, demo_file: DemoFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = model("centerface")
    task = detection.DetectionTask(package.folder, package.spec, PlainRuntime())
    photos = [demo_file("astronaut.png").read_bytes(), demo_file("scenetext01.jpg").read_bytes()]
    images = [*video_frames(demo_file("carphone_pristine.mp4"))[::8], *photos]
    ours = [task.run(image, "", {}) for image in images]
    monkeypatch.setattr(
        detection,
        "resized",
        lambda image, width, height: cv2.resize(image, (width, height)).astype(np.float32),
    )
    theirs = [task.run(image, "", {}) for image in images]
    faces = 0
    for found, wanted in zip(ours, theirs, strict=True):
        assert len(found["detections"]) == len(wanted["detections"])
        for face, same in zip(found["detections"], wanted["detections"], strict=True):
            faces += 1
            assert face["score"] == pytest.approx(same["score"], abs=0.01)
            side = same["box"][2] - same["box"][0]
            assert face["box"] == pytest.approx(same["box"], abs=0.05 * side)
    assert faces >= 15
