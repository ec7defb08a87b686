"""Every refusal of the HTTP API as a `Problem`: codes, statuses, fields.

`code` is for programs and never changes its meaning; `message` is for people. Where a value was
wrong, `field` is its path in the body (`items[3].data`) or the name of the header or query
parameter; where a bound was passed, `limit` names the constant and its value.

Deliberately absent: any text of an unexpected exception. It goes to the log, not to the caller.
"""

import re
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.response import Response

from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.forms import refusal_body, refusal_headers
from edge_runtime.dispatcher.api.wire import media_type_for
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.storage import StoreBusy, StoreFull

_log = structlog.get_logger(__name__)

_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`")
_TOO_LONG = re.compile(r"^Expected `array` of length <= (?P<limit>\d+)")
_ROUTING_CODES = {
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
}


class WrongMethod(Refusal):
    """405; `allow` is the header that goes with it (RFC 9110, 15.5.6): what the path does take."""

    def __init__(self, allow: str) -> None:
        problem = Problem(
            code="method_not_allowed",
            message=f"this path takes {allow}",
            status=int(HTTPStatus.METHOD_NOT_ALLOWED),
        )
        super().__init__(problem)
        self.allow = allow


def named_limit(name: str, value: float) -> str:
    """A bound as a `Problem` names it: `JOB_MAX_ITEMS=1000000`."""
    return f"{name}={value}"


def too_large(field: str, message: str, name: str, value: float) -> Problem:
    """413 for a value over the bound `name`."""
    return Problem(
        code="too_large",
        message=message,
        status=int(HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        field=field,
        limit=named_limit(name, value),
    )


def unprocessable(field: str | None, message: str, code: str = "invalid_field") -> Problem:
    """422 for a value that is of the wrong type or outside its range."""
    return Problem(
        code=code, message=message, status=int(HTTPStatus.UNPROCESSABLE_ENTITY), field=field
    )


def from_validation(error: msgspec.ValidationError, list_limits: dict[str, str]) -> Problem:
    """A body of the right syntax and the wrong content: 422, or 413 for a list that is too long.

    `list_limits` maps the name of a bounded list field to the name of its bound.
    """
    text = str(error)
    found = _PATH.search(text)
    path = found["path"] if found else None
    what = text[: found.start()] if found else text
    if missing := _MISSING.match(what):
        name = missing["name"]
        return unprocessable(f"{path}.{name}" if path else name, what, "missing_field")
    if path and (too_long := _TOO_LONG.match(what)):
        bound = list_limits.get(path.rpartition(".")[2])
        if bound:
            value = int(too_long["limit"])
            return too_large(path, f"{path} holds more than {value} elements", bound, value)
    code = "invalid_base64" if what.startswith("Invalid base64") else "invalid_field"
    return unprocessable(path, what, code)


def duplicate_header(name: str) -> Problem:
    """400: of two headers that say the same thing, neither is believed."""
    return Problem(
        code="duplicate_header",
        message=f"the header {name} is there more than once",
        status=int(HTTPStatus.BAD_REQUEST),
        field=name,
    )


def malformed(error: Exception) -> Problem:
    """400 for bytes that are not JSON or MessagePack at all."""
    return Problem(code="malformed", message=str(error)[:200], status=int(HTTPStatus.BAD_REQUEST))


def problem_of(error: Exception) -> Problem:
    """The `Problem` that answers for any exception; the unexpected ones say nothing of it."""
    match error:
        case Refusal():
            return error.problem
        case HTTPException():
            status = HTTPStatus(error.status_code)
            code = _ROUTING_CODES.get(status, "http_error")
            return Problem(code=code, message=status.phrase, status=int(status))
        case StoreFull() | StoreBusy():
            # Nothing of the request was done: asked again when there is room, it will be.
            return Problem(
                code="store_unavailable",
                message=f"the store could not take this: {error}",
                status=int(HTTPStatus.INSUFFICIENT_STORAGE),
            )
        case _:
            return Problem(
                code="internal",
                message="the dispatcher failed on this request; its log says why",
                status=int(HTTPStatus.INTERNAL_SERVER_ERROR),
            )


def answer_exception(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler: any exception becomes a `Problem` in the caller's format."""
    problem = problem_of(error)
    if problem.code == "internal":
        _log.error("http_request_failed", path=request.url.path, exc_info=error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    headers |= refusal_headers(problem)
    body, media_type = refusal_body(problem, request.url.path, media_type_for(request))
    return Response(
        body,
        status_code=problem.status,
        media_type=media_type,
        headers=headers,
    )
