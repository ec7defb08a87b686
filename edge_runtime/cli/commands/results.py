"""`edge-runtime results`: a job's results from a cursor; and how a result looks in print."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from edge_runtime.cli.asking import PATIENT_S, ask, print_json
from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import (
    DEFAULT_TENANT,
    DEFAULT_URL,
    AsJson,
    DispatcherUrl,
    Tenant,
)
from edge_runtime.cli.outputs import describe_output

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient, ItemResult


def results(
    job: Annotated[str, Parameter(help="The job's id.")],
    /,
    *,
    cursor: Annotated[int, Parameter(help="Only results after this one; 0 is all.")] = 0,
    follow: Annotated[
        bool, Parameter(negative="", help="Go on with what comes until the job ends.")
    ] = False,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """Print a job's results in order of their commit; exit code 1 where an item failed.

    Each line begins with the cursor to go on from.
    """

    async def question(client: "EdgeClient") -> int:
        handle = client.handle(job, cursor=cursor)
        last_cursor = None if follow else (await handle.status()).last_cursor
        code = ExitCode.DONE
        if last_cursor is not None and last_cursor <= cursor:
            return code
        async for result in handle:
            print_result(result, as_json=as_json)
            if not result.ok:
                code = ExitCode.FAILED
            if last_cursor is not None and result.cursor >= last_cursor:
                break
        return code

    return ask(url, tenant, question, patience_s=PATIENT_S)


def print_result(result: "ItemResult", *, as_json: bool, name: str | None = None) -> None:
    """One result on stdout: a line for people, or one JSON object with everything."""
    if as_json:
        print_json(_json_form(result, name))
        return
    label = name or f"item {result.item}"
    if result.error is not None:
        error = result.error
        print(f"{result.cursor}  {label}  failed: {error.code.value} {error.message}", flush=True)
        return
    print(f"{result.cursor}  {label}  {describe_output(result.output)}", flush=True)


def _json_form(result: "ItemResult", name: str | None) -> dict[str, Any]:
    """As the HTTP API writes a result, with the input's name beside it."""
    form: dict[str, Any] = {"cursor": result.cursor, "item": result.item}
    if name is not None:
        form["name"] = name
    form |= {"at_ms": result.at_ms, "vehicle": result.vehicle}
    form |= {"output": result.output} if result.ok else {"error": result.error}
    if result.ref is not None:
        form["ref"] = result.ref
    return form
