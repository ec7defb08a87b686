"""Who may look at the dashboard's data and at `/metrics`: one function, asked for every request.

What it guards shows all tenants' jobs and every car, so it is the operator's. The pages themselves
(HTML, CSS, JavaScript) hold nothing and are given to whoever reaches the server.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.api.door import AUTHORIZATION, caller_in

Access = Callable[[Any], Problem | None]
"""Asked with a request's ASGI scope; a `Problem` refuses it."""


def operators_only(scope: Any) -> Problem | None:
    """An operator's key; whoever reaches the server where there are no accounts."""
    caller = caller_in(scope)
    if caller is None or caller.is_operator:
        return None
    return Problem(
        code="forbidden",
        message="this shows every tenant's jobs: it takes an operator's key",
        status=int(HTTPStatus.FORBIDDEN),
        field=AUTHORIZATION,
    )
