"""`edge-runtime jobs`: what a requester and an operator ask about jobs."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from edge_runtime.cli.asking import ask, print_json, utc
from edge_runtime.cli.options import (
    DEFAULT_TENANT,
    DEFAULT_URL,
    AsJson,
    DispatcherUrl,
    Tenant,
)
from edge_runtime.contract.reasons import JobState

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient
    from edge_runtime.contract.messages import JobStatus

Job = Annotated[str, Parameter(help="The job's id.")]
Limit = Annotated[int, Parameter(help="How many at most.")]


def list_jobs(
    *,
    state: Annotated[
        Literal["accepted", "running", "done", "cancelled", "expired"] | None,
        Parameter(help="Only jobs in this state."),
    ] = None,
    limit: Limit = 50,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """List jobs, newest first: id, state, progress, model, time of submission."""

    async def question(client: "EdgeClient") -> None:
        wanted = JobState(state) if state else None
        for status in await client.jobs(state=wanted, limit=limit):
            _print_status(status, as_json=as_json)

    return ask(url, tenant, question)


def status(
    job: Job,
    /,
    *,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """Print one job's state and progress."""

    async def question(client: "EdgeClient") -> None:
        _print_status(await client.status(job), as_json=as_json)

    return ask(url, tenant, question)


def _print_status(status: "JobStatus", *, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    failed = f", {status.failed} failed" if status.failed else ""
    print(
        f"{status.job}  {status.state.value:<9}  {status.done}/{status.items}{failed}  "
        f"{status.model[:16]}  submitted {utc(status.submitted_ms)}"
    )


def why(
    job: Job,
    /,
    *,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """Say why a job is waiting, from the data that placement decided on."""

    async def question(client: "EdgeClient") -> None:
        why = await client.why(job)
        if as_json:
            print_json(why)
            return
        print(why.summary)
        print(f"items: {why.items_open} open, {why.items_in_flight} on cars")
        print(f"cars: {why.cars_eligible} of {why.cars_total} could take it now")
        for cause, count in sorted(why.cars_excluded.items(), key=lambda pair: -pair[1]):
            print(f"  {count:>8}  {cause}")

    return ask(url, tenant, question)


def cancel(
    job: Job,
    /,
    *,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """Cancel a job; what is finished stays."""

    async def question(client: "EdgeClient") -> None:
        _print_status(await client.cancel(job), as_json=as_json)

    return ask(url, tenant, question)


def delete(
    job: Job, /, *, url: DispatcherUrl = DEFAULT_URL, tenant: Tenant = DEFAULT_TENANT
) -> int:
    """Forget a job and its results; one that runs is cancelled first."""

    async def question(client: "EdgeClient") -> None:
        await client.delete(job)

    return ask(url, tenant, question)


def dead_letters(
    job: Annotated[str | None, Parameter(help="Only this job's; none: all jobs.")] = None,
    /,
    *,
    limit: Limit = 100,
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> int:
    """List items that failed for good, newest first."""

    async def question(client: "EdgeClient") -> None:
        for letter in await client.dead_letters(job, limit=limit):
            if as_json:
                print_json(letter)
                continue
            error = letter.error
            print(
                f"{letter.job} {letter.item}  {utc(letter.at_ms)}  {error.code.value} after "
                f"{error.attempts} cars  {error.message}"
            )

    return ask(url, tenant, question)


def requeue(
    job: Job,
    /,
    *items: Annotated[int, Parameter(help="Items to run again; none: all that failed.")],
    url: DispatcherUrl = DEFAULT_URL,
    tenant: Tenant = DEFAULT_TENANT,
) -> int:
    """Run a job's dead letters again; prints how many."""

    async def question(client: "EdgeClient") -> None:
        print(await client.requeue(job, items))

    return ask(url, tenant, question)
