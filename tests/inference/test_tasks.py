"""Every task's right answer on a real input, through the real engine; and bad inputs."""

import io
import struct
import wave
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from engine_rig import EngineRig, engine_rig

from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.core.events import RunOutcome
from edge_runtime.vehicle.models.importers.data import video_frames

pytestmark = pytest.mark.models

Model = Callable[[str], Package]
DemoFile = Callable[[str], Path]


@pytest.fixture
async def rig() -> AsyncIterator[EngineRig]:
    async with engine_rig() as rig:
        yield rig


async def results(
    rig: EngineRig, package: Package, inputs: list[bytes], **parameters: object
) -> list[Any]:
    run_id = rig.submit(package, inputs, parameters=parameters)
    ended = await rig.ended(run_id)
    assert ended.outcome is RunOutcome.COMPLETED, ended.message
    assert not rig.broken(run_id)
    return list(rig.outputs(run_id).values())


async def failure(
    rig: EngineRig, package: Package, data: bytes, **parameters: object
) -> tuple[ItemError, str]:
    run_id = rig.submit(package, [data], parameters=parameters)
    await rig.ended(run_id)
    broken = rig.broken(run_id)[0]
    return broken.code, broken.message


# --- faces -------------------------------------------------------------------------------


async def test_the_driver_is_found_in_the_clip(
    rig: EngineRig, model: Model, demo_file: DemoFile
) -> None:
    frames = video_frames(demo_file("carphone_pristine.mp4"))[::30]
    for result in await results(rig, model("centerface"), frames):
        (face,) = result["detections"]
        assert face["label"] == "face"
        assert face["score"] > 0.8
        x1, y1, x2, y2 = face["box"]
        assert 0 <= x1 < x2 <= result["width"] == 176
        assert 0 <= y1 < y2 <= result["height"] == 144
        # The driver sits left of the middle, and the face fills a quarter of the height.
        assert 60 < (x1 + x2) / 2 < 120
        assert 36 < y2 - y1 < 80


async def test_a_still_photo_has_one_face(
    rig: EngineRig, model: Model, demo_file: DemoFile
) -> None:
    photo = demo_file("astronaut.png").read_bytes()
    (result,) = await results(rig, model("centerface"), [photo])
    (face,) = result["detections"]
    assert face["score"] > 0.9
    assert face["box"] == pytest.approx([181, 58, 270, 178], abs=8)


async def test_min_score_is_the_requesters(
    rig: EngineRig, model: Model, demo_file: DemoFile
) -> None:
    photo = demo_file("astronaut.png").read_bytes()
    (result,) = await results(rig, model("centerface"), [photo], min_score=0.99)
    assert result["detections"] == []
    code, message = await failure(rig, model("centerface"), photo, min_score=2)
    assert code is ItemError.INVALID_PARAMETERS
    assert "min_score" in message


# --- text --------------------------------------------------------------------------------


async def test_a_parking_sign_is_read(rig: EngineRig, model: Model, demo_file: DemoFile) -> None:
    sign = demo_file("scenetext01.jpg").read_bytes()
    (result,) = await results(rig, model("pp-ocr"), [sign])
    texts = [line["text"] for line in result["lines"]]
    assert texts[:4] == ["NOTICE", "DOUBLE", "PARKING", "PROHIBITED"]
    for line in result["lines"][:4]:
        assert line["score"] > 0.95
        assert len(line["box"]) == 4
        assert all(0 <= x <= 800 and 0 <= y <= 600 for x, y in line["box"])


async def test_a_page_is_read_in_order(rig: EngineRig, model: Model, demo_file: DemoFile) -> None:
    (result,) = await results(rig, model("pp-ocr"), [demo_file("page.png").read_bytes()])
    texts = [line["text"] for line in result["lines"]]
    assert texts[0] == "Region-based segmentation"
    assert texts[1].startswith("Let us first determine markers of the coins")


async def test_a_picture_without_text_has_no_lines(rig: EngineRig, model: Model) -> None:
    _, png = cv2.imencode(".png", np.full((120, 160, 3), 128, np.uint8))
    (result,) = await results(rig, model("pp-ocr"), [png.tobytes()])
    assert result == {"width": 160, "height": 120, "lines": []}


async def test_a_car_without_opencv_finds_faces_and_says_what_text_needs(
    model: Model, demo_file: DemoFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['cv2'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with engine_rig() as rig:
        photo = demo_file("astronaut.png").read_bytes()
        (result,) = await results(rig, model("centerface"), [photo])
        assert len(result["detections"]) == 1
        ended = await rig.ended(rig.submit(model("pp-ocr"), [photo]))
        assert ended.outcome is RunOutcome.MODEL_FAILED
        assert "pip install 'edge-runtime[vehicle,ocr]'" in ended.message


# --- embeddings --------------------------------------------------------------------------


async def test_likeness_follows_meaning(rig: EngineRig, model: Model) -> None:
    sentences = [
        "The car is charging at the station.",
        "An electric vehicle is plugged in to charge.",
        "Fresh bread from the bakery.",
    ]
    found = await results(rig, model("minilm"), [text.encode() for text in sentences])
    assert all(result["shape"] == [384] and result["datatype"] == "FP32" for result in found)
    car, vehicle, bread = (np.frombuffer(result["data"], "<f4") for result in found)
    assert np.linalg.norm(car) == pytest.approx(1, abs=1e-5)
    assert car @ vehicle > 0.45
    assert abs(car @ bread) < 0.15


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xfe text", ItemError.UNDECODABLE_INPUT),
        (b"x" * 70_000, ItemError.INPUT_TOO_LARGE),
    ],
)
async def test_bad_text(rig: EngineRig, model: Model, data: bytes, code: ItemError) -> None:
    assert (await failure(rig, model("minilm"), data))[0] is code


# --- speech ------------------------------------------------------------------------------


def wav(samples: np.ndarray, rate_hz: int, channels: int = 1, width: int = 2) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate_hz)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def speech_samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as reader:
        return np.frombuffer(reader.readframes(reader.getnframes()), "<i2")


SPEECH = "sense_and_sensibility_01_austen_64kb-0880.wav"


async def test_a_sentence_is_one_stretch_of_speech(
    rig: EngineRig, model: Model, demo_file: DemoFile
) -> None:
    (result,) = await results(rig, model("silero-vad"), [demo_file(SPEECH).read_bytes()])
    assert result["duration_s"] == 2.99
    assert result["speech_ratio"] > 0.8
    (segment,) = result["segments"]
    assert 0.1 < segment["start_s"] < 0.5
    assert 2.5 < segment["end_s"] < 2.99


async def test_rate_and_channels_do_not_matter(
    rig: EngineRig, model: Model, demo_file: DemoFile
) -> None:
    samples = speech_samples(demo_file(SPEECH))
    upsampled = np.interp(
        np.arange(samples.size * 441 // 160) * 160 / 441, np.arange(samples.size), samples
    ).astype("<i2")
    variants = [
        wav(np.repeat(samples, 2), 16_000, channels=2),
        wav(samples[::2], 8_000),
        wav(upsampled, 44_100),
        wav(samples.astype("<i4") << 16, 16_000, width=4),
        wav(((samples >> 8) + 128).astype(np.uint8), 16_000, width=1),
    ]
    for result in await results(rig, model("silero-vad"), variants):
        assert result["duration_s"] == pytest.approx(2.99, abs=0.01)
        assert result["speech_ratio"] > 0.7


async def test_noise_and_silence_are_no_speech(rig: EngineRig, model: Model) -> None:
    random = np.random.default_rng(1)
    noise = (random.standard_normal(16_000) * 3_000).astype("<i2")
    quiet = np.zeros(8_000, "<i2")
    for result in await results(
        rig, model("silero-vad"), [wav(noise, 16_000), wav(quiet, 8_000), wav(quiet[:0], 8_000)]
    ):
        assert result["segments"] == []
        assert result["speech_ratio"] == 0


def wav_claiming(rate_hz: int, data_bytes: int) -> bytes:
    fmt = struct.pack("<HHIIHH", 1, 1, rate_hz, rate_hz * 2, 2, 16)
    return b"".join(
        (b"RIFF", struct.pack("<I", data_bytes + 36), b"WAVEfmt ", struct.pack("<I", 16), fmt)
    ) + struct.pack("<4sI", b"data", data_bytes)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"RIFF", ItemError.UNDECODABLE_INPUT),
        (b"not a wav at all", ItemError.UNDECODABLE_INPUT),
        (wav_claiming(16_000, 2_000_000_000), ItemError.INPUT_TOO_LARGE),
        (wav_claiming(10, 100), ItemError.UNDECODABLE_INPUT),
    ],
)
async def test_bad_audio(rig: EngineRig, model: Model, data: bytes, code: ItemError) -> None:
    assert (await failure(rig, model("silero-vad"), data))[0] is code


# --- images that are none ------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_bomb(width: int, height: int) -> bytes:
    """A real PNG of one colour: a few kilobytes that become gigabytes."""
    line = zlib.compressobj(9)
    packed = b"".join(line.compress(bytes(1 + width // 8)) for _ in range(height)) + line.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", packed),
            png_chunk(b"IEND", b""),
        )
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    _, jpeg = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))
    data = bytearray(jpeg.tobytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def test_the_bomb_is_a_picture() -> None:
    small = cv2.imdecode(np.frombuffer(png_bomb(64, 32), np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape == (32, 64, 3)


@pytest.mark.parametrize("name", ["centerface", "pp-ocr"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ItemError.UNDECODABLE_INPUT),
        (b"GIF89a", ItemError.UNDECODABLE_INPUT),
        (b"\x89PNG\r\n\x1a\n", ItemError.UNDECODABLE_INPUT),
        (b"\xff\xd8\xff\xe0\x00", ItemError.UNDECODABLE_INPUT),
        (png_bomb(16_000, 16_000), ItemError.INPUT_TOO_LARGE),
        (jpeg_claiming(65_000, 65_000), ItemError.INPUT_TOO_LARGE),
        (jpeg_claiming(16, 16)[:-200], ItemError.UNDECODABLE_INPUT),
    ],
    ids=["empty", "gif", "signature only", "cut", "bomb", "jpeg bomb", "cut jpeg"],
)
async def test_bad_images(
    rig: EngineRig, model: Model, name: str, data: bytes, code: ItemError
) -> None:
    assert (await failure(rig, model(name), data))[0] is code
