"""Who a request comes from: the key in its headers, looked at before any route.

`Authorization: Bearer <key>` or `X-API-Key: <key>`. Without accounts everybody who reaches the
socket may do everything, under the tenant that `X-Tenant` names; that is why such a dispatcher
listens on loopback only. For whom a request is, every protocol asks `tenant_in`.

Of two headers that say the same thing, neither is believed: a proxy may have read the other one.

Cars have no key: what they fetch is signed or named by its hash. Probes of health have none.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.accounts import Accounts, Caller
from edge_runtime.dispatcher.accounts_quotas import Quotas
from edge_runtime.dispatcher.api.problems import duplicate_header, unprocessable
from edge_runtime.dispatcher.core.events import WeightSet
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.service import DispatcherService

_log = structlog.get_logger(__name__)

TENANT_HEADER: Final = "X-Tenant"
AUTHORIZATION: Final = "Authorization"
API_KEY_HEADER: Final = "X-API-Key"
DEFAULT_TENANT: Final = "default"

_CALLER: Final = "edge_runtime.caller"
"""Where a request's scope says who asks."""
_OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/openapi.json"})
_BEARER: Final = "bearer "
Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""


def caller_in(scope: Mapping[str, Any]) -> Caller | None:
    """Who asks; None where there are no accounts, and everybody may."""
    caller: Caller | None = scope.get(_CALLER)
    return caller


def tenant_named(scope: Mapping[str, Any]) -> str | None:
    """The tenant that a request's header names, if it does. Raises `Refusal` 400 for two."""
    return _only(scope["headers"], TENANT_HEADER)


def tenant_in(scope: Mapping[str, Any]) -> str:
    """The one tenant that a request speaks for; `Refusal` 400, 403 or 422 otherwise.

    With accounts it is the key's; an operator's key may name another one.
    """
    caller = caller_in(scope)
    tenant = tenant_named(scope)
    if tenant is None:
        return DEFAULT_TENANT if caller is None else caller.tenant
    if not ID_PATTERN.fullmatch(tenant):
        raise Refusal(unprocessable(TENANT_HEADER, "a tenant is 1 to 64 of A-Z a-z 0-9 _ -"))
    if caller is not None and not caller.is_operator and tenant != caller.tenant:
        message = f"this key is of tenant {caller.tenant!r}"
        raise refusal(HTTPStatus.FORBIDDEN, "forbidden", message, field=TENANT_HEADER)
    return tenant


def needs_no_key(path: str) -> bool:
    """Whether a path is for cars and probes, or a page that asks for the key itself."""
    if path in _OPEN_PATHS or path.startswith("/v1/metadata/"):
        return True
    if path.startswith("/objects/for-cars/"):
        return True  # a ticket in the path says what may be read, or put
    if path.startswith("/dashboard"):
        return not path.startswith("/dashboard/data/")  # the pages hold nothing
    is_package = path.startswith("/v1/models/")
    return is_package and (path.endswith("/manifest") or "/files/" in path)


class Door:
    """Lets requests in, or says why not."""

    def __init__(self, accounts: Accounts, quotas: Quotas, counters: Counter[str]) -> None:
        self.accounts = accounts
        self.quotas = quotas
        self.counters = counters

    def admit(self, scope: dict[str, Any]) -> Problem | None:
        """None, with the caller noted in `scope`; 401 without a right key, 429 if too fast."""
        if needs_no_key(scope["path"]):
            return None
        try:
            if self.accounts.in_force:
                caller = self._caller(scope["headers"])
                scope[_CALLER] = caller
                if caller.is_operator:
                    return None
                tenant = caller.tenant
            else:
                tenant = tenant_named(scope) or DEFAULT_TENANT
            self.quotas.ask(tenant)
        except Refusal as refused:
            return refused.problem
        return None

    def _caller(self, headers: Headers) -> Caller:
        """Whose key the headers have. Raises `Refusal` 400 or 401."""
        key = _key_in(headers)
        if not key:
            self.counters["requests_without_key"] += 1
            raise Refusal(_unauthorized(f"send {AUTHORIZATION}: Bearer <key>, or {API_KEY_HEADER}"))
        caller = self.accounts.caller(key) if len(key) <= limits.KEY_MAX_CHARS else None
        if caller is None:
            self.counters["requests_with_wrong_key"] += 1
            raise Refusal(_unauthorized("the key is not known, or was revoked"))
        return caller


def _only(headers: Headers, name: str) -> str | None:
    """The value of a header that may be there once. Raises `Refusal` 400 for two."""
    wanted = name.lower().encode()
    found = [value for key, value in headers if key == wanted]
    if len(found) > 1:
        raise Refusal(duplicate_header(name))
    return found[0].decode("latin-1") if found else None


def _key_in(headers: Headers) -> str:
    """The key as the headers have it, empty without. Raises `Refusal` 400."""
    said = _only(headers, AUTHORIZATION) or ""
    if said[: len(_BEARER)].lower() == _BEARER:
        return said[len(_BEARER) :].strip()
    return (_only(headers, API_KEY_HEADER) or "").strip()


def _unauthorized(message: str) -> Problem:
    return Problem(
        code="unauthorized",
        message=message,
        status=int(HTTPStatus.UNAUTHORIZED),
        field=AUTHORIZATION,
    )


async def open_door(
    service: DispatcherService, random_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> Door:
    """The accounts and quotas of a running dispatcher; says loudly where there are none."""
    accounts = Accounts(service.store, lambda: service.clock().utc_ms, random_bytes)
    quotas = Quotas(service.store, service.clock, service.counters)
    await accounts.open()
    await quotas.open()
    weights = [WeightSet(tenant=name, weight=weight) for name, weight in quotas.weights().items()]
    if weights:
        await service.commit(weights)
    if not accounts.in_force:
        _log.warning(
            "no_accounts",
            tenant=DEFAULT_TENANT,
            meaning="whoever reaches the HTTP port may do everything, an operator's work too",
            remedy="edge-runtime accounts create --operator",
        )
    return Door(accounts, quotas, service.counters)
