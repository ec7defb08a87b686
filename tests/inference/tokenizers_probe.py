"""What the `tokenizers` library makes of every code point, asked of the library itself.

Run as a script it prints the tables of `tokenizing/unicode_ranges.py`.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Final

from tokenizers import Regex, normalizers, pre_tokenizers

BATCH: Final = 4_096
EVERY_CODE_POINT: Final = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
INHABITED: Final = [
    code
    for code in EVERY_CODE_POINT
    if code < 0x34000
    or 0xE0000 <= code < 0xE1000
    or code & 0xFFFF < 0x100
    or code & 0xFFFF > 0xFF00
]
"""The planes in which Unicode has characters, and the edges of all others."""

Codes = list[int]


def normalized(
    codes: Codes,
    *,
    clean_text: bool = False,
    handle_chinese_chars: bool = False,
    strip_accents: bool = False,
    lowercase: bool = False,
) -> dict[int, str]:
    """Each code point, as a BertNormalizer with these options writes it between two letters."""
    normalizer = normalizers.BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    found = {ord("|"): normalizer.normalize_str("a|b")[1:-1]}
    for some in batches([code for code in codes if code != ord("|")]):
        text = "|".join(f"a{chr(code)}b" for code in some)
        pieces = normalizer.normalize_str(text).split("|")
        found |= {code: piece[1:-1] for code, piece in zip(some, pieces, strict=True)}
    return found


def batches(codes: Codes) -> Iterator[Codes]:
    for start in range(0, len(codes), BATCH):
        yield codes[start : start + BATCH]


def matching(pattern: str, codes: Codes) -> set[int]:
    """The code points that the library's regular expressions count in a class."""
    remover = pre_tokenizers.Split(Regex(pattern), "removed")
    found: set[int] = set()
    for some in batches(codes):
        kept = [span for _, span in remover.pre_tokenize_str("".join(map(chr, some)))]
        edges = [(0, 0), *kept, (len(some), len(some))]
        for (_, end), (start, _) in pairwise(edges):
            found.update(some[end:start])
    return found


def split_by(pre_tokenizer: pre_tokenizers.PreTokenizer, codes: Codes) -> tuple[set[int], set[int]]:
    """(isolated, removed): the code points that part two letters."""
    isolated: set[int] = set()
    removed: set[int] = set()
    for some in batches(codes):
        pieces = iter(pre_tokenizer.pre_tokenize_str(" ".join(f"a{chr(code)}b" for code in some)))
        for code in some:
            first, _ = next(pieces)
            if first != "a":
                continue
            second, _ = next(pieces)
            if second == "b":
                removed.add(code)
            else:
                isolated.add(code)
                next(pieces)
    return isolated, removed


def _removed(codes: Codes) -> set[int]:
    return {code for code, text in normalized(codes, clean_text=True).items() if not text}


def _ideographs(codes: Codes) -> set[int]:
    padded = normalized(codes, handle_chinese_chars=True)
    return {code for code, text in padded.items() if text == f" {chr(code)} "}


def _marks(codes: Codes) -> set[int]:
    return {code for code, text in normalized(codes, strip_accents=True).items() if not text}


def _decomposed_above_ffff(codes: Codes) -> set[int]:
    bare = normalized([code for code in codes if code > 0xFFFF], strip_accents=True)
    return {code for code, text in bare.items() if text and text != chr(code) and code > 0xFFFF}


def _digits(codes: Codes) -> set[int]:
    parted = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)]
    return split_by(pre_tokenizers.Sequence(parted), codes)[0]


TABLES: Final[dict[str, Callable[[Codes], set[int]]]] = {
    "REMOVED": _removed,
    "SPACES": partial(matching, r"\s"),
    "IDEOGRAPHS": _ideographs,
    "MARKS": _marks,
    "DECOMPOSED_ABOVE_FFFF": _decomposed_above_ffff,
    "PUNCTUATION": lambda codes: split_by(pre_tokenizers.BertPreTokenizer(), codes)[0],
    "LETTERS": partial(matching, r"\p{L}"),
    "NUMBERS": partial(matching, r"\p{N}"),
    "DIGITS": _digits,
}
"""Every table of `unicode_ranges` by its name there."""


def as_ranges(codes: set[int]) -> list[tuple[int, int]]:
    """First and last of every run of code points."""
    runs: list[tuple[int, int]] = []
    for code in sorted(codes):
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs


def written(codes: set[int]) -> str:
    words = [f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in as_ranges(codes)]
    return textwrap.fill(" ".join(words), 96, break_on_hyphens=False)


if __name__ == "__main__":
    for name, table in TABLES.items():
        text = written(table(EVERY_CODE_POINT))
        sys.stdout.write(f'{name}: Final = code_points(\n    """\n{text}\n"""\n)\n')
