"""Reads a `tokenizer.json` and turns texts into token numbers.

What a file asks for and is not done here is refused when the package is loaded, with the place in
the file: a model must not see other tokens than it was trained with.

Deliberately absent: the padding and the truncation that a file names (a task knows its own
length), pairs of texts, and whatever none of the models here needs.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from edge_runtime.contract.package import PackageFault, PackageRefused
from edge_runtime.vehicle.inference.tokenizing.byte_pairs import (
    ByteLevel,
    BytePairFile,
    BytePairs,
    Digits,
    PreTokenizers,
)
from edge_runtime.vehicle.inference.tokenizing.wordpiece import (
    BertNormalizer,
    BertPreTokenizer,
    TokenId,
    WordPiece,
    WordPieceFile,
)


class Tokens(NamedTuple):
    """A text as a model sees it: token numbers, and to which part of a pair each belongs."""

    ids: list[int]
    type_ids: list[int]


class _AddedToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: TokenId
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False


class _Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    type_id: TokenId = 0


class _Piece(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two is there."""

    special: _Named | None = msgspec.field(default=None, name="SpecialToken")
    sequence: _Named | None = msgspec.field(default=None, name="Sequence")


class _SpecialToken(msgspec.Struct, frozen=True):
    ids: list[TokenId]


class _Template(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="TemplateProcessing",
):
    single: list[_Piece]
    special_tokens: dict[str, _SpecialToken]
    pair: Any = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: WordPieceFile | BytePairFile
    pre_tokenizer: BertPreTokenizer | ByteLevel | PreTokenizers
    normalizer: BertNormalizer | None = None
    added_tokens: list[_AddedToken] = []
    post_processor: _Template | ByteLevel | None = None
    decoder: Any = None
    truncation: Any = None
    padding: Any = None
    version: str = "1.0"


class Tokenizer:
    """Text to token numbers, the way one `tokenizer.json` says."""

    def __init__(self, file: _File) -> None:
        self._model = _model(file)
        added = [token for token in file.added_tokens if token.content]
        self._added = {token.content: token.id for token in added}
        self._all_named = _any_of([token.content for token in added])
        self._plain_named = _any_of([token.content for token in added if not token.special])
        template = file.post_processor
        self._before, self._after, self._type_id = _surroundings(
            template if isinstance(template, _Template) else None
        )

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file. Raises `PackageRefused` (bad_spec) as `parse`, and `OSError`."""
        return cls.parse(path.read_bytes())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Take a file's bytes. Raises `PackageRefused` (bad_spec) naming what is not done here."""
        try:
            return cls(msgspec.json.decode(data, type=_File))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refusal(str(error)) from error

    @property
    def added_max(self) -> int:
        """How many tokens every text gets besides its own."""
        return len(self._before) + len(self._after)

    def encode(self, text: str, tokens_max: int) -> Tokens:
        """The text's tokens with what the model expects around them, at most `tokens_max` in all.

        Tokens of the text over that are left out at its end; those around it stay.
        """
        room = max(0, tokens_max - self.added_max)
        own = list(islice(self.tokens(text), room))
        types = [self._type_id] * len(own)
        before, after = self._before, self._after
        return Tokens(
            [*(id_ for id_, _ in before), *own, *(id_ for id_, _ in after)],
            [*(kind for _, kind in before), *types, *(kind for _, kind in after)],
        )

    def tokens(self, text: str, *, names_special: bool = True) -> Iterator[int]:
        """The text's own tokens, one after another, as they are wanted.

        `names_special` says whether the name of a special token (`[SEP]`) means that token where
        the text has it, or is text like any other.
        """
        named = self._all_named if names_special else self._plain_named
        if named is None:
            yield from self._model.tokens(text)
            return
        for index, part in enumerate(named.split(text)):
            if index % 2:  # every second part is what was named
                yield self._added[part]
            else:
                yield from self._model.tokens(part)


def _any_of(names: list[str]) -> re.Pattern[str] | None:
    if not names:
        return None
    # Of two that begin at one place, the longer is meant.
    return re.compile(f"({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})")


_Around = list[tuple[int, int]]


def _surroundings(template: _Template | None) -> tuple[_Around, _Around, int]:
    """(tokens before the text, tokens after it, the text's type): tokens with their type."""
    before: _Around = []
    after: _Around = []
    type_id: int | None = None
    for piece in template.single if template else ():
        if piece.sequence is not None:
            type_id = piece.sequence.type_id
        elif template is not None and piece.special is not None:
            ids = template.special_tokens[piece.special.id].ids
            (before if type_id is None else after).extend(
                (id_, piece.special.type_id) for id_ in ids
            )
    return before, after, type_id or 0


def _model(file: _File) -> WordPiece | BytePairs:
    """The model with what comes before it. Raises `PackageRefused` for what is not done."""
    _check_added(file.added_tokens)
    if isinstance(file.post_processor, _Template):
        _check_template(file.post_processor)
    match file.model, file.pre_tokenizer:
        case WordPieceFile() as model, BertPreTokenizer():
            if model.unk_token not in model.vocab:
                raise _refusal(f"model.unk_token: {model.unk_token!r} is not in the vocabulary")
            return WordPiece(model, file.normalizer)
        case BytePairFile() as model, ByteLevel() as last:
            return _byte_pairs(file, model, [last])
        case BytePairFile() as model, PreTokenizers(steps):
            return _byte_pairs(file, model, steps)
        case model, steps:
            raise _refusal(f"pre_tokenizer: {_kind(steps)} is not done for a {_kind(model)}")


def _byte_pairs(file: _File, model: BytePairFile, steps: list[ByteLevel | Digits]) -> BytePairs:
    if file.normalizer is not None:
        raise _refusal("normalizer: none is done for a BPE")
    digits: Digits | None = None
    match steps:
        case [ByteLevel() as last]:
            pass
        case [Digits() as digits, ByteLevel() as last]:
            pass
        case _:
            raise _refusal(
                f"pre_tokenizer: {[_kind(step) for step in steps]} is not done; ByteLevel is, and"
                " Digits before it"
            )
    if last.add_prefix_space or not last.use_regex:
        raise _refusal("pre_tokenizer: ByteLevel is done without prefix space and with its regex")
    if model.continuing_subword_prefix or model.end_of_word_suffix or model.byte_fallback:
        raise _refusal("model: a BPE is done without prefix, suffix and byte_fallback")
    try:
        return BytePairs(model, digits)
    except ValueError as error:
        raise _refusal(str(error)) from error


def _kind(part: msgspec.Struct) -> str:
    return str(part.__struct_config__.tag)


def _check_added(tokens: list[_AddedToken]) -> None:
    for token in tokens:
        for option in ("single_word", "lstrip", "rstrip", "normalized"):
            if getattr(token, option):
                raise _refusal(f"added_tokens: {token.content!r} is {option}, which is not done")


def _check_template(template: _Template) -> None:
    sequences = [piece for piece in template.single if piece.sequence]
    if len(sequences) != 1:
        raise _refusal(f"post_processor.single: names the text {len(sequences)} times, not once")
    names = {piece.special.id for piece in template.single if piece.special}
    if missing := sorted(names - template.special_tokens.keys()):
        raise _refusal(f"post_processor.special_tokens: {missing} are missing")


def _refusal(detail: str) -> PackageRefused:
    return PackageRefused(PackageFault.BAD_SPEC, f"files.tokenizer: {detail}")
