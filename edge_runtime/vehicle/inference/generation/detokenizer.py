"""From token ids to text, piece by piece, with nothing taken back.

Invariants
- What was made sure of after n tokens depends on these n ids and the stop strings only. So a
  request that goes on elsewhere with its ids goes on with its text: no gap, no repeat.
- Bytes of an unfinished character, and text that may be the beginning of a stop string, wait.
- A stop string ends the text before it, wherever tokens or characters cut it.

Token bytes are those of byte-level BPE (GPT-2's alphabet of printable stand-ins); tokens that a
tokenizer calls special have none.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference.tokenizing.byte_pairs import byte_characters


class _Added(msgspec.Struct, frozen=True):
    id: Annotated[int, Meta(ge=0, lt=limits.SMALL_COUNT_MAX * 16)]
    content: str
    special: bool = False


class _Model(msgspec.Struct, frozen=True):
    vocab: dict[str, Annotated[int, Meta(ge=0, lt=limits.SMALL_COUNT_MAX * 16)]]


class _TokenizerFile(msgspec.Struct, frozen=True):
    model: _Model
    added_tokens: tuple[_Added, ...] = ()


def read_token_bytes(tokenizer_json: bytes) -> list[bytes]:
    """Return each token's bytes by id, from a `tokenizer.json` of byte-level BPE.

    Raises `msgspec.DecodeError`, `UnicodeDecodeError` or `RecursionError` for a file that is none.
    """
    file = msgspec.json.decode(tokenizer_json, type=_TokenizerFile)
    table = [b""] * (1 + max([*file.model.vocab.values(), *(a.id for a in file.added_tokens)]))
    alphabet = {text: byte for byte, text in enumerate(byte_characters())}
    for text, number in file.model.vocab.items():
        table[number] = _bytes_of(text, alphabet)
    for added in file.added_tokens:
        table[added.id] = b"" if added.special else added.content.encode()
    return table


def _bytes_of(text: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes(alphabet[character] for character in text)
    except KeyError:
        return text.encode()


@dataclass(slots=True)
class TextStream:
    """The text of one request's tokens so far. `stops` are its stop strings, none empty."""

    token_bytes: Sequence[bytes]
    stops: tuple[str, ...] = ()
    is_stopped: bool = False
    """Whether a stop string was met; nothing more comes then."""
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )
    _held: str = ""

    def push(self, token: int) -> str:
        """Take one more token; return the text that is now sure."""
        if self.is_stopped:
            return ""
        return self._release(self._decoder.decode(self.token_bytes[token]))

    def finish(self) -> str:
        """No token comes any more: return what still waited.

        An unfinished character becomes U+FFFD.
        """
        if self.is_stopped:
            return ""
        sure = self._release(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return sure + held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        if not self.stops:
            return text
        met = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        if met:
            self.is_stopped, self._held = True, ""
            return text[: min(met)]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
