"""What the demo asks: faces in a clip, text on pictures, the meaning of sentences. Real input.

Every picture is made to fit an item. Where more items are asked for than there are originals,
frames are asked again and pictures are cut and scaled.
"""

import pydoc_data.topics
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.http import ItemInput

FACES_DEFAULT: Final = 120
TEXTS_DEFAULT: Final = 20
SENTENCES_DEFAULT: Final = 200
_SIDE_PIXELS: Final = 960
_JPEG: Final = "image/jpeg"
_QUALITY_FIRST: Final = 88
_QUALITY_LAST: Final = 40
_SENTENCE_CHARS: Final = (40, 150)
_SENTENCE: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MARKUP: Final = re.compile(r"[*`|\\<>={}\[\]]|::|__|\d\.\d|\.\.\.")


@dataclass(frozen=True, slots=True)
class Question:
    """One job to be: `names` says in a word what each item is."""

    label: str
    model: str
    task: str
    items: tuple[ItemInput, ...]
    names: tuple[str, ...]


def ask_faces(video: Path, count: int) -> Question:
    """Faces in the frames of a clip."""
    from edge_runtime.vehicle.models.importers.data import video_frames

    frames = video_frames(video)
    chosen = [(n % len(frames), frames[n % len(frames)]) for n in range(count)]
    return Question(
        label="faces",
        model="centerface",
        task="object-detection",
        items=tuple(ItemInput(media_type=_JPEG, data=data) for _, data in chosen),
        names=tuple(f"frame {number}" for number, _ in chosen),
    )


def ask_texts(pictures: list[Path], count: int) -> Question:
    """Text on pictures of signs and pages."""
    variants = list(islice(_variants(pictures), count))
    return Question(
        label="text",
        model="pp-ocr",
        task="image-to-text",
        items=tuple(ItemInput(media_type=_JPEG, data=data) for _, data in variants),
        names=tuple(name for name, _ in variants),
    )


_CUTS: Final = (
    ("", 1.0, (0.0, 0.0, 1.0, 1.0)),
    ("upper half", 1.0, (0.0, 0.0, 1.0, 0.55)),
    ("left half", 1.0, (0.0, 0.0, 0.55, 1.0)),
    ("at 3/4 size", 0.75, (0.0, 0.0, 1.0, 1.0)),
    ("right half", 1.0, (0.45, 0.0, 1.0, 1.0)),
    ("lower half", 1.0, (0.0, 0.45, 1.0, 1.0)),
)


def _variants(pictures: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Every picture whole first, then cut and scaled, again and again."""
    import cv2

    images = []
    for path in pictures:
        image = cv2.imread(str(path))
        if image is None:
            raise LocalError(f"{path}: OpenCV cannot read this picture")
        images.append((path.stem, image))
    if not images:
        raise LocalError("there is no picture to read text from")
    for cut, scale, (left, top, right, bottom) in cycle(_CUTS):
        for stem, image in images:
            height, width = image.shape[:2]
            part = image[
                int(top * height) : int(bottom * height), int(left * width) : int(right * width)
            ]
            yield f"{stem} {cut}".strip(), encode_to_fit(part, scale)


def encode_to_fit(image: Any, scale: float = 1.0) -> bytes:
    """A JPEG of at most `ITEM_MAX_BYTES` and 960 pixels a side, as good as that allows."""
    import cv2

    height, width = image.shape[:2]
    shrink = scale * min(1.0, _SIDE_PIXELS / max(height, width))
    while True:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        for quality in range(_QUALITY_FIRST, _QUALITY_LAST, -12):
            data = bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
            if len(data) <= limits.ITEM_MAX_BYTES:
                return data
        shrink *= 0.8


def ask_sentences(count: int, seed: int) -> Question:
    """Sentences of the language reference that ships with Python; `seed` chooses which."""
    found = sorted(set(_sentences()))
    chosen = random.Random(seed).sample(found, min(count, len(found)))  # noqa: S311 - a choice, no secret
    chosen = list(islice(cycle(chosen), count))
    return Question(
        label="sentences",
        model="minilm",
        task="feature-extraction",
        items=tuple(ItemInput(media_type="text/plain", text=text) for text in chosen),
        names=tuple(chosen),
    )


def _sentences() -> Iterator[str]:
    shortest, longest = _SENTENCE_CHARS
    for topic in pydoc_data.topics.topics.values():
        for paragraph in topic.split("\n\n"):
            for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                plain = sentence[:1].isupper() and sentence.endswith(".")
                if plain and shortest <= len(sentence) <= longest and not _MARKUP.search(sentence):
                    yield sentence
