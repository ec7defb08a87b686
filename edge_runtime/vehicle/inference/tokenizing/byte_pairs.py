"""GPT-2's way: part with one regular expression, then join bytes by the file's list of pairs.

Equal to the library's ByteLevel (and Digits before it) and BPE. Joining keeps the pairs in a heap,
so a word of any length takes time in proportion, but for a logarithm.
"""

import re
from collections.abc import Iterator
from functools import cache
from heapq import heapify, heappop, heappush
from typing import Final

import msgspec

from edge_runtime.vehicle.inference.tokenizing import unicode_ranges as ranges
from edge_runtime.vehicle.inference.tokenizing.wordpiece import TokenId

_BYTES: Final = 256


class ByteLevel(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="ByteLevel"
):
    """Parts a text into words with the space before them, and bytes for characters."""

    add_prefix_space: bool = True
    trim_offsets: bool = True
    use_regex: bool = True


class Digits(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="Digits"
):
    """Parts a text before and after every digit, or every number."""

    individual_digits: bool = False


class PreTokenizers(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="Sequence"
):
    """One after another; `ByteLevel` is the last."""

    pretokenizers: list[ByteLevel | Digits]


class BytePairFile(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="BPE"
):
    """What `model` says. `merges` are pairs, or in older files two pieces with a space between."""

    vocab: dict[str, TokenId]
    merges: list[tuple[str, str] | str]
    dropout: None = None
    unk_token: None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class BytePairs:
    """Token numbers of plain text.

    Raises `ValueError` for merges of what the vocabulary has not.
    """

    def __init__(self, file: BytePairFile, digits: Digits | None) -> None:
        vocab = file.vocab
        self._vocab = vocab
        self._takes_whole_words = file.ignore_merges
        # A byte that the vocabulary has not is left out, as the library does without `unk_token`.
        self._of_byte = [vocab.get(character) for character in byte_characters()]
        self._merges = {}
        for rank, merge in enumerate(file.merges):
            left, _, right = (
                merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
            )
            try:
                self._merges[vocab[left], vocab[right]] = (rank, vocab[left + right])
            except KeyError as error:
                raise ValueError(
                    f"model.merges[{rank}]: {error} is not in the vocabulary"
                ) from None
        self._digits = _digits_pattern(digits)

    def tokens(self, text: str) -> Iterator[int]:
        """The numbers of the text's pieces, one after another, as they are wanted."""
        pattern = _word_pattern()
        # A text repeats its words: each is joined once a text.
        known: dict[str, list[int]] = {}
        for part in self._digits.split(text) if self._digits else (text,):
            for word in pattern.findall(part):
                pieces = known.get(word)
                if pieces is None:
                    pieces = known[word] = self._pieces(word)
                yield from pieces

    def _pieces(self, word: str) -> list[int]:
        data = word.encode()
        if self._takes_whole_words:
            characters = byte_characters()
            token = self._vocab.get("".join(characters[byte] for byte in data))
            if token is not None:
                return [token]
        symbols = [token for byte in data if (token := self._of_byte[byte]) is not None]
        return symbols if len(symbols) < 2 else self._joined(symbols)  # noqa: PLR2004 - a pair

    def _joined(self, symbols: list[int]) -> list[int]:
        """Join the pair that is first in the list, of equals the leftmost, until none is left."""
        merges, end = self._merges, len(symbols)
        following = list(range(1, end + 1))
        preceding = list(range(-1, end - 1))
        pairs = [
            (merge[0], place, merge[1])
            for place in range(end - 1)
            if (merge := merges.get((symbols[place], symbols[place + 1])))
        ]
        heapify(pairs)
        gone = -1
        while pairs:
            _, place, joined = heappop(pairs)
            after = following[place]
            if symbols[place] == gone or after >= end:
                continue
            # What was a pair when it was found may since have been joined to something else.
            if merges.get((symbols[place], symbols[after]), (0, gone))[1] != joined:
                continue
            symbols[place], symbols[after] = joined, gone
            following[place] = following[after]
            if following[place] < end:
                preceding[following[place]] = place
            for left in (preceding[place], place):
                right = following[left] if left >= 0 else end
                if right < end and (merge := merges.get((symbols[left], symbols[right]))):
                    heappush(pairs, (merge[0], left, merge[1]))
        return [symbol for symbol in symbols if symbol != gone]


@cache
def byte_characters() -> list[str]:
    """The character that stands for each byte in a vocabulary (GPT-2's `bytes_to_unicode`)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(_BYTES, 2 * _BYTES))
    return [chr(byte if byte in plain else next(others)) for byte in range(_BYTES)]


@cache
def _word_pattern() -> re.Pattern[str]:
    """GPT-2's expression, with the library's classes of characters instead of this Python's."""
    letters, numbers, spaces = (
        each.as_class() for each in (ranges.LETTERS, ranges.NUMBERS, ranges.SPACES)
    )
    return re.compile(
        f"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{numbers}]+| ?[^{spaces}{letters}{numbers}]+"
        f"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


def _digits_pattern(digits: Digits | None) -> re.Pattern[str] | None:
    if digits is None:
        return None
    one = f"[{ranges.DIGITS.as_class()}]"
    return re.compile(f"({one})" if digits.individual_digits else f"({one}+)")
