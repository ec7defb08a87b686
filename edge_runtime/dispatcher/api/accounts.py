"""Keys and quotas over HTTP: an operator's, but for what a tenant may know of itself."""

from http import HTTPStatus
from typing import Any, Final

from litestar.connection import Request
from litestar.types import ASGIApp

from edge_runtime.contract import limits
from edge_runtime.contract.http import NewKey, Quota
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.accounts_quotas import EVERYBODY
from edge_runtime.dispatcher.api import queries
from edge_runtime.dispatcher.api.bodies import Body, BodyBudget, TypedBody
from edge_runtime.dispatcher.api.door import Door
from edge_runtime.dispatcher.api.wire import answer
from edge_runtime.dispatcher.front import Front, refusal

DEFAULT_QUOTA: Final = "default-quota"
"""The path's name for tenants without a quota of their own; `*` is no good name in a path."""
_Request = Request[Any, Any, Any]

_new_key: Final = TypedBody(NewKey)
_quota: Final = TypedBody(Quota)


class AccountRoutes:
    """The handlers of `/v1/accounts/…`."""

    def __init__(self, door: Door | None, front: Front, budget: BodyBudget) -> None:
        self._open_door = door
        self._front = front
        self._budget = budget

    @property
    def _door(self) -> Door:
        if self._open_door is None:
            raise refusal(
                HTTPStatus.CONFLICT, "accounts_off", "this dispatcher is run without accounts"
            )
        return self._open_door

    def _body(self, request: _Request) -> Body:
        return Body(
            request, self._budget, "HTTP_SMALL_BODY_MAX_BYTES", limits.HTTP_SMALL_BODY_MAX_BYTES
        )

    async def create_key(self, request: _Request) -> ASGIApp:
        """Make a key: 201 with the key, this once."""
        queries.require_operator(request)
        async with self._body(request) as body:
            wanted: NewKey = _new_key.decode(body)
        made = await self._door.accounts.create(wanted)
        return answer(request, made, HTTPStatus.CREATED)

    async def keys(self, request: _Request) -> ASGIApp:
        """Keys by their prefixes."""
        scope = queries.operator_scope_of(request)
        return answer(request, self._door.accounts.views(scope))

    async def revoke_key(self, request: _Request) -> ASGIApp:
        """End a key."""
        queries.require_operator(request)
        view = await self._door.accounts.revoke(request.path_params["prefix"])
        return answer(request, view)

    async def usage(self, request: _Request) -> ASGIApp:
        """Quotas and what is used of them."""
        scope = queries.operator_scope_of(request)
        quotas = self._door.quotas
        found = await quotas.usages() if scope is None else [await quotas.usage(scope)]
        return answer(request, found)

    async def put_quota(self, request: _Request) -> ASGIApp:
        """A tenant's quota from now on; what it uses."""
        queries.require_operator(request)
        tenant = request.path_params["tenant"]
        if not ID_PATTERN.fullmatch(tenant):
            raise refusal(HTTPStatus.NOT_FOUND, "not_found", "no such tenant", field="tenant")
        async with self._body(request) as body:
            if not body.data:
                # Elsewhere no body is {}; here that would be "no limits at all".
                message = "send the quota; {} is one without limits"
                raise refusal(HTTPStatus.BAD_REQUEST, "malformed", message)
            quota: Quota = _quota.decode(body)
        quotas = self._door.quotas
        if tenant == DEFAULT_QUOTA:
            await quotas.put(EVERYBODY, quota)
        else:
            await quotas.put(tenant, quota)
            await self._front.set_weight(tenant, quota.weight)
        return answer(request, await quotas.usage(tenant))
