"""Refusals of the Open Inference Protocol: a status and one sentence."""

from http import HTTPStatus

from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.http import Problem


class OipError(RemoteError):
    """A request is answered with this status and `{"error": message}`.

    `retry_after_s` becomes the header of that name, `allow` (for 405) the methods that there are.
    """

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        retry_after_s: float | None = None,
        allow: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s
        self.allow = allow

    @property
    def problem(self) -> Problem:
        """The same, as the rest of the API says it."""
        return Problem(
            code=self.status.phrase.lower().replace(" ", "_"),
            message=self.message,
            status=int(self.status),
            retry_after_s=self.retry_after_s,
        )


def bad(message: str) -> OipError:
    """400: the request is wrong."""
    return OipError(HTTPStatus.BAD_REQUEST, message)


def refused(problem: Problem) -> OipError:
    """What the rest of the API says as a `Problem`."""
    status = HTTPStatus(problem.status)
    return OipError(status, problem.message, retry_after_s=problem.retry_after_s)


def not_allowed(what: str, allow: str) -> OipError:
    """405: `what` takes other methods."""
    return OipError(HTTPStatus.METHOD_NOT_ALLOWED, f"{what} takes {allow}", allow=allow)
