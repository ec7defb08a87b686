"""Every command documents every setting: what it is, its default, its environment variable."""

import inspect
import re
from collections.abc import Iterator

import pytest
from command_line import edge_runtime
from cyclopts import App

from edge_runtime.cli.app import build_app
from edge_runtime.cli.exit_codes import ExitCode

UNITS = re.compile(r"_(ms|s|bytes|watts|percent|wh)$")
UNIT_WORDS = re.compile(r"milliseconds|seconds|bytes|watts|percent|watt-hours|\bms\b|\bs\b|\bW\b")


def commands(app: App, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in app:
        if name.startswith("-"):
            continue
        command = app[name]
        path = (*above, name)
        if command.default_command is None:
            yield from commands(command, path)
        else:
            yield path


EVERY = sorted(commands(build_app()))


def command_at(path: tuple[str, ...]) -> App:
    app = build_app()
    for name in path:
        app = app[name]
    return app


def test_the_tree_is_what_the_readme_says() -> None:
    assert {path[0] for path in EVERY} == {
        "demo", "broker", "dispatcher", "vehicle", "submit", "results", "jobs", "fleet", "pki",
        "accounts", "owner", "top",
        "tap", "models", "store", "schemas", "simulate", "doctor", "upgrade", "wipe", "version",
    }  # fmt: skip


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    command = command_at(path)
    undocumented = []
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if not argument.show or argument.children:
            continue
        help_text = argument.parameter.help or ""
        if len(help_text) < 5 or not help_text.endswith("."):
            undocumented.append(argument.name)
        if UNITS.search(argument.field_info.name) and not UNIT_WORDS.search(help_text):
            undocumented.append(f"{argument.name} names no unit")
    assert not undocumented


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_has_a_docstring(path: tuple[str, ...]) -> None:
    function = command_at(path).default_command
    assert inspect.getdoc(function)


@pytest.mark.parametrize("path", [(), ("models",), ("models", "list"), ("broker",)])
def test_help_shows_options_defaults_variables_and_exit_codes(path: tuple[str, ...]) -> None:
    done = edge_runtime(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config" in done.stdout
    assert "EDGE_RUNTIME_CONFIG" in done.stdout
    for code in ExitCode:
        assert re.search(rf"^ +{code.value}  ", done.stdout, re.MULTILINE)
    if path == ("broker",):
        assert "[default: 1883]" in done.stdout
        assert "EDGE_RUNTIME_BROKER_PORT_311" in done.stdout
