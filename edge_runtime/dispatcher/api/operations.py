"""The table of operations: method, path, handler, parameters and bodies.

Both the application's routes and the OpenAPI document are made from it, so neither can know an
operation that the other does not. `operations_of_others` has those of other conventions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edge_runtime.contract import http, limits
from edge_runtime.contract.messages import JobStatus, ResultEntry
from edge_runtime.contract.reasons import JobState
from edge_runtime.dispatcher.api.door import DEFAULT_TENANT, TENANT_HEADER
from edge_runtime.dispatcher.api.queries import ALL_TENANTS, PAGE_DEFAULT

Schema = dict[str, Any]

_STATES: Final = [state.value for state in JobState if state is not JobState.UNKNOWN]
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_FLAG: Final[Schema] = {"type": "boolean", "default": False}
_ID: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_SCOPES: Final[Schema] = {"type": "string", "pattern": r"^(\*|[A-Za-z0-9_-]{1,64})$"}
_BYTES: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter or header."""

    name: str
    schema: Schema
    description: str
    place: str = "query"
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `path` is as OpenAPI writes it; `handler` names a method of `Routes`, or of a part of it
    (`accounts.usage`).

    `answers` maps a status to its body's type: a struct, a list of one, bytes, or None where the
    answer has no body. `stream` lists what the elements of a streamed 200 may be. `problems` are
    the refusals that are this operation's own. `is_json` bodies have no MessagePack form; `sends`
    is what OpenAPI says of a body that is none of both; `also_answers` are other media types of
    the same 200.
    """

    method: str
    path: str
    handler: str
    summary: str
    answers: dict[int, Any]
    parameters: Sequence[Parameter] = ()
    body: Any = None
    problems: Sequence[int] = ()
    stream: Sequence[Any] = ()
    tags: Sequence[str] = field(default=("jobs",))
    refusal: Any = http.Problem
    is_json: bool = False
    sends: dict[str, Any] | None = None
    also_answers: Sequence[str] = ()


_TENANT = Parameter(
    TENANT_HEADER,
    {**_ID, "default": DEFAULT_TENANT},
    "Whose jobs. With accounts it is the key's tenant, and only an operator may name another.",
    "header",
)
_SCOPE = Parameter(
    TENANT_HEADER,
    {**_SCOPES, "default": DEFAULT_TENANT},
    f"Whose jobs; `{ALL_TENANTS}` is the operator, who sees all.",
    "header",
)
_OPERATOR_SCOPE = Parameter(TENANT_HEADER, _SCOPES, "Whose; without it, all tenants'.", "header")
_LIMIT = Parameter(
    "limit",
    {"type": "integer", "minimum": 0, "maximum": limits.HTTP_PAGE_MAX, "default": PAGE_DEFAULT},
    "How many elements at most.",
)
_AFTER = Parameter("after", _COUNT, "How many to skip.")
_FOLLOW = Parameter("follow", _FLAG, "Go on with what comes; heartbeats every 15 s.")

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path="/v1/jobs",
        handler="submit",
        summary="Submit a job; answered after its durable commit",
        parameters=(_TENANT,),
        body=http.JobRequest,
        answers={201: JobStatus, 200: JobStatus},
        problems=(400, 404, 409, 413, 415, 422, 429, 503),
    ),
    Operation(
        method="POST",
        path="/v1/jobs/batch",
        handler="submit_batch",
        summary=f"Submit up to {limits.JOBS_PER_REQUEST_MAX} jobs; each is answered by itself",
        parameters=(_TENANT,),
        body=http.JobsRequest,
        answers={200: http.JobsAnswer},
        problems=(400, 413, 415, 422, 503),
    ),
    Operation(
        method="GET",
        path="/v1/jobs",
        handler="jobs",
        summary="List jobs, newest first",
        parameters=(
            _SCOPE,
            Parameter("state", {"enum": _STATES}, "Only jobs in this state."),
            _LIMIT,
            Parameter("before", _ID, "Only jobs older than this one."),
        ),
        answers={200: list[JobStatus]},
        problems=(422,),
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job}",
        handler="job",
        summary="A job's state and progress",
        parameters=(_SCOPE,),
        answers={200: JobStatus},
        problems=(404,),
    ),
    Operation(
        method="DELETE",
        path="/v1/jobs/{job}",
        handler="delete",
        summary="Forget a job and its results; an open one is cancelled first",
        parameters=(_SCOPE,),
        answers={204: None},
        problems=(404,),
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job}/cancel",
        handler="cancel",
        summary="Cancel a job; of a cancel and a result the first commit wins",
        parameters=(_SCOPE,),
        answers={200: JobStatus},
        problems=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job}/results",
        handler="results",
        summary="Stream a job's results after a cursor, in order of commit",
        parameters=(
            _SCOPE,
            Parameter("cursor", _COUNT, "The cursor of the last result that is known."),
            _FOLLOW,
        ),
        answers={200: None},
        stream=(ResultEntry, http.StreamEnd, http.StreamProblem),
        problems=(404, 422, 503),
        tags=("results",),
    ),
    Operation(
        method="GET",
        path="/v1/results",
        handler="feed",
        summary="Stream all results of a tenant after a position; header Feed-Position: the start",
        parameters=(
            _TENANT,
            Parameter("position", _COUNT, "The last known position; without it, from now on."),
            _FOLLOW,
        ),
        answers={200: None},
        stream=(http.FeedEntry, http.StreamProblem),
        problems=(422, 503),
        tags=("results",),
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job}/why",
        handler="why",
        summary="Why a job is waiting",
        parameters=(_SCOPE,),
        answers={200: http.Explanation},
        problems=(404,),
    ),
    Operation(
        method="GET",
        path="/v1/jobs/{job}/attempts",
        handler="job_attempts",
        summary="A job's attempts in order of offer",
        parameters=(_SCOPE, _LIMIT, _AFTER),
        answers={200: list[http.AttemptView]},
        problems=(404, 422),
    ),
    Operation(
        method="POST",
        path="/v1/jobs/{job}/requeue",
        handler="requeue",
        summary="Run failed items again; without items, all of the job's",
        parameters=(_SCOPE,),
        body=http.Requeue,
        answers={200: http.Requeued},
        problems=(400, 404, 409, 413, 422),
    ),
    Operation(
        method="GET",
        path="/v1/attempts",
        handler="attempts",
        summary="Attempts of all jobs in order of offer",
        parameters=(_OPERATOR_SCOPE, _LIMIT, _AFTER),
        answers={200: list[http.AttemptView]},
        problems=(422,),
        tags=("operator",),
    ),
    Operation(
        method="GET",
        path="/v1/fleet",
        handler="fleet",
        summary="Cars, and counts by availability and hold reason",
        parameters=(_LIMIT, Parameter("offset", _COUNT, "How many cars to skip.")),
        answers={200: http.FleetView},
        problems=(422,),
        tags=("operator",),
    ),
    Operation(
        method="POST",
        path="/v1/fleet/{vehicle}/quarantine",
        handler="quarantine",
        summary="Give a car no work, or work again",
        body=http.Quarantine,
        answers={204: None},
        problems=(400, 404, 422),
        tags=("operator",),
    ),
    Operation(
        method="GET",
        path="/v1/dead-letters",
        handler="dead_letters",
        summary="Items that failed for good, newest first",
        parameters=(_OPERATOR_SCOPE, Parameter("job", _ID, "Only this job's."), _LIMIT),
        answers={200: list[http.DeadLetter]},
        problems=(422,),
        tags=("operator",),
    ),
    Operation(
        method="POST",
        path="/v1/store/backup",
        handler="backup",
        summary="Back the store up, online, to a new file in the dispatcher's backup folder",
        body=http.Backup,
        answers={201: http.BackupDone},
        problems=(400, 409, 422),
        tags=("operator",),
    ),
    Operation(
        method="POST",
        path="/v1/accounts/keys",
        handler="accounts.create_key",
        summary="Make an API key; it is shown this once",
        body=http.NewKey,
        answers={201: http.KeyMade},
        problems=(400, 403, 409, 422),
        tags=("accounts",),
    ),
    Operation(
        method="GET",
        path="/v1/accounts/keys",
        handler="accounts.keys",
        summary="API keys by their prefixes",
        parameters=(_OPERATOR_SCOPE,),
        answers={200: list[http.KeyView]},
        problems=(403, 422),
        tags=("accounts",),
    ),
    Operation(
        method="DELETE",
        path="/v1/accounts/keys/{prefix}",
        handler="accounts.revoke_key",
        summary="Revoke an API key, at once and for good",
        answers={200: http.KeyView},
        problems=(403, 404, 409),
        tags=("accounts",),
    ),
    Operation(
        method="GET",
        path="/v1/accounts/usage",
        handler="accounts.usage",
        summary="Quotas, and what is used of them now",
        parameters=(_OPERATOR_SCOPE,),
        answers={200: list[http.TenantUsage]},
        problems=(403, 422),
        tags=("accounts",),
    ),
    Operation(
        method="PUT",
        path="/v1/accounts/{tenant}/quota",
        handler="accounts.put_quota",
        summary="A tenant's quota from now on; of `default-quota` that of all without their own",
        body=http.Quota,
        answers={200: http.TenantUsage},
        problems=(400, 403, 404, 422),
        tags=("accounts",),
    ),
    Operation(
        method="GET",
        path="/v1/packages",
        handler="models",
        summary="Packages that jobs may name",
        answers={200: list[http.ModelView]},
        tags=("models",),
    ),
    Operation(
        method="GET",
        path="/v1/models/{digest}/manifest",
        handler="manifest",
        summary="A package's canonical manifest: the bytes that its digest is of",
        answers={200: dict[str, Any]},
        is_json=True,
        problems=(404,),
        tags=("models",),
    ),
    Operation(
        method="GET",
        path="/v1/models/{digest}/files/{path}",
        handler="file",
        summary="A file that the manifest names, or one range of it",
        parameters=(
            Parameter("Range", {"type": "string"}, "One range of bytes.", "header"),
            Parameter("If-Range", {"type": "string"}, "Only of this ETag.", "header"),
        ),
        answers={200: bytes, 206: bytes},
        problems=(404, 416),
        tags=("models",),
    ),
    Operation(
        method="GET",
        path="/v1/metadata/{name}",
        handler="metadata",
        summary="Signed metadata of the model repository (TUF), such as timestamp.json",
        answers={200: dict[str, Any]},
        is_json=True,
        problems=(404,),
        tags=("models",),
    ),
    Operation(
        method="GET",
        path="/v1/health",
        handler="health",
        summary="Readiness and counters",
        answers={200: http.Health},
        tags=("health",),
    ),
    Operation(
        method="GET",
        path="/readyz",
        handler="readyz",
        summary="As /v1/health, 503 where not ready",
        answers={200: http.Health, 503: http.Health},
        tags=("health",),
    ),
    Operation(
        method="GET",
        path="/livez",
        handler="livez",
        summary="The event loop turns",
        answers={204: None},
        tags=("health",),
    ),
    Operation(
        method="GET",
        path="/healthz",
        handler="healthz",
        summary="As /livez, by the name that others ask for",
        answers={204: None},
        tags=("health",),
    ),
)
