"""Query parameters, and whom a request speaks for: typed, or refused with the field's name."""

from http import HTTPStatus
from typing import Any, Final

from litestar.connection import Request

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import JobState
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.api.door import AUTHORIZATION, caller_in, tenant_in, tenant_named
from edge_runtime.dispatcher.api.problems import named_limit
from edge_runtime.dispatcher.front import Refusal, refusal

ALL_TENANTS: Final = "*"
PAGE_DEFAULT: Final = 100

_Request = Request[Any, Any, Any]


def _wrong(field: str, message: str, limit: str | None = None) -> Refusal:
    return refusal(
        HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", message, field=field, limit=limit
    )


def tenant_of(request: _Request) -> str:
    """The one tenant that a request speaks for (`door.tenant_in`); `Refusal` otherwise."""
    return tenant_in(request.scope)


def scope_of(request: _Request) -> str | None:
    """The tenant whose jobs a request may touch; None (`X-Tenant: *`) is the operator: all."""
    if tenant_named(request.scope) == ALL_TENANTS:
        require_operator(request)
        return None
    return tenant_of(request)


def operator_scope_of(request: _Request) -> str | None:
    """As `scope_of`, for the operator's routes: without the header, all that the key may see."""
    caller = caller_in(request.scope)
    is_tenant = caller is not None and not caller.is_operator
    if is_tenant or tenant_named(request.scope) is not None:
        return scope_of(request)
    return None


def require_operator(request: _Request) -> None:
    """`Refusal` 403 for a tenant's key; without accounts everybody is an operator."""
    caller = caller_in(request.scope)
    if caller is not None and not caller.is_operator:
        message = "only an operator's key may do this"
        raise refusal(HTTPStatus.FORBIDDEN, "forbidden", message, field=AUTHORIZATION)


def integer(request: _Request, name: str, default: int, most: int = limits.HTTP_COUNT_MAX) -> int:
    """A number from 0 to `most`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(limits.HTTP_COUNT_MAX)):
        raise _wrong(name, f"{name} is a whole number, 0 or more")
    value = int(text)
    if value > most:
        raise _wrong(name, f"{name} is at most {most}", named_limit(name, most))
    return value


def optional_integer(request: _Request, name: str) -> int | None:
    """As `integer`, None where absent."""
    return integer(request, name, 0) if name in request.query_params else None


def page_limit(request: _Request) -> int:
    """How many elements a list holds at most."""
    return integer(request, "limit", PAGE_DEFAULT, limits.HTTP_PAGE_MAX)


_FLAGS: Final = {"true": True, "1": True, "": True, "false": False, "0": False}


def flag(request: _Request, name: str) -> bool:
    """`?follow`, `?follow=true` or `=1`; absent is False."""
    text = request.query_params.get(name)
    if text is None:
        return False
    value = _FLAGS.get(text.lower())
    if value is None:
        raise _wrong(name, f"{name} is true or false")
    return value


def identifier(request: _Request, name: str) -> str | None:
    """An id such as a job's, None where absent."""
    value = request.query_params.get(name)
    if value is not None and not ID_PATTERN.fullmatch(value):
        raise _wrong(name, f"{name} is 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def job_state(request: _Request) -> str | None:
    """A job's state by its name, None where absent."""
    value = request.query_params.get("state")
    known = [state.value for state in JobState if state is not JobState.UNKNOWN]
    if value is not None and value not in known:
        raise _wrong("state", f"state is one of {', '.join(known)}")
    return value
