"""`edge-runtime simulate`: seeded worlds in which everything fails, and what they prove."""

import contextlib
import inspect
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from edge_runtime import __version__
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import readable_file
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.sim.campaign import Scenario, Tally
    from edge_runtime.sim.runner import Verdict

_WHOLE_SEEDS: Final = 500
"""From so many seeds on, a fault that never fired is a failure of the campaign."""
_SHRUNK: Final = 5
_PARAGRAPH: Final = "\n\n"


def simulate(
    *,
    seeds: Annotated[str, Parameter(help="FIRST:END; END is not run.")] = "0:100",
    jobs: Annotated[int, Parameter(help="Processes.")] = 1,
    scenario: Annotated[
        Path | None,
        Parameter(help="TOML file: nemeses, cars, jobs, items_max, faults_s, healed_s."),
    ] = None,
    nemeses: Annotated[
        str | None, Parameter(help="Names with commas, or `none`; without it each seed draws.")
    ] = None,
    cars: Annotated[int | None, Parameter(help="Cars of a world.")] = None,
    world_jobs: Annotated[int | None, Parameter(help="Jobs of a world.")] = None,
    items_max: Annotated[int | None, Parameter(help="Most items of a job.")] = None,
    faults_s: Annotated[float | None, Parameter(help="Virtual seconds of faults.")] = None,
    until_failure: Annotated[
        bool, Parameter(negative="", help="Stop at the first seed that breaks an invariant.")
    ] = False,
    story: Annotated[
        str | None,
        Parameter(help="Print what happened; only lines with this text (a car, a job), or `all`."),
    ] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", negative="", help="The summary as one JSON object.")
    ] = False,
) -> int:
    """Run the production code in seeded worlds where networks, disks, clocks and owners fail.

    Each seed is a world of its own: a broker, a dispatcher, cars and requesters in virtual time.
    After the faults it is healed and must drain; then the invariants are checked. A seed that
    breaks one is shrunk, and the command that shows it again is printed; exit code 1.
    """
    changes = {"cars": cars, "jobs": world_jobs, "items_max": items_max, "faults_s": faults_s}
    chosen = _scenario(scenario, nemeses, changes)
    span = _seeds(seeds)
    if not 1 <= jobs <= limits.SIM_PROCESSES_MAX:
        raise ConfigError(f"--jobs must be 1 to {limits.SIM_PROCESSES_MAX}, not {jobs}")
    if story is not None:
        return _tell(span, chosen, story)
    from edge_runtime.sim.campaign import campaign

    began_s = time.monotonic()
    with _progress(len(span)) as advance:
        tally = campaign(
            span, chosen, processes=jobs, until_failure=until_failure, on_verdict=advance
        )
    elapsed_s = time.monotonic() - began_s
    _show_failures(tally, chosen)
    is_whole = len(span) >= _WHOLE_SEEDS and nemeses is None and scenario is None
    idle = tally.never_fired if is_whole else ()
    summary = {
        "seeds": tally.seeds,
        "violations": len(tally.failures),
        "run_twice": tally.twice,
        "trace": f"{tally.trace:016x}",
        "faults": dict(sorted(tally.fired.items())),
        "rare_paths": dict(sorted(tally.rare.items())),
        "never_fired": list(idle),
        "virtual_hours": round(tally.virtual_s / 3600, 1),
        "steps": tally.steps,
        "seconds": round(elapsed_s, 1),
        "commit": _commit(),
    }
    print(json.dumps(summary) if as_json else _for_people(summary))
    return ExitCode.FAILED if tally.failures or idle else ExitCode.DONE


def _scenario(
    path: Path | None, nemeses: str | None, flags: Mapping[str, float | None]
) -> "Scenario":
    try:
        from edge_runtime.sim.campaign import Scenario, check_nemeses, read_scenario
    except ImportError as error:
        raise ConfigError(
            f"the simulation needs both extras: pip install 'edge-runtime[demo]' ({error})"
        ) from None
    chosen = Scenario() if path is None else read_scenario(readable_file("--scenario", path))
    changes: dict[str, object] = {name: value for name, value in flags.items() if value is not None}
    if nemeses is not None:
        changes["nemeses"] = () if nemeses == "none" else tuple(nemeses.split(","))
    try:
        chosen = msgspec.convert(msgspec.structs.asdict(chosen) | changes, Scenario)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    check_nemeses(chosen.nemeses or ())
    return chosen


def _seeds(text: str) -> range:
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ConfigError(f"--seeds must be FIRST:END with FIRST below END, not {text!r}")
    return range(int(first), int(end))


def _tell(span: range, scenario: "Scenario", wanted: str) -> int:
    """Run the seeds one by one and print their stories."""
    from edge_runtime.sim.campaign import silence
    from edge_runtime.sim.runner import make_ground

    silence()
    has_failed = False
    with make_ground() as ground:
        for seed in span:
            verdict = scenario.run(seed, ground, keeps_story=True)
            has_failed |= bool(verdict.violations)
            print(f"seed {seed}: {', '.join(verdict.nemeses) or 'no nemesis'}")
            for line in verdict.story:
                if wanted == "all" or wanted in line:
                    print(line)
            print("\n".join(verdict.violations) or "every invariant held")
    return ExitCode.FAILED if has_failed else ExitCode.DONE


def _show_failures(tally: "Tally", scenario: "Scenario") -> None:
    if not tally.failures:
        return
    from edge_runtime.sim.campaign import command_for, shrink, silence
    from edge_runtime.sim.runner import make_ground

    silence()
    commit = _commit()
    with make_ground() as ground:
        for failed in sorted(tally.failures, key=lambda verdict: verdict.seed)[:_SHRUNK]:
            smaller, found = shrink(failed, scenario, ground)
            what = (found.violations or failed.violations)[0]
            print(f"seed {failed.seed} at {commit}: {what}")
            print(f"  {command_for(failed.seed, smaller)} --story all")
    for failed in tally.failures[_SHRUNK:]:
        print(f"seed {failed.seed} at {commit}: {failed.violations[0]}")


@contextlib.contextmanager
def _progress(total: int) -> "Iterator[Callable[[Verdict], None]]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("seeds", total=total)
        broken = 0

        def advance(verdict: "Verdict") -> None:
            nonlocal broken
            broken += bool(verdict.violations)
            bar.update(task, advance=1, description=f"seeds, {broken} broke an invariant")

        yield advance


def _for_people(summary: dict[str, Any]) -> str:
    from edge_runtime.sim.invariants import AT_ONCE, CHECKS

    faults: dict[str, int] = summary["faults"]
    rare: dict[str, int] = summary["rare_paths"]
    lines = [
        (
            f"{summary['seeds']} seeds ({summary['run_twice']} of them twice) at"
            f" {summary['commit']}: {summary['virtual_hours']} virtual hours,"
            f" {summary['steps']:,} steps, {summary['seconds']} s"
        ),
        f"faults injected: {sum(faults.values()):,}",
        *(f"  {count:>9,}  {kind}" for kind, count in faults.items()),
        "rare paths taken: " + ", ".join(f"{name} {count:,}" for name, count in rare.items()),
        "checked at once, wherever it would break:",
        *(f"  {promise}" for promise in AT_ONCE),
        "checked in every world when it has healed and drained:",
        *(
            f"  {(inspect.getdoc(check) or check.__name__).partition(_PARAGRAPH)[0]}"
            for check in CHECKS
        ),
    ]
    if summary["never_fired"]:
        lines.append(f"never fired: {', '.join(summary['never_fired'])}")
    held = "every invariant held" if not summary["violations"] else "INVARIANTS BROKEN"
    lines.append(f"{held}: {summary['violations']} of {summary['seeds']} seeds failed")
    return "\n".join(lines)


def _commit() -> str:
    """The commit of the code that runs, or its version where it is not a checkout."""
    git = shutil.which("git")
    if git is None:
        return __version__
    done = subprocess.run(
        [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or __version__
