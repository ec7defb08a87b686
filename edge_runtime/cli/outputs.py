"""What a task answered, as a line for people. Total: an output of any shape has a line."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_runtime.cli.reading import one_line, to_plain

_SHOWN: Final = 6


def describe_output(output: Any) -> str:
    """`1 face at (66, 37) 0.92`, `NOTICE / DOUBLE / PARKING`, or whatever is there, abbreviated."""
    match output:
        case {"detections": [*found]} if _all_have(found, "box", "score", "label"):
            return _boxes(found)
        case {"lines": [*found]} if _all_have(found, "text"):
            return _lines(found)
        case _:
            plain = to_plain(output)
            return one_line(plain) if isinstance(plain, dict) else str(plain)


def _all_have(found: Sequence[Any], *keys: str) -> bool:
    return all(isinstance(piece, Mapping) and piece.keys() >= set(keys) for piece in found)


def _boxes(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "nothing found"
    label = to_plain(found[0]["label"])
    places = [f"({_point(piece['box'])}) {piece['score']:.2f}" for piece in found[:_SHOWN]]
    more = ", …" if len(found) > _SHOWN else ""
    return f"{len(found)} {label}{'s' if len(found) > 1 else ''} at {', '.join(places)}{more}"


def _point(box: Sequence[float]) -> str:
    return f"{box[0]:.0f}, {box[1]:.0f}"


def _lines(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "no text"
    more = " / …" if len(found) > _SHOWN else ""
    return " / ".join(str(to_plain(piece["text"])) for piece in found[:_SHOWN]) + more
