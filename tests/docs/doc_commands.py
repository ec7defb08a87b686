"""The commands that a page shows, held against the tree of commands: names and options only.

What an option is given is not looked at: pages say `PATH`, `…` and `HOUSE`.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Final

from edge_runtime.cli.app import add_launcher, build_app
from edge_runtime.cli.reference_page import CommandPath, commands, settings_of

OPTIONS: Final[dict[CommandPath, frozenset[str]]] = {
    path: frozenset(name for one in settings_of(command) for name in one.names)
    for path, command in commands(build_app())
}
GLOBAL: Final = frozenset(
    name for one in settings_of(add_launcher(build_app())) for name in one.names
) | {"--help"}
_GROUPS: Final = frozenset(path[:1] for path in OPTIONS if len(path) > 1)
_PROGRAM: Final = re.compile(r"(?:^|[\s(`;|&])(?:\S*/)?edge-runtime(?=\s)([^\n`;|&)#]*)")
_OPTION: Final = re.compile(r"--[a-z][a-z0-9-]*")


def joined(text: str) -> str:
    """Lines that end in a backslash, with those that follow them."""
    return re.sub(r"\\\n\s*", " ", text)


def faults_in(text: str) -> Iterator[str]:
    """What is wrong with each call of `edge-runtime` in `text`; a trailing name alone is none."""
    for match in _PROGRAM.finditer(joined(text)):
        fault = _fault(match[1])
        if fault:
            yield f"edge-runtime{match[1].rstrip()}: {fault}"


def _fault(call: str) -> str:
    try:
        words = shlex.split(call)
    except ValueError:
        words = call.split()
    path: CommandPath = ()
    while words and (*path, words[0]) in _GROUPS | OPTIONS.keys():
        path = (*path, words.pop(0))
    options = {option for word in words for option in _OPTION.findall(word.split("=")[0])[:1]}
    if path in _GROUPS and words and not words[0].startswith(("-", "[", "…", "|")):
        return f"no command {words[0]!r} in {' '.join(path)}"
    if not path and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        return f"no command {words[0]!r}"
    unknown = sorted(options - OPTIONS.get(path, frozenset()) - GLOBAL) if path in OPTIONS else []
    return f"no option {', '.join(unknown)}" if unknown else ""
