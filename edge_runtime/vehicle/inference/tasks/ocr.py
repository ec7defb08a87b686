"""`image-to-text`: an image in, lines of text with score and corners out (PP-OCRv4).

Two models: one marks the pixels of text, one reads a straightened strip. Strips are read one by
one: four at once take 3.9 times as long, and between two the engine can be stopped at once.

The one task that needs OpenCV (contours, rotated rectangles, perspective): the extra `ocr`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused
from edge_runtime.vehicle.inference.tasks.base import Array, Runtime, parse_parameters, rounded
from edge_runtime.vehicle.inference.tasks.images import decode_image

# One computation, one core: OpenCV would otherwise start a thread for each.
cv2.setNumThreads(1)

_SIDE_MULTIPLE: Final = 32
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION: Final = np.array([0.229, 0.224, 0.225], np.float32)
_TEXT_PIXEL: Final = 0.3
_TEXT_BOX: Final = 0.5
"""Mean probability over a box below which it is no text."""
_GROW: Final = 1.6
_SIDE_MIN: Final = 3
_STRIP_HEIGHT: Final = 48
_TALL: Final = 1.5
"""A box this much taller than wide holds text that is turned."""

_Score = Annotated[float, Meta(ge=0, lt=1)]


class _ModelParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_side: Annotated[int, Meta(ge=_SIDE_MULTIPLE, le=4096)]
    min_score: _Score


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    min_score: _Score | None = None
    """Lines read with less confidence are left out; the model's threshold when not given."""


class OcrTask:
    """Finds text and reads it."""

    def __init__(self, folder: Path, spec: ModelSpec, runtime: Runtime) -> None:
        self._runtime = runtime
        self._model = msgspec.convert(spec.parameters, _ModelParameters)
        self._finder = runtime.load(spec.path_of("model", folder))
        self._reader = runtime.load(spec.path_of("recognition", folder))
        self._finder_names = _names(self._finder)
        self._reader_names = _names(self._reader)
        characters = self._reader.get_modelmeta().custom_metadata_map.get("character")
        if not characters:
            raise PackageRefused(
                PackageFault.BAD_MODEL, "files.recognition has no alphabet in its metadata"
            )
        # Class 0 is "nothing here"; the space comes after the alphabet.
        self._alphabet = ["", *characters.split("\n"), " "]

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{"width", "height", "lines": [{"text", "score", "box"}]}`.

        `box` is four corners [[x, y] …] clockwise from the text's top left, in pixels of the
        image as it is shown; lines come in reading order. See `Task.run`.
        """
        del media_type  # the bytes themselves say what they are
        wanted = parse_parameters(parameters, _Parameters)
        min_score = self._model.min_score if wanted.min_score is None else wanted.min_score
        image = cv2.cvtColor(decode_image(data), cv2.COLOR_RGB2BGR)  # as the models were trained
        height, width = image.shape[:2]
        lines = []
        for box in _in_reading_order(self._find(image)):
            text, score = self._read(_straightened(image, box))
            if text and score >= min_score:
                corners = [rounded(corner, 1) for corner in box]
                lines.append({"text": text, "score": round(score, 4), "box": corners})
        return {"width": width, "height": height, "lines": lines}

    def _find(self, image: Array) -> list[Array]:
        """Return the corners of each piece of text, float32 [4, 2] in pixels of `image`."""
        height, width = image.shape[:2]
        shrink = min(1.0, self._model.max_side / max(height, width))
        size = (_multiple(width * shrink), _multiple(height * shrink))
        pixels = cv2.resize(image, size).astype(np.float32) / np.float32(255)
        feed = np.ascontiguousarray(((pixels - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None])
        (found,) = self._runtime.run(
            self._finder, self._finder_names[1], {self._finder_names[0]: feed}
        )
        scale = np.array([width / size[0], height / size[1]], np.float32)
        return [box * scale for box in _text_boxes(found[0, 0])]

    def _read(self, strip: Array) -> tuple[str, float]:
        """Return the strip's text and the mean confidence of its characters."""
        height, width = strip.shape[:2]
        strip_width = max(
            1, min(limits.TEXT_STRIP_MAX_PIXELS, round(width * _STRIP_HEIGHT / height))
        )
        pixels = cv2.resize(strip, (strip_width, _STRIP_HEIGHT)).astype(np.float32)
        feed = np.ascontiguousarray((pixels / np.float32(127.5) - 1).transpose(2, 0, 1)[None])
        (classes,) = self._runtime.run(
            self._reader, self._reader_names[1], {self._reader_names[0]: feed}
        )
        best = classes[0].argmax(axis=1)
        confidence = classes[0].max(axis=1)
        is_new = np.concatenate([[True], best[1:] != best[:-1]]) & (best != 0)
        if not is_new.any():
            return "", 0.0
        text = "".join(self._alphabet[index] for index in best[is_new] if index < self._letters)
        return text.strip(), float(confidence[is_new].mean())

    @property
    def _letters(self) -> int:
        return len(self._alphabet)


def _names(session: Any) -> tuple[str, list[str]]:
    return session.get_inputs()[0].name, [session.get_outputs()[0].name]


def _multiple(side: float) -> int:
    return max(_SIDE_MULTIPLE, round(side / _SIDE_MULTIPLE) * _SIDE_MULTIPLE)


def _text_boxes(found: Array) -> list[Array]:
    """Turn the map of text pixels into grown rectangles [4, 2], at most `DETECTIONS_MAX`."""
    mask = (found > _TEXT_PIXEL).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes: list[Array] = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True)[: limits.DETECTIONS_MAX]:
        centre, sides, angle = cv2.minAreaRect(contour)
        if min(sides) < _SIDE_MIN:
            continue
        if _mean_inside(found, cv2.boxPoints((centre, sides, angle))) < _TEXT_BOX:
            continue
        # The map marks the core of each line; it grows back by area x 1.6 / perimeter.
        grow = sides[0] * sides[1] * _GROW / (2 * (sides[0] + sides[1]))
        grown = (sides[0] + 2 * grow, sides[1] + 2 * grow)
        boxes.append(_clockwise(cv2.boxPoints((centre, grown, angle))))
    return boxes


def _mean_inside(found: Array, corners: Array) -> float:
    height, width = found.shape
    x_min, y_min = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, [width - 1, height - 1])
    x_max, y_max = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, [width - 1, height - 1])
    mask = np.zeros((y_max - y_min + 1, x_max - x_min + 1), np.uint8)
    cv2.fillPoly(mask, [np.round(corners - [x_min, y_min]).astype(np.int32)], (1,))
    return float(cv2.mean(found[y_min : y_max + 1, x_min : x_max + 1], mask)[0])


def _clockwise(corners: Array) -> Array:
    """Order a rectangle's corners from its top left, clockwise on the screen."""
    by_x = corners[np.argsort(corners[:, 0], kind="stable")]
    left = by_x[:2][np.argsort(by_x[:2, 1], kind="stable")]
    right = by_x[2:][np.argsort(by_x[2:, 1], kind="stable")]
    return np.array([left[0], right[0], right[1], left[1]], np.float32)


def _in_reading_order(boxes: list[Array]) -> list[Array]:
    """Sort by line, then from left to right; boxes whose middles overlap share a line."""
    by_top = sorted(boxes, key=lambda box: float(box[:, 1].mean()))
    rows: list[list[Array]] = []
    for box in by_top:
        middle = float(box[:, 1].mean())
        last = rows[-1][0] if rows else None
        if last is not None and middle < float(last[:, 1].max()) - 0.25 * float(np.ptp(last[:, 1])):
            rows[-1].append(box)
        else:
            rows.append([box])
    return [box for row in rows for box in sorted(row, key=lambda box: float(box[:, 0].min()))]


def _straightened(image: Array, box: Array) -> Array:
    """Cut the rectangle out of the image and lay it flat; turned text is turned back."""
    width = max(1, round(float(np.linalg.norm(box[1] - box[0]))))
    height = max(1, round(float(np.linalg.norm(box[3] - box[0]))))
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(box.astype(np.float32), corners)
    strip = cv2.warpPerspective(
        image, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    return np.asarray(np.rot90(strip) if height > width * _TALL else strip)
