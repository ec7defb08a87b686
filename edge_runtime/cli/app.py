"""The tree of commands, and the one place where an error becomes a line and an exit code.

Commands are registered by import path: what a command needs is loaded when it runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from edge_runtime.cli.logging import LogFormat, LogLevel, configure_logging  # isort: skip - first: it hides rich from structlog

from cyclopts import App, CycloptsError, Group, Parameter

from edge_runtime.cli import teaching
from edge_runtime.cli.exit_codes import MEANINGS, ExitCode
from edge_runtime.cli.settings import ENVIRONMENT_PREFIX, Environment, read_file
from edge_runtime.contract.errors import ConfigError, EdgeError, LocalError

_COMMANDS: Final = "edge_runtime.cli.commands"
_HELP: Final = """Parked cars as one inference service: ONNX models, MQTT, owner first.

Settings: a flag wins over the environment (EDGE_RUNTIME_<COMMAND>_<OPTION>), which wins over the
file of --config (TOML, one table a command: [vehicle], [jobs.list]), which wins over the default.
"""
_SERVICES: Final = Group.create_ordered("Services")
_REQUESTS: Final = Group.create_ordered("Requests")
_OPERATIONS: Final = Group.create_ordered("Operations")
_GLOBAL: Final = Group("For every command")


_ACCOUNTS: Final = {
    "create": ("accounts:create", "Make an API key."),
    "list": ("accounts:list_keys", "API keys by their prefixes."),
    "revoke": ("accounts:revoke", "Revoke an API key."),
    "quota": ("accounts:quota", "How much a tenant may have, and has."),
}


def _epilogue() -> str:
    lines = (f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
    return "Exit codes:\n" + "\n".join(lines)


def _group(name: str, summary: str, commands: dict[str, tuple[str, str]]) -> App:
    group = App(name=name, help=summary, help_format="plaintext")
    for command, (path, help_line) in commands.items():
        group.command(f"{_COMMANDS}.{path}", name=command, help=help_line)
    return group


def build_app() -> App:
    """The whole tree, nothing of it imported yet."""
    app = App(
        name="edge-runtime",
        help=_HELP,
        help_epilogue=_epilogue(),
        help_format="plaintext",
        version_flags=(),
        config=Environment(ENVIRONMENT_PREFIX),
    )
    app["--help"].group = _GLOBAL
    single: dict[str, tuple[str, str, Group]] = {
        "demo": (
            "edge_runtime.cli.demo.command:demo",
            "The whole system on this machine.",
            _SERVICES,
        ),
        "broker": (f"{_COMMANDS}.broker:broker", "The embedded MQTT broker.", _SERVICES),
        "dispatcher": (f"{_COMMANDS}.dispatcher:dispatcher", "The dispatcher.", _SERVICES),
        "vehicle": (f"{_COMMANDS}.vehicle:vehicle", "One car's runtime.", _SERVICES),
        "submit": (f"{_COMMANDS}.submit:submit", "Submit a job; print its results.", _REQUESTS),
        "results": (f"{_COMMANDS}.results:results", "Print a job's results.", _REQUESTS),
        "top": (f"{_COMMANDS}.top:top", "A dispatcher at a glance, live.", _OPERATIONS),
        "tap": (f"{_COMMANDS}.tap:tap", "Read the bus as a person.", _OPERATIONS),
        "simulate": (f"{_COMMANDS}.simulate:simulate", "Prove it in seeded worlds.", _OPERATIONS),
        "doctor": (f"{_COMMANDS}.doctor:doctor", "Say what is wrong with a car.", _OPERATIONS),
        "upgrade": (f"{_COMMANDS}.upgrade:upgrade", "Run another release of it.", _OPERATIONS),
        "wipe": (f"{_COMMANDS}.wipe:wipe", "Take the owner's data out of a car.", _OPERATIONS),
        "version": (f"{_COMMANDS}.version:version", "Print versions.", _OPERATIONS),
    }
    for name, (path, help_line, group) in single.items():
        app.command(path, name=name, help=help_line, group=group)
    for subtree, group in _subtrees():
        subtree.group = group
        app.command(subtree)
    return app


def _subtrees() -> list[tuple[App, Group]]:
    jobs = {
        "list": ("jobs:list_jobs", "Jobs, newest first."),
        "status": ("jobs:status", "One job's state and progress."),
        "why": ("jobs:why", "Why a job is waiting."),
        "cancel": ("jobs:cancel", "Cancel a job."),
        "delete": ("jobs:delete", "Forget a job and its results."),
        "dead-letters": ("jobs:dead_letters", "Items that failed for good."),
        "requeue": ("jobs:requeue", "Run dead letters again."),
    }
    fleet = {
        "list": ("fleet:list_cars", "Cars, what they do and why not."),
        "quarantine": ("fleet:quarantine", "Give a car no work, or give it work again."),
    }
    models = {
        "import": ("models:import_models", "Make packages from published models."),
        "pack": ("models:pack", "Check a folder and add it as a package."),
        "list": ("models:list_models", "Packages in a folder."),
        "verify": ("models:verify", "Hash and check packages."),
        "init-repository": ("repository:init_repository", teaching.INIT_REPOSITORY),
        "add-publisher": ("repository:add_publisher", teaching.ADD_PUBLISHER),
        "publish": ("repository:publish", teaching.PUBLISH),
        "revoke": ("repository:revoke", teaching.REVOKE),
        "rotate-key": ("repository:rotate_key", teaching.ROTATE_KEY),
        "renew": ("repository:renew", teaching.RENEW),
        "sign": ("repository:sign", teaching.SIGN),
        "published": ("repository:published", teaching.PUBLISHED),
    }
    store = {
        "backup": ("store:backup", "Copy a store to a new file."),
        "migrate": ("store:migrate", "Bring a store to this version."),
        "check": ("store:check", "Check a store's integrity."),
    }
    pki = {
        "init": ("pki:init", "Make authorities, broker files, the dispatcher's identity."),
        "enroll": ("pki:enroll", "Certify cars, here or by request."),
        "request": ("pki:request", "Make a key and a request for its certificate."),
        "accept": ("pki:accept", "Put the answer to a request in force."),
        "renew": ("pki:renew", "Renew an identity."),
        "status": ("pki:status", "Whose an identity is and until when."),
        "revoke": ("pki:revoke", "Revoke certificates and end the session."),
        "kick": ("pki:kick", "End a live session."),
        "tenant": ("pki:tenant", "Accounts of third parties at the broker."),
        "signing-key": ("pki:signing_key", "Keys that sign what goes to cars."),
    }
    owner = {
        "status": ("owner:status", "Consent, what the car does, energy, work done."),
        "why": ("owner:why", "Which rules forbid or allow work now."),
        "ledger": ("owner:ledger", "What work took, and the budgets."),
        "pause": ("owner:pause", "Stop all work now."),
        "resume": ("owner:resume", "Let work begin again."),
        "consent": ("owner:consent", "Agree that this car works for others."),
        "withdraw": ("owner:withdraw", "Withdraw consent: work stops now and for good."),
        "policy": ("owner:policy", "Print a complete policy file."),
        "day": ("owner_day:day", "What a policy makes of a recorded day."),
    }
    schemas = {
        "write": ("schemas:write", "Generate the schemas."),
        "check": ("schemas:check", "Fail where the schemas differ from the code."),
    }
    return [
        (_group("jobs", "Jobs of a dispatcher.", jobs), _REQUESTS),
        (_group("fleet", "Cars of a dispatcher.", fleet), _OPERATIONS),
        (_group("models", "Model packages.", models), _OPERATIONS),
        (_group("store", "The dispatcher's store.", store), _OPERATIONS),
        (_group("accounts", "Who may ask a dispatcher, and for how much.", _ACCOUNTS), _OPERATIONS),
        (_group("pki", "Certificates and signing keys.", pki), _OPERATIONS),
        (_group("owner", "What a car's owner asks and decides.", owner), _OPERATIONS),
        (_group("schemas", "What travels, as documents.", schemas), _OPERATIONS),
    ]


def add_launcher(app: App) -> App:
    """Give `app` the options of every command; what takes them, and then runs the command."""

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        config: Annotated[Path | None, Parameter(help="Settings in TOML.", group=_GLOBAL)] = None,
        log_format: Annotated[
            LogFormat,
            Parameter(help="Log lines; auto is pretty on a terminal, else JSON.", group=_GLOBAL),
        ] = "auto",
        log_level: Annotated[
            LogLevel, Parameter(help="Least level that is logged.", group=_GLOBAL)
        ] = "info",
    ) -> int:
        configure_logging(log_format, log_level)
        if config is not None:
            app.config = (Environment(ENVIRONMENT_PREFIX), read_file(config, app))
        result = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        return result if isinstance(result, int) else ExitCode.DONE

    return app.meta


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit code. Prints what a person did wrong as one line."""
    launcher = add_launcher(build_app())
    try:
        code = launcher(
            list(arguments), exit_on_error=False, print_error=False, result_action="return_value"
        )
    except Exception as error:  # noqa: BLE001 - this is where every fault becomes an exit code
        return _end(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.DONE


def _end(error: Exception) -> ExitCode:
    """One line on stderr and the exit code of an error; what nobody foresaw is raised again."""
    match error:
        case CycloptsError() | ConfigError():
            code = ExitCode.USAGE
        case BrokenPipeError():
            # Whoever read our output has gone, as `| head` does.
            sys.stderr.close()
            return ExitCode.DONE
        case LocalError() | OSError():
            code = ExitCode.FAILED
        case EdgeError():
            code = ExitCode.REMOTE
        case ModuleNotFoundError(name=str(name)) if not name.startswith("edge_runtime"):
            error = ConfigError(f"{name} is not installed; pip install 'edge-runtime[demo]'")
            code = ExitCode.USAGE
        case _:
            raise error
    line = " ".join(str(error).split())
    print(f"edge-runtime: {line}", file=sys.stderr)
    return code
