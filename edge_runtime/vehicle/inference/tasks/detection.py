"""`object-detection`: an image in, boxes with scores and labels out (CenterFace's head).

The model sees RGB 0-255, NCHW, both sides multiples of 32. Its outputs have a quarter of that
size: how likely a centre is here, the logarithm of height and width, the centre's offset.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.package import ModelSpec
from edge_runtime.vehicle.inference.tasks.base import Array, Runtime, parse_parameters, rounded
from edge_runtime.vehicle.inference.tasks.images import decode_image, resized

_STRIDE: Final = 4
_SIDE_MULTIPLE: Final = 32

_Score = Annotated[float, Meta(gt=0, lt=1)]


class _ModelParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    labels: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1)]
    min_score: _Score
    iou_max: _Score
    max_side: Annotated[int, Meta(ge=_SIDE_MULTIPLE, le=4096)]


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    min_score: _Score | None = None
    """Boxes below this are left out; the model's own threshold when not given."""


class DetectionTask:
    """Finds the one kind of object that its model knows."""

    def __init__(self, folder: Path, spec: ModelSpec, runtime: Runtime) -> None:
        self._runtime = runtime
        self._model = msgspec.convert(spec.parameters, _ModelParameters)
        self._session = runtime.load(spec.path_of("model", folder))
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()][:3]

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{"width", "height", "detections": [{"box", "score", "label"}]}`.

        A box is [x1, y1, x2, y2] in pixels of the image as it is shown; the best come first.
        See `Task.run`.
        """
        del media_type  # the bytes themselves say what they are
        wanted = parse_parameters(parameters, _Parameters)
        image = decode_image(data)
        height, width = image.shape[:2]
        shrink = min(1.0, self._model.max_side / max(height, width))
        net_width, net_height = (_up(side * shrink) for side in (width, height))
        pixels = resized(image, net_width, net_height)
        feed = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])
        heat, size, offset = self._runtime.run(self._session, self._outputs, {self._input: feed})
        min_score = wanted.min_score or self._model.min_score
        boxes, scores = _boxes(heat[0, 0], size[0], offset[0], min_score)
        boxes *= np.array([width / net_width, height / net_height] * 2)
        np.clip(boxes, 0, [width, height] * 2, out=boxes)
        return {
            "width": width,
            "height": height,
            "detections": [
                {
                    "box": rounded(boxes[index], 1),
                    "score": round(float(scores[index]), 4),
                    "label": self._model.labels[0],
                }
                for index in _without_overlaps(boxes, scores, self._model.iou_max)
            ],
        }


def _up(side: float) -> int:
    return max(1, -(-int(side) // _SIDE_MULTIPLE)) * _SIDE_MULTIPLE


def _boxes(heat: Array, size: Array, offset: Array, min_score: float) -> tuple[Array, Array]:
    """Return float64 [N, 4] corners in network pixels and [N] scores, best first, N bounded."""
    rows, columns = np.nonzero(heat > min_score)
    scores = heat[rows, columns]
    best = np.argsort(-scores, kind="stable")[: limits.DETECTIONS_MAX]
    rows, columns, scores = rows[best], columns[best], scores[best]
    half_height = np.exp(size[0, rows, columns].astype(np.float64)) * _STRIDE / 2
    half_width = np.exp(size[1, rows, columns].astype(np.float64)) * _STRIDE / 2
    y = (rows + offset[0, rows, columns] + 0.5) * _STRIDE
    x = (columns + offset[1, rows, columns] + 0.5) * _STRIDE
    corners = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
    return corners, scores


def _without_overlaps(boxes: Array, scores: Array, iou_max: float) -> list[int]:
    """Return the indices that remain when each box silences those it overlaps (best first)."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while left.size:
        best, rest = int(left[0]), left[1:]
        kept.append(best)
        corner_min = np.maximum(boxes[best, :2], boxes[rest, :2])
        corner_max = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.clip(corner_max - corner_min, 0, None), axis=1)
        union = np.maximum(areas[best] + areas[rest] - shared, 1e-9)
        left = rest[shared / union <= iou_max]
    return kept
