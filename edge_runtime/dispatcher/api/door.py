"""Who a request comes from: the key in its headers, looked at before any route.

`Authorization: Bearer <key>` or `X-API-Key: <key>`. Without accounts everybody who reaches the
socket may do everything, under the tenant that `X-Tenant` names; that is why such a dispatcher
listens on loopback only.

Cars have no key: what they fetch is signed or named by its hash. Probes of health have none.
"""

from collections import Counter
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.accounts import Accounts, Caller
from edge_runtime.dispatcher.accounts_quotas import Quotas
from edge_runtime.dispatcher.core.events import WeightSet
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.service import DispatcherService

_log = structlog.get_logger(__name__)

TENANT_HEADER: Final = "X-Tenant"
AUTHORIZATION: Final = "Authorization"
API_KEY_HEADER: Final = "X-API-Key"
DEFAULT_TENANT: Final = "default"

_CALLER: Final = "edge_runtime.caller"
"""Where a request's scope says who asks."""
_OPEN_PATHS: Final = frozenset({"/livez", "/readyz", "/healthz", "/openapi.json"})
_BEARER: Final = b"bearer "


def caller_in(scope: Mapping[str, Any]) -> Caller | None:
    """Who asks; None where there are no accounts, and everybody may."""
    caller: Caller | None = scope.get(_CALLER)
    return caller


def needs_no_key(path: str) -> bool:
    """Whether a path is for cars and probes, or a page that asks for the key itself."""
    if path in _OPEN_PATHS or path.startswith("/v1/metadata/"):
        return True
    if path.startswith("/objects/for-cars/"):
        return True  # a ticket in the path says what may be read
    if path.startswith("/dashboard"):
        return not path.startswith("/dashboard/data/")  # the pages hold nothing
    is_package = path.startswith("/v1/models/")
    return is_package and (path.endswith("/manifest") or "/files/" in path)


class Door:
    """Lets requests in, or says why not."""

    def __init__(self, accounts: Accounts, quotas: Quotas, counters: Counter[str]) -> None:
        self.accounts = accounts
        self.quotas = quotas
        self._counters = counters

    def admit(self, scope: dict[str, Any]) -> Problem | None:
        """None, with the caller noted in `scope`; 401 without a right key, 429 if too fast."""
        if needs_no_key(scope["path"]):
            return None
        key, tenant = _read(scope["headers"])
        caller = None
        if self.accounts.in_force:
            if not key:
                self._counters["requests_without_key"] += 1
                return _unauthorized(f"send {AUTHORIZATION}: Bearer <key>, or {API_KEY_HEADER}")
            caller = self.accounts.caller(key) if len(key) <= limits.KEY_MAX_CHARS else None
            if caller is None:
                self._counters["requests_with_wrong_key"] += 1
                return _unauthorized("the key is not known, or was revoked")
            scope[_CALLER] = caller
            if caller.is_operator:
                return None
            tenant = caller.tenant
        try:
            self.quotas.ask(tenant)
        except Refusal as refused:
            return refused.problem
        return None


def _read(headers: list[tuple[bytes, bytes]]) -> tuple[str, str]:
    """(key, tenant) as the headers name them."""
    key = tenant = b""
    for name, value in headers:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            key = value[len(_BEARER) :].strip()
        elif name == b"x-api-key" and not key:
            key = value.strip()
        elif name == b"x-tenant":
            tenant = value
    return key.decode("latin-1"), tenant.decode("latin-1") or DEFAULT_TENANT


def _unauthorized(message: str) -> Problem:
    return Problem(
        code="unauthorized",
        message=message,
        status=int(HTTPStatus.UNAUTHORIZED),
        field=AUTHORIZATION,
    )


async def open_door(service: DispatcherService) -> Door:
    """The accounts and quotas of a running dispatcher; says loudly where there are none."""
    accounts = Accounts(service.store, lambda: service.clock().utc_ms)
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
