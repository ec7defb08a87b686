"""Refusals of the Open Inference Protocol: a status and one sentence."""

from http import HTTPStatus

from edge_runtime.contract.errors import RemoteError


class OipError(RemoteError):
    """A request is answered with this status and `{"error": message}`.

    `retry_after_s` becomes the header of that name.
    """

    def __init__(
        self, status: HTTPStatus, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after_s = retry_after_s


def bad(message: str) -> OipError:
    """400: the request is wrong."""
    return OipError(HTTPStatus.BAD_REQUEST, message)
