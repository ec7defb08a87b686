"""What is wrong with a request in OpenAI's words, with its status."""

from http import HTTPStatus
from typing import Final

import structlog

from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.failures import problem_of_failed
from edge_runtime.dispatcher.api.oip.errors import OipError
from edge_runtime.dispatcher.api.openai.lines import Bad
from edge_runtime.dispatcher.api.problems import problem_of
from edge_runtime.dispatcher.interactive import InteractiveFailure

_STATUSES: Final = {
    "model_not_found": HTTPStatus.NOT_FOUND,
    "model_not_supported": HTTPStatus.NOT_FOUND,
    "invalid_output": HTTPStatus.BAD_GATEWAY,
}
_log = structlog.get_logger(__name__)


def openai_problem(error: Exception, path: str) -> Problem:
    """Any exception as its client is told; the unexpected ones go to the log.

    A `Bad` is 400, or as its code says: `invalid_output` is a car's fault, which answered what its
    task never gives.
    """
    match error:
        case Bad():
            status = _STATUSES.get(error.code, HTTPStatus.BAD_REQUEST)
            return Problem(
                code=error.code, message=error.message, status=int(status), field=error.param
            )
        case OipError():
            return error.problem
        case InteractiveFailure():
            return problem_of_failed(error.failed)
        case _:
            problem = problem_of(error)
            if problem.code == "internal":
                _log.error("openai_request_failed", path=path, exc_info=error)
            return problem
