"""What the HTTP API may ask of the dispatcher: one protocol, implemented by the service.

Every method answers from the dispatcher's own loop. Refusals are `Refusal` with an HTTP status;
nothing here waits longer than `SUBMIT_TIMEOUT_S` except the two streams.
"""

from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Protocol

from edge_runtime.contract.errors import EdgeError
from edge_runtime.contract.http import (
    AttemptView,
    DeadLetter,
    Explanation,
    FeedEntry,
    FleetView,
    Health,
    JobRequest,
    ModelView,
    Problem,
    Submitted,
)
from edge_runtime.contract.messages import JobStatus, ResultEntry

SUBMIT_TIMEOUT_S = 10.0


class Refusal(EdgeError):  # noqa: N818 - named for what the dispatcher does
    """The dispatcher will not do what was asked; `problem` is the HTTP answer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refusal(
    status: HTTPStatus, code: str, message: str, field: str | None = None, limit: str | None = None
) -> Refusal:
    """A `Refusal` of its parts."""
    return Refusal(
        Problem(code=code, message=message, status=int(status), field=field, limit=limit)
    )


class Front(Protocol):
    """The dispatcher, as its front door sees it."""

    async def submit(self, tenant: str, jobs: Sequence[JobRequest]) -> list[Submitted]:
        """Accept jobs; returns after their durable commit, one answer a job in order."""
        ...

    async def jobs_by_key(self, tenant: str, keys: Sequence[str]) -> dict[str, str]:
        """A tenant's jobs by idempotency key; what is being accepted now is waited for.

        `Refusal` 503 where it is not confirmed in time.
        """
        ...

    async def job(self, tenant: str | None, job: str) -> JobStatus:
        """A job's status; `Refusal` 404 where unknown. `tenant` None is the operator."""
        ...

    async def jobs(
        self, tenant: str | None, *, state: str | None, limit: int, before: str | None
    ) -> list[JobStatus]:
        """Jobs, newest first; `before` is the id to page from."""
        ...

    async def cancel(self, tenant: str | None, job: str) -> JobStatus:
        """Cancel; the first commit of a cancel or a result wins. Idempotent."""
        ...

    async def delete(self, tenant: str | None, job: str) -> None:
        """Forget a job and its results; an open one is cancelled first."""
        ...

    def results(
        self, tenant: str | None, job: str, *, cursor: int, follow: bool
    ) -> AsyncIterator[Sequence[ResultEntry] | JobStatus]:
        """Pages of results after `cursor` in order of commit; with `follow`, until the job ends.

        The last element is the job's status. An empty page is a heartbeat (every 15 s).
        """
        ...

    def feed(
        self, tenant: str, *, position: int | None, follow: bool
    ) -> AsyncIterator[Sequence[FeedEntry]]:
        """A tenant's results over all jobs after `position` (None: from now on).

        The first element is always an empty page, sent when the subscription stands.
        """
        ...

    async def feed_position(self, tenant: str) -> int:
        """The newest position of the tenant's feed."""
        ...

    async def why(self, tenant: str | None, job: str) -> Explanation:
        """Why the job is waiting."""
        ...

    async def attempts(
        self, tenant: str | None, job: str | None, *, limit: int, after: int
    ) -> list[AttemptView]:
        """Attempts in order of offer, for timelines. `after` counts rows to skip."""
        ...

    async def fleet(self, *, limit: int, offset: int) -> FleetView:
        """Cars and counts."""
        ...

    async def quarantine(self, vehicle: str, *, on: bool) -> None:
        """Give a car no work, or give it work again; `Refusal` 404 where unknown."""
        ...

    async def dead_letters(
        self, tenant: str | None, job: str | None, *, limit: int
    ) -> list[DeadLetter]:
        """Items that failed for good, newest first."""
        ...

    async def requeue(self, tenant: str | None, job: str, items: Sequence[int]) -> int:
        """Run failed items again (all of them where `items` is empty); how many were requeued.

        Their failures are withdrawn: the job is running again and their new ends get new cursors.
        """
        ...

    async def models(self) -> list[ModelView]:
        """Packages that jobs may name."""
        ...

    def model_manifest(self, digest: str) -> bytes:
        """A package's canonical manifest; `Refusal` 404 where unknown."""
        ...

    def model_file(self, digest: str, path: str) -> Path:
        """A file of a package, only if its manifest names it; `Refusal` 404 otherwise."""
        ...

    def model_metadata(self, name: str) -> Path:
        """A file of the signed repository's metadata; `Refusal` 404 where there is none."""
        ...

    async def set_weight(self, tenant: str, weight: int) -> None:
        """A tenant's share of the fleet while others wait too."""
        ...

    async def backup(self, target: Path) -> int:
        """Online backup of the store to a new file; bytes written."""
        ...

    async def health(self) -> Health:
        """Readiness and counters."""
        ...
