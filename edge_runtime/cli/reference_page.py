"""The reference page of the command line, made from the tree of commands.

`python -m edge_runtime.cli.reference_page > docs/reference/cli.md`; a test compares them.

Invariants
- Nothing of a command is written here: names, types, defaults and meanings are those that
  `--help` shows and the command obeys.
- The page is the same on every machine: no home, no terminal's width, no colour is in it.

Deliberately absent: cyclopts' own generator of pages, which leaves the command out of the names of
environment variables.
"""

import inspect
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

from edge_runtime.cli.app import add_launcher, build_app
from edge_runtime.cli.exit_codes import MEANINGS
from edge_runtime.cli.settings import ENVIRONMENT_PREFIX

if TYPE_CHECKING:
    from cyclopts import App, Argument

CommandPath = tuple[str, ...]

_HEAD: Final = f"""\
# The command line

<!-- Made by `python -m edge_runtime.cli.reference_page`; edit the commands. -->

Every command explains itself with `--help`; this page is all of them together.

## Settings

Every option of every command is also an environment variable and a line of a file. A flag wins over
the environment, the environment over the file, the file over the default. A name that the command
does not know is an error in all three.

| where | `--state-dir` of `vehicle` | `--limit` of `jobs list` |
| --- | --- | --- |
| flag | `--state-dir FOLDER` | `--limit 5` |
| environment | `{ENVIRONMENT_PREFIX}VEHICLE_STATE_DIR` | `{ENVIRONMENT_PREFIX}JOBS_LIST_LIMIT` |
| file of `--config`, TOML | `state-dir = "…"` under `[vehicle]` | `limit = 5` under `[jobs.list]` |

A file for one machine that has all its services:

```toml
[broker]
port = 1883

[dispatcher]
broker = "mqtt://127.0.0.1:1883"
http = "127.0.0.1:8080"

[vehicle]
id = "car-1"
broker = "mqtt://127.0.0.1:1883"
sensors = "simulated"
```

In the tables, *needed* stands for an option without a default, and an empty default for an option
that is off, or does nothing, unless it is given.

## Exit codes

"""
_OF_EVERY_COMMAND: Final = """
## Options of every command

Their environment variables carry no command's name (`EDGE_RUNTIME_LOG_LEVEL`).

"""
_TABLE: Final = "| {first} | type | default | meaning |\n| --- | --- | --- | --- |\n"
_WORDS: Final[dict[Any, str]] = {
    Path: "path",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "",
}


def commands(app: "App", above: CommandPath = ()) -> "Iterator[tuple[CommandPath, App]]":
    """Every command that does something, in the order of `--help`, with the words that name it."""
    for name in app:
        if name.startswith("-"):
            continue
        here, command = (*above, name), app[name]
        if command.default_command is None:
            yield from commands(command, here)
        else:
            yield here, command


def settings_of(command: "App") -> "list[Argument]":
    """Return what a command takes, without what only groups its options."""
    collection = command.assemble_argument_collection(parse_docstring=True)
    return [one for one in collection if one.show and not one.children]


def cli_page() -> str:
    """The page, in Markdown."""
    app = build_app()
    meanings = "".join(f"| {code.value} | {text} |\n" for code, text in MEANINGS.items())
    parts = [_HEAD, "| code | meaning |\n| --- | --- |\n", meanings, _OF_EVERY_COMMAND]
    parts += _table("option", settings_of(add_launcher(app)))
    group = ""
    for path, command in commands(build_app()):
        if len(path) > 1 and path[0] != group:
            parts.append(f"\n## {path[0]}\n\n{app[path[0]].help}\n")
        group = path[0]
        parts += _section(path, command)
    return "".join(parts)


def _section(path: CommandPath, command: "App") -> Iterator[str]:
    taken = settings_of(command)
    arguments = [one for one in taken if _is_argument(one)]
    words = " ".join(_usage(one) for one in arguments)
    options = " [OPTIONS]" if len(arguments) < len(taken) else ""
    level = "#" * (len(path) + 1)
    yield f"\n{level} {' '.join(path)}\n\n"
    yield f"```text\nedge-runtime {' '.join(path)}{options}{' ' if words else ''}{words}\n```\n\n"
    yield f"{_says(command)}\n"
    for first, some in (
        ("argument", arguments),
        ("option", [o for o in taken if o not in arguments]),
    ):
        if some:
            yield "\n"
            yield from _table(first, some)


def _says(command: "App") -> str:
    """The longer of what `--help` says and what the function does."""
    own = inspect.getdoc(command.default_command) or ""
    return max(command.help, own, key=len).strip() if "cli.teaching" not in own else command.help


def _table(first: str, settings: "Iterable[Argument]") -> Iterator[str]:
    yield _TABLE.format(first=first)
    for one in settings:
        cells = (_name(one), _kind(one.hint), _default(one), one.parameter.help or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _is_argument(one: "Argument") -> bool:
    """Whether it is given by its place, without a name."""
    return one.field_info.kind in {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }


def _usage(one: "Argument") -> str:
    word = one.field_info.name.upper().replace("_", "-")
    if one.field_info.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"[{word}...]"
    return word if one.required else f"[{word}]"


def _name(one: "Argument") -> str:
    if _is_argument(one):
        return f"`{_usage(one).strip('[].')}`"
    names = [one.name, *(name for name in one.negatives if not name.startswith("--empty-"))]
    return ", ".join(f"`{name}`" for name in names)


def _kind(hint: Any) -> str:
    """The type in words, of a fixed set."""
    match get_origin(hint):
        case None:
            return _WORDS[hint]
        case origin if origin is Literal:
            return ", ".join(f"`{choice}`" for choice in get_args(hint))
        case origin if origin in {Union, types.UnionType}:
            return ", or ".join(_kind(one) for one in get_args(hint) if one is not types.NoneType)
        case origin if origin is dict:
            return f"for each name: {_kind(get_args(hint)[1])}"
        case _:
            return f"{_kind(get_args(hint)[0])}; again for more"


def _default(one: "Argument") -> str:
    value = one.field_info.default
    if value is inspect.Parameter.empty:
        return "*needed*" if one.required else ""
    match value:
        case None | False | "" | () | {}:
            return ""
        case True:
            return "on"
        case tuple():
            return ", ".join(f"`{item}`" for item in value)
        case float():
            return f"`{value:.15g}`"
        case _:
            return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(cli_page())
