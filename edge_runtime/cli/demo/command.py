"""`edge-runtime demo`: parse, run, print, write the report."""

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.lifecycle import run_command
from edge_runtime.cli.options import (
    DEFAULT_MODELS,
    ModelsFolder,
    check_broker_url,
    readable_folder,
)
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.cli.demo.live import View
    from edge_runtime.cli.demo.run import DemoOptions, Outcome

_EMBEDDED: Final = "embedded"
_DEFAULT_DATA: Final = Path(".data/demo")
_DEFAULT_CACHE: Final = Path(".data/cache")
_NEEDED: Final = ("centerface", "pp-ocr", "minilm")


def demo(
    *,
    cars: Annotated[int, Parameter(help="How many cars, each a process.")] = 8,
    items: Annotated[
        int | None,
        Parameter(help="Items of each job; none: 120 frames, 20 pictures, 200 sentences."),
    ] = None,
    seed: Annotated[int, Parameter(help="Chooses the sentences.")] = 7,
    broker: Annotated[
        str, Parameter(help='"embedded", or mqtt://host:port of a broker that runs.')
    ] = _EMBEDDED,
    faults: Annotated[
        bool,
        Parameter(negative="--no-faults", help="Owner returns, a car is killed, one overheats."),
    ] = True,
    report: Annotated[
        Path | None, Parameter(help="Write the report, one HTML file, to here.")
    ] = Path("demo-report.html"),
    models: ModelsFolder = DEFAULT_MODELS,
    data: Annotated[Path, Parameter(help="Folder of the clip and the pictures.")] = _DEFAULT_DATA,
    cache: Annotated[Path, Parameter(help="Folder of downloads, where data is missing.")] = (
        _DEFAULT_CACHE
    ),
    state_dir: Annotated[
        Path | None,
        Parameter(help="Keep stores, journals and logs here; none: a temporary folder."),
    ] = None,
    stay: Annotated[
        bool, Parameter(negative="", help="Then print the URLs and keep it running until Ctrl-C.")
    ] = False,
    timeout_s: Annotated[float, Parameter(help="Longest time for the jobs, seconds.")] = 170.0,
    as_json: Annotated[
        bool, Parameter("--json", negative="", help="One final JSON object on stdout.")
    ] = False,
) -> int:
    """Run the whole system on this machine: real models, real input, three faults, a count.

    Exit code 0 means that a separate subscriber counted exactly one canonical result for every
    item, and that every fault struck a unit that was running; where the cars are done before that,
    there are 20 more pictures to read, up to five times.
    """
    from edge_runtime.cli.demo.live import open_view
    from edge_runtime.cli.demo.run import DemoOptions

    _check_numbers(cars, items)
    if broker != _EMBEDDED:
        check_broker_url("--broker", broker)
    _check_models(models)
    with _folder(state_dir) as folder, open_view() as view:
        options = DemoOptions(
            cars=cars,
            items=items,
            seed=seed,
            broker=broker,
            faults=faults,
            models=models,
            data=data,
            cache=cache,
            state_dir=folder,
            timeout_s=timeout_s,
        )
        code, outcome = _run(options, view, report, as_json=as_json, stay=stay)
    if outcome is None:
        return code
    return _end(outcome) if stay else _tell(outcome, report, as_json=as_json)


def _run(
    options: "DemoOptions", view: "View", report: Path | None, *, as_json: bool, stay: bool
) -> "tuple[int, Outcome | None]":
    """The exit code of the course, and how it ended; one that stays tells it before it does."""
    from edge_runtime.cli.demo.run import run_demo

    outcomes: list[Outcome] = []

    def take(outcome: "Outcome") -> None:
        outcomes.append(outcome)
        if stay:
            _tell(outcome, report, as_json=as_json)

    code = run_command(lambda: run_demo(options, view, take, stay=stay))
    return code, outcomes[0] if outcomes else None


def _check_numbers(cars: int, items: int | None) -> None:
    if cars < 1:
        raise ConfigError(f"--cars must be at least 1, not {cars}")
    if items is not None and items < 1:
        raise ConfigError(f"--items must be at least 1, not {items}")


def _check_models(models: Path) -> None:
    readable_folder("--models", models)
    missing = [name for name in _NEEDED if not (models / name).is_dir()]
    if missing:
        raise ConfigError(
            f"--models {models}: no package {missing[0]}; run: edge-runtime models import --all"
        )


@contextlib.contextmanager
def _folder(state_dir: Path | None) -> Iterator[Path]:
    """The folder asked for, kept; or a temporary one, kept only where the demo fails."""
    if state_dir is not None:
        state_dir.mkdir(parents=True, exist_ok=True)
        yield state_dir.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="edge-runtime-demo-"))
    try:
        yield folder
    except Exception:
        print(f"stores and logs are kept in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _tell(outcome: "Outcome", report: Path | None, *, as_json: bool) -> int:
    """Print the figures, write the report; the exit code."""
    import msgspec

    from edge_runtime.cli.demo.report import render_report

    if report is not None:
        report.write_text(render_report(outcome.report), encoding="utf-8")
        print(f"report: {report}", file=sys.stderr)
    if as_json:
        print(msgspec.json.encode(outcome.summary).decode())
    else:
        for name, value in msgspec.structs.asdict(outcome.summary).items():
            print(f"{name:<20} {'none' if value is None else value}")
    for line in outcome.faults:
        print(f"edge-runtime: demo failed: {line}", file=sys.stderr)
    return _end(outcome)


def _end(outcome: "Outcome") -> ExitCode:
    return ExitCode.FAILED if outcome.faults else ExitCode.DONE
