"""The answers of the demo's jobs, for people: lines to print, and pictures for the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_runtime.cli.demo.questions import Question
from edge_runtime.cli.demo.report.data import Box, PictureAnswer, SimilarAnswer
from edge_runtime.cli.outputs import describe_output

_PICTURES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """One item's output as it came, and the car that found it."""

    output: Any
    vehicle: str


@dataclass(slots=True)
class JobAnswers:
    """A job's answers so far, by item; items that failed are counted with their code."""

    question: Question
    by_item: dict[int, Answer] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)


def describe(answers: JobAnswers, item: int) -> str:
    """One answer as a line: `frame 17: 1 face at (66, 28) .93`."""
    name = answers.question.names[item]
    answer = answers.by_item.get(item)
    if answer is None:
        return f"{name}: failed, {answers.failed.get(item, 'no answer')}"
    return f"{name}: {describe_output(answer.output)}"


def few_lines(answers: JobAnswers) -> list[str]:
    """A few answers of a job that are worth reading."""
    match answers.question.task:
        case "feature-extraction":
            return [
                f"closest of {len(answers.by_item)} sentences, {pair.similarity:.2f}: "
                f"“{pair.first}” and “{pair.second}”"
                for pair in closest_pairs(answers, 1)
            ]
        case _:
            return [describe(answers, item) for item in _worth_showing(answers)]


def _worth_showing(answers: JobAnswers) -> list[int]:
    """A few items with something found: spread over the clip, or of different pictures."""
    if answers.question.task == "object-detection":
        found = [n for n in sorted(answers.by_item) if answers.by_item[n].output["detections"]]
        places = (0, len(found) // 2, len(found) - 1)
        return sorted({found[place] for place in places}) if found else []
    distinct: dict[str, int] = {}
    for item in sorted(answers.by_item):
        if answers.by_item[item].output["lines"]:
            # The whole picture comes before its cuts.
            distinct.setdefault(answers.question.names[item].split(" ")[0], item)
    return list(distinct.values())[:_PICTURES_SHOWN]


def closest_pairs(answers: JobAnswers, count: int) -> list[SimilarAnswer]:
    """The pairs of different sentences whose vectors point most nearly the same way."""
    import numpy as np

    names = answers.question.names
    items = [item for item in sorted(answers.by_item) if names.index(names[item]) == item]
    if len(items) < 2:  # noqa: PLR2004 - a pair is two
        return []
    vectors = np.array([_vector(answers.by_item[item].output) for item in items])
    likeness = np.triu(vectors @ vectors.T, k=1)
    pairs: list[SimilarAnswer] = []
    used: set[int] = set()
    for place in np.argsort(likeness, axis=None)[::-1]:
        first, second = divmod(int(place), len(items))
        if len(pairs) == count or likeness[first, second] <= 0:
            break
        if used.isdisjoint({first, second}):
            used |= {first, second}
            similarity = round(float(likeness[first, second]), 3)
            pairs.append(
                SimilarAnswer(
                    first=names[items[first]],
                    second=names[items[second]],
                    similarity=similarity,
                )
            )
    return pairs


def _vector(output: Mapping[str, Any]) -> Any:
    """The embedding of a `feature-extraction` output, as an array."""
    from edge_runtime.contract.tensors import Tensor, to_numpy

    return to_numpy(Tensor(name="embedding", **output))


def pictures(all_answers: Sequence[JobAnswers]) -> tuple[PictureAnswer, ...]:
    """A few answered pictures, with what was found drawn on them."""
    shown: list[PictureAnswer] = []
    for answers in all_answers:
        match answers.question.task:
            case "object-detection":
                shown += [
                    _faces_picture(answers, item) for item in _worth_showing(answers)[:2][-1:]
                ]
            case "image-to-text":
                shown += [_text_picture(answers, item) for item in _worth_showing(answers)]
            case _:
                continue
    return tuple(shown)


def _faces_picture(answers: JobAnswers, item: int) -> PictureAnswer:
    answer = answers.by_item[item]
    boxes = []
    for found in answer.output["detections"]:
        left, top, right, bottom = found["box"]
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        boxes.append(Box(corners=corners, label=found["label"], score=found["score"]))
    return _picture(answers, item, tuple(boxes), hides=True)


def _text_picture(answers: JobAnswers, item: int) -> PictureAnswer:
    boxes = tuple(
        Box(
            corners=tuple((float(x), float(y)) for x, y in line["box"]),
            label=line["text"],
            score=line["score"],
        )
        for line in answers.by_item[item].output["lines"]
    )
    return _picture(answers, item, boxes, hides=False)


def _picture(
    answers: JobAnswers, item: int, boxes: tuple[Box, ...], *, hides: bool
) -> PictureAnswer:
    asked = answers.question.items[item]
    answer = answers.by_item[item]
    return PictureAnswer(
        caption=answers.question.names[item],
        media_type=asked.media_type,
        picture=asked.data or b"",
        width=answer.output["width"],
        height=answer.output["height"],
        boxes=boxes,
        vehicle=answer.vehicle,
        hides=hides,
    )
