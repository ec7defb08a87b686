"""Pages and the blocks of code in them, as a CommonMark parser sees them.

A block is run as it stands, in the order of its page, unless a comment right before it says:

- `<!-- stays -->`: every command of it goes on until the page's end, as in a terminal of its own;
- `<!-- output -->`: this is what the block before it prints, `…` standing for what differs;
- `<!-- run by: tests/… -->`: that test runs it, and names the page;
- `<!-- not run: why -->`: it cannot run in a test; its shell syntax and its commands are checked.

Sybil and its like find fences by regular expression; what they do not see is silently not run.
"""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    [
        *(
            ROOT / name
            for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md")
        ),
        *(ROOT / "broker").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
RUN_LANGUAGES: Final = frozenset({"sh", "python"})
DATA_LANGUAGES: Final = frozenset({"json", "toml", "yaml", "conf"})
SHOWN_LANGUAGES: Final = frozenset({"text"})
_MARK: Final = re.compile(r"<!-- (stays|output|run by|not run)(?:: (.+?))? -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced or indented block; `line` is that of its first line of code, from 1."""

    page: Path
    line: int
    language: str
    text: str
    is_fenced: bool
    mark: str
    reason: str

    @property
    def where(self) -> str:
        return f"{named(self.page)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the runner of this folder runs it."""
        return self.language in RUN_LANGUAGES and self.mark in {"", "stays"}


def named(page: Path) -> str:
    """How a page is called, from the repository's root."""
    return page.relative_to(ROOT).as_posix()


def _parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text)


def _tokens(page: Path) -> list[Token]:
    return _parsed(page.read_text(encoding="utf-8"))


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """Every block of the page, or of `text` as if it stood there, in order."""
    found = []
    before: Token | None = None
    for token in _tokens(page) if text is None else _parsed(text):
        if token.type in {"fence", "code_block"}:
            comment = before.content if before is not None and before.type == "html_block" else ""
            match = _MARK.fullmatch(comment.strip())
            is_fenced = token.type == "fence"
            assert token.map is not None
            found.append(
                Block(
                    page=page,
                    line=token.map[0] + 1 + is_fenced,
                    language=token.info.strip(),
                    text=token.content,
                    is_fenced=is_fenced,
                    mark=match[1] if match else "",
                    reason=" ".join((match[2] or "").split()) if match else "",
                )
            )
        before = token
    return found


def marks_of(page: Path) -> list[str]:
    """Every comment that is meant as a mark, wherever it stands."""
    return [
        token.content.strip()
        for token in _tokens(page)
        if token.type == "html_block" and _MARK.match(token.content)
    ]


def links_of(page: Path) -> list[str]:
    """Where its links lead, as they are written."""
    inlines = [child for token in _tokens(page) for child in token.children or []]
    targets = [token.attrGet("href") for token in inlines if token.type == "link_open"]
    return [str(target) for target in targets if target is not None]


def inline_code_of(page: Path) -> list[str]:
    """Every `span` of code in its text."""
    inlines = [child for token in _tokens(page) for child in token.children or []]
    return [token.content for token in inlines if token.type == "code_inline"]


def headings_of(page: Path) -> list[str]:
    """The text of its headings."""
    tokens = _tokens(page)
    return [after.content for one, after in pairwise(tokens) if one.type == "heading_open"]
