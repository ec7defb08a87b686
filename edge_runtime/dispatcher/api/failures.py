"""Interactive requests without a result, as HTTP says it: one table for every protocol.

What differs between protocols is only the form of the body (`api.forms`, `oip`).
"""

from http import HTTPStatus
from typing import Final, assert_never

from edge_runtime.contract.http import Problem
from edge_runtime.contract.reasons import ItemError
from edge_runtime.dispatcher.core.interactive_parts import Failed, Why

_MS_PER_S: Final = 1000
_NOT_THE_INPUTS_FAULT: Final = {
    ItemError.DEADLINE_PASSED: HTTPStatus.GATEWAY_TIMEOUT,
    ItemError.RESULT_TOO_LARGE: HTTPStatus.INTERNAL_SERVER_ERROR,
    ItemError.TOO_MANY_ATTEMPTS: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Of the codes that no other car could better, those that do not blame the request."""


def problem_of_failed(failed: Failed, field: str | None = None) -> Problem:
    """Status, code and text of a request that failed; `field` is named where its item is at fault.

    504 `deadline_passed`; 503 `no_car` or `overloaded`, with when to ask again; of an item its own
    code, with 400 where the input is to blame and 500 where the cars that tried are.
    """
    match failed.why:
        case Why.DEADLINE:
            status, code = HTTPStatus.GATEWAY_TIMEOUT, ItemError.DEADLINE_PASSED.value
        case Why.NO_CAR | Why.OVERLOADED:
            status, code = HTTPStatus.SERVICE_UNAVAILABLE, failed.why.value
        case Why.ITEM:
            said = failed.code or ItemError.UNKNOWN
            blames_input = HTTPStatus.BAD_REQUEST if said.is_final else None
            status = _NOT_THE_INPUTS_FAULT.get(
                said, blames_input or HTTPStatus.INTERNAL_SERVER_ERROR
            )
            code = said.value
        case _:
            assert_never(failed.why)
    return Problem(
        code=code,
        message=failed.message,
        status=int(status),
        field=field if status == HTTPStatus.BAD_REQUEST else None,
        retry_after_s=failed.retry_after_ms / _MS_PER_S if failed.retry_after_ms else None,
    )
