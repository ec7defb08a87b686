"""Where settings come from besides flags: the environment, then one TOML file.

Both refuse what no command knows: a misspelt setting must never be a silently ignored one.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cyclopts.config import Dict, Env

from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from cyclopts import App, Argument, ArgumentCollection

ENVIRONMENT_PREFIX: Final = "EDGE_RUNTIME_"
GLOBAL_SETTINGS: Final = frozenset({"config", "log-format", "log-level"})
"""Settings of every command; as environment variables they carry no command's name."""


class Environment(Env):
    """`EDGE_RUNTIME_<COMMAND>_<OPTION>`; one that names no option of the command is refused."""

    def _convert_argument(self, commands: tuple[str, ...], argument: "Argument") -> str:
        """The variable that `--help` shows: settings of every command carry no command's name."""
        is_global = argument.name.lstrip("-") in GLOBAL_SETTINGS
        return super()._convert_argument(() if is_global else commands, argument)

    def __call__(
        self, app: "App", commands: tuple[str, ...], arguments: "ArgumentCollection"
    ) -> None:
        """Fill what no flag filled. Raises `ConfigError` for an unknown option."""
        super().__call__(app, commands, arguments)
        if not commands:
            return
        prefix = self.prefix + "".join(f"{name.upper().replace('-', '_')}_" for name in commands)
        known = {
            prefix + name.lstrip("-").replace("-", "_").upper()
            for argument in arguments
            for name in argument.names
        }
        for variable in sorted(os.environ):
            if variable.startswith(prefix) and variable not in known:
                raise ConfigError(
                    f"environment variable {variable} names no option of "
                    f"'edge-runtime {' '.join(commands)}'; unset it or see --help"
                )


def read_file(path: Path, root: "App") -> Dict:
    """The TOML file as a source of settings: one table a command, `[jobs.list]` for deeper ones.

    Raises `ConfigError` where it cannot be read, is no TOML, or names an unknown command.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {error}") from None
    _check_commands(table, root, path, ())
    return Dict(table, source=str(path))


def _check_commands(
    table: Mapping[str, Any], app: "App", path: Path, above: tuple[str, ...]
) -> None:
    """Refuse a key of a group of commands that is no command of it."""
    commands = [name for name in app if not name.startswith("-")]
    for key, value in table.items():
        here = ".".join((*above, key))
        if key not in commands:
            raise ConfigError(
                f"{path}: [{here}] names no command; known are {', '.join(sorted(commands))}"
            )
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {here} must be a table, [{here}]")
        if app[key].default_command is None:
            _check_commands(value, app[key], path, (*above, key))
