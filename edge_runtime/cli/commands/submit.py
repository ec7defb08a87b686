"""`edge-runtime submit`: files or lines of text in, results as they come."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edge_runtime.cli.asking import PATIENT_S, ask
from edge_runtime.cli.commands.results import print_result
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import (
    DEFAULT_TENANT,
    DEFAULT_URL,
    AsJson,
    DispatcherUrl,
    Tenant,
    readable_file,
)
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient, JobHandle


def submit(
    *files: Annotated[Path, Parameter(help="Inputs, one item each, as they are.")],
    model: Annotated[str, Parameter(help="A package: its name, name@version or digest.")],
    text_lines: Annotated[
        Path | None, Parameter(help="A file whose lines are one text item each.")
    ] = None,
    parameters: Annotated[
        str | None, Parameter(help='The task\'s parameters, a JSON object: {"threshold": 0.5}.')
    ] = None,
    deadline: Annotated[
        float, Parameter(help="The job expires after this time, seconds.")
    ] = limits.JOB_DEADLINE_DEFAULT_S,
    key: Annotated[
        str | None, Parameter(help="Idempotency key: the same key returns the same job.")
    ] = None,
    priority: Annotated[int, Parameter(help="0 to 9; higher goes first.")] = 5,
    detach: Annotated[
        bool, Parameter(negative="", help="Print the job's id and do not wait for results.")
    ] = False,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """Submit a job and print each result as it comes; exit code 1 where an item failed.

    Progress goes to stderr. It survives a restart of the dispatcher.
    """
    names, items = _gather(files, text_lines)
    fields = _parse_parameters(parameters)
    if not 0 < deadline <= limits.JOB_DEADLINE_MAX_S:
        raise ConfigError(
            f"--deadline must be over 0 and at most {limits.JOB_DEADLINE_MAX_S} s, not {deadline:g}"
        )

    async def question(client: "EdgeClient") -> int:
        handle = client.submit(
            model,
            items,
            parameters=fields,
            idempotency_key=key,
            deadline_s=deadline,
            priority=priority,
        )
        if detach:
            print((await handle).job)
            return ExitCode.DONE
        return await _follow(handle, names, as_json=as_json)

    return ask(url, tenant, question, patience_s=PATIENT_S)


def _gather(files: tuple[Path, ...], text_lines: Path | None) -> tuple[list[str], list[Path | str]]:
    """Names for people, and the items. Raises `ConfigError` where there is none."""
    names = [path.name for path in files]
    items: list[Path | str] = [readable_file("FILES", path) for path in files]
    if text_lines is not None:
        try:
            text = readable_file("--text-lines", text_lines).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"--text-lines {text_lines}: not UTF-8: {error}") from None
        lines = [line for line in text.splitlines() if line.strip()]
        names += lines
        items += lines
    if not items:
        raise ConfigError("nothing to submit: name files, or --text-lines FILE")
    return names, items


def _parse_parameters(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text) if text else {}
    except ValueError as error:
        raise ConfigError(f"--parameters is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"--parameters must be a JSON object, not {text}")
    return fields


async def _follow(handle: "JobHandle", names: list[str], *, as_json: bool) -> int:
    """Print results under a progress bar. The exit code."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    status = await handle
    console.print(f"job {status.job}", highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    failed = 0
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task(status.model, total=len(names))
        async for result in handle:
            print_result(result, as_json=as_json, name=names[result.item][:60])
            failed += not result.ok
            progress.advance(bar)
    status = await handle
    if failed or status.done != status.items:
        console.print(
            f"job {status.job} is {status.state.value}: {status.done} of {status.items} done, "
            f"{status.failed} failed",
            highlight=False,
            markup=False,
        )
        return ExitCode.FAILED
    return ExitCode.DONE
