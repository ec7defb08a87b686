"""BERT's way: normalise, part at spaces and punctuation, then the longest pieces that are known.

Everything before the pieces looks at one character at a time, so it is one table from a character
to what becomes of it, filled as characters turn up. Equal to the library's BertNormalizer,
BertPreTokenizer and WordPiece, but that the few combining marks which stay (U+302E, notes of
music) keep their order, where the library sorts them.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference.tokenizing import unicode_ranges as ranges

TokenId = Annotated[int, Meta(ge=0, lt=limits.TOKEN_IDS_MAX)]

_FIRST_PLANE_END: Final = 0xFFFF


class BertNormalizer(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="BertNormalizer"
):
    """The options of `normalizer`; without `strip_accents`, accents go where capitals go."""

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None
    lowercase: bool = True

    @property
    def strips_accents(self) -> bool:
        """Whether nonspacing marks are left out."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


class BertPreTokenizer(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="BertPreTokenizer",
):
    """Parts at spaces, and before and after punctuation."""


class WordPieceFile(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="WordPiece"
):
    """What `model` says."""

    vocab: dict[str, TokenId]
    unk_token: str = "[UNK]"  # noqa: S105 - a word of a model, no secret
    continuing_subword_prefix: str = "##"
    max_input_chars_per_word: Annotated[int, Meta(ge=0, le=limits.INPUT_TEXT_MAX_BYTES)] = 100


class CharacterTable(dict[int, str]):
    """What becomes of each character; for `str.translate`. Bounded: it begins anew when full."""

    def __init__(self, normalizer: BertNormalizer) -> None:
        super().__init__()
        self._options = normalizer

    def __missing__(self, code: int) -> str:
        if len(self) >= limits.TOKENIZER_CHARACTERS_MAX:
            self.clear()
        text = self[code] = "".join(_spaced(character) for character in self._normalized(code))
        return text

    def _normalized(self, code: int) -> str:
        options, text = self._options, chr(code)
        if options.clean_text and code in ranges.REMOVED:
            return ""
        if options.handle_chinese_chars and code in ranges.IDEOGRAPHS:
            text = f" {text} "
        if options.strips_accents:
            if code <= _FIRST_PLANE_END or code in ranges.DECOMPOSED_ABOVE_FFFF:
                text = unicodedata.normalize("NFD", text)
            text = "".join(character for character in text if ord(character) not in ranges.MARKS)
        if options.lowercase:
            text = "".join(map(_lower, text))
        return text


def _lower(character: str) -> str:
    code = ranges.LOWERCASE_SINCE_UNICODE_14.get(ord(character))
    return character.lower() if code is None else chr(code)


def _spaced(character: str) -> str:
    code = ord(character)
    if code in ranges.SPACES:
        return " "
    return f" {character} " if code in ranges.PUNCTUATION else character


class WordPiece:
    """Token numbers of plain text."""

    def __init__(self, file: WordPieceFile, normalizer: BertNormalizer | None) -> None:
        self._table = CharacterTable(
            normalizer
            or BertNormalizer(clean_text=False, handle_chinese_chars=False, lowercase=False)
        )
        prefix = file.continuing_subword_prefix
        self._beginnings: Mapping[str, int] = file.vocab
        self._continuations = {
            piece.removeprefix(prefix): token
            for piece, token in file.vocab.items()
            if piece.startswith(prefix)
        }
        self._unknown = file.vocab[file.unk_token]
        self._word_max_chars = file.max_input_chars_per_word
        self._piece_max_chars = max(map(len, file.vocab), default=0)

    def tokens(self, text: str) -> Iterator[int]:
        """The numbers of the text's pieces, one after another, as they are wanted."""
        for word in text.translate(self._table).split(" "):
            if word:
                yield from self._pieces(word)

    def _pieces(self, word: str) -> list[int]:
        if len(word) > self._word_max_chars:
            return [self._unknown]
        pieces: list[int] = []
        known, start = self._beginnings, 0
        while start < len(word):
            for end in range(min(len(word), start + self._piece_max_chars), start, -1):
                token = known.get(word[start:end])
                if token is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(token)
            known, start = self._continuations, end
        return pieces
