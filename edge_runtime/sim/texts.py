"""What a simulated engine writes: the one right text of every request for one.

A text is a function of what was asked (and of the seed, where there is a temperature) and of the
tokens before: an engine that is told to go on after tokens which are not this text's goes astray,
and whoever reads along notices.

Invariants
- `sure(ids)` depends on the ids alone: what two cars tell, one after the other, is what one tells.
- As with real tokens, what a token adds may become sure only with the next one.
"""

import hashlib
from typing import Any, Final

import msgspec

from edge_runtime.vehicle.core.events import FinishReason

MODEL: Final = "talker"
LONG: Final = "at length"
"""A prompt that begins so is answered with as many tokens as it may be."""
_SHORTEST_TOKENS: Final = 3
_MORE_TOKENS: Final = 20
_VOCABULARY: Final = 40_000
_DEFAULT_TOKENS: Final = 16


class Asked(msgspec.Struct, frozen=True):
    """As much of a generation's item as matters here."""

    prompt: str = ""
    messages: list[dict[str, str]] = []
    generated: tuple[int, ...] = ()
    max_tokens: int = _DEFAULT_TOKENS
    temperature: float = 0.0
    seed: int = 0

    @property
    def question(self) -> str:
        """What was said last."""
        return self.messages[-1]["content"] if self.messages else self.prompt


_decode: Final = msgspec.json.Decoder(Asked).decode


def read_asked(item: bytes) -> Asked:
    """An item of a generation. Raises `msgspec.DecodeError` for anything else."""
    return _decode(item)


class Text:
    """The one right text for a request, whatever was generated before."""

    def __init__(self, asked: Asked) -> None:
        seed = asked.seed if asked.temperature else 0
        self._key = f"{asked.question}/{seed}"
        self._prompt_tokens = len(asked.question)
        own_end = _SHORTEST_TOKENS + _hash(f"{self._key}/end") % _MORE_TOKENS
        is_cut = asked.question.startswith(LONG) or own_end > asked.max_tokens
        self.length = asked.max_tokens if is_cut else own_end
        self.finish = FinishReason.LENGTH if is_cut else FinishReason.STOP

    def after(self, ids: tuple[int, ...], count: int) -> tuple[int, ...]:
        """The ids that follow on these, `count` of them."""
        found = list(ids)
        for place in range(len(ids), len(ids) + count):
            before = found[-1] if found else 0
            found.append(_hash(f"{self._key}/{place}/{before}") % _VOCABULARY)
        return tuple(found[len(ids) :])

    def sure(self, ids: tuple[int, ...]) -> str:
        """What so many tokens make sure of: after an odd one the last character is not."""
        text = "".join(f" {token:x}é" for token in ids)
        is_held_back = bool(ids) and ids[-1] % 2 == 1 and len(ids) < self.length
        return text[:-1] if is_held_back else text

    @property
    def whole(self) -> str:
        """Undisturbed, and to its end."""
        return self.sure(self.after((), self.length))

    def output(self, ids: tuple[int, ...]) -> dict[str, Any]:
        """As the task's output says it, with whatever ids it came to."""
        return {
            "text": self.sure(ids),
            "ids": ids,
            "finish": self.finish.value,
            "usage": {"prompt_tokens": self._prompt_tokens, "completion_tokens": len(ids)},
            "margin": 1.0,
        }


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
