"""The form of a refusal: each family of routes has its clients' own.

The Open Inference Protocol's clients read `{"error": "<text>"}`, OpenAI's `{"error": {...}}`;
everybody else gets a `Problem`. Which one is decided by the path, so that a refusal before any
route (a wrong key, a quota) can be read by whom it is for.
"""

import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.wire import JSON, MSGPACK, Answer, encode_body, names_msgpack

_OPENAI_PATHS: Final = (
    "/v1/files",
    "/v1/batches",
    "/v1/embeddings",
    "/v1/chat/",
    "/v1/completions",
)
_TYPES: Final = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_RETRY_AFTER_S: Final = {HTTPStatus.TOO_MANY_REQUESTS: 1, HTTPStatus.SERVICE_UNAVAILABLE: 1}
_SERVER_ERRORS: Final = 500


def is_openai(path: str) -> bool:
    """Whether OpenAI's clients ask there."""
    return path.startswith(_OPENAI_PATHS)


def openai_error(problem: Problem) -> dict[str, object]:
    """A refusal as OpenAI's clients read it."""
    default = "server_error" if problem.status >= _SERVER_ERRORS else "invalid_request_error"
    message = problem.message if problem.limit is None else f"{problem.message} ({problem.limit})"
    return {
        "error": {
            "message": message,
            "type": _TYPES.get(HTTPStatus(problem.status), default),
            "param": problem.field,
            "code": problem.code,
        }
    }


def refusal_body(problem: Problem, path: str, media_type: str = JSON) -> tuple[bytes, str]:
    """The body of a refusal and its media type, in the form of the path's family."""
    if is_openai(path):
        return encode_body(openai_error(problem), JSON), JSON
    if path.startswith("/v2"):
        return encode_body({"error": problem.message}, JSON), JSON
    return encode_body(problem, media_type), media_type


def refusal_headers(problem: Problem) -> dict[str, str]:
    """What a refusal's headers say: when to ask again, and how to say who one is."""
    headers: dict[str, str] = {}
    retry_after_s = problem.retry_after_s
    if retry_after_s is None:
        retry_after_s = _RETRY_AFTER_S.get(HTTPStatus(problem.status))
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def refuse(
    problem: Problem, path: str, headers: Iterable[tuple[bytes, bytes]], **more: str
) -> Answer:
    """A refusal before any route; `headers` are the request's, `more` are the answer's."""
    accepts_msgpack = any(
        name == b"accept" and names_msgpack(value.decode("latin-1")) for name, value in headers
    )
    body, media_type = refusal_body(problem, path, MSGPACK if accepts_msgpack else JSON)
    return Answer(body, media_type, problem.status, **refusal_headers(problem), **more)
