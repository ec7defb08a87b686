"""`edge-runtime accounts`: API keys, and how much each tenant may have.

Over HTTP while the dispatcher runs, with an operator's key in `EDGE_RUNTIME_API_KEY`. With
`--store` on the file of a dispatcher that is stopped: the first key of one that is to listen
beyond loopback at once, or the way back where every operator's key was lost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec
from cyclopts import Parameter

from edge_runtime.cli.asking import ask, print_json, utc
from edge_runtime.cli.options import DEFAULT_TENANT, DEFAULT_URL, AsJson, DispatcherUrl
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.http import KeyMade, KeyView, NewKey, Quota, TenantUsage
from edge_runtime.contract.topics import require_id

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient
    from edge_runtime.dispatcher.accounts import Accounts

T = TypeVar("T")

StoreFile = Annotated[
    Path | None,
    Parameter(name="--store", help="Store of a dispatcher that is stopped, instead of --url."),
]
_UNSET: Final = Quota()


def create(
    tenant: Annotated[str, Parameter(help="Whose key.")] = DEFAULT_TENANT,
    /,
    *,
    operator: Annotated[
        bool, Parameter(negative="", help="It may do what operators do, for every tenant.")
    ] = False,
    note: Annotated[str, Parameter(help="What it is for; listed.")] = "",
    url: DispatcherUrl = DEFAULT_URL,
    store: StoreFile = None,
    as_json: AsJson = False,
) -> int:
    """Make an API key and print it, this once: what is stored is its hash."""
    require_id("tenant", tenant)

    def show(made: KeyMade) -> None:
        if as_json:
            print_json(made)
        else:
            print(made.key)

    if store is not None:
        wanted = NewKey(tenant=tenant, is_operator=operator, note=note)
        show(_offline(store, lambda accounts: accounts.create(wanted)))
        return 0

    async def question(client: "EdgeClient") -> None:
        show(await client.create_key(tenant, is_operator=operator, note=note))

    return ask(url, DEFAULT_TENANT, question)


def list_keys(
    *, url: DispatcherUrl = DEFAULT_URL, store: StoreFile = None, as_json: AsJson = False
) -> int:
    """List API keys by their prefixes, oldest first."""

    def show(views: list[KeyView]) -> None:
        for view in views:
            if as_json:
                print_json(view)
                continue
            role = "operator" if view.is_operator else "tenant"
            state = "in force" if view.revoked_ms is None else f"revoked {utc(view.revoked_ms)}"
            print(
                f"{view.prefix}  {view.tenant:<20}  {role:<8}  made {utc(view.created_ms)}  "
                f"{state}  {view.note}".rstrip()
            )

    if store is not None:

        async def views(accounts: "Accounts") -> list[KeyView]:
            return accounts.views(None)

        show(_offline(store, views))
        return 0

    async def question(client: "EdgeClient") -> None:
        show(await client.keys())

    return ask(url, DEFAULT_TENANT, question)


def revoke(
    prefix: Annotated[str, Parameter(help="What the key begins with, as it is listed.")],
    /,
    *,
    url: DispatcherUrl = DEFAULT_URL,
    store: StoreFile = None,
    as_json: AsJson = False,
) -> int:
    """Revoke an API key, at once and for good."""

    def show(view: KeyView) -> None:
        if as_json:
            print_json(view)
        else:
            print(f"{view.prefix} of tenant {view.tenant} revoked {utc(view.revoked_ms)}")

    if store is not None:
        show(_offline(store, lambda accounts: accounts.revoke(prefix)))
        return 0

    async def question(client: "EdgeClient") -> None:
        show(await client.revoke_key(prefix))

    return ask(url, DEFAULT_TENANT, question)


def quota(
    tenant: Annotated[
        str | None,
        Parameter(help="Whose; default-quota: of all without their own; none: print usage."),
    ] = None,
    /,
    *,
    jobs: Annotated[int | None, Parameter(help="Unfinished jobs.")] = None,
    items: Annotated[int | None, Parameter(help="Unfinished items.")] = None,
    max_bytes: Annotated[
        int | None, Parameter(name="--bytes", help="Input bytes of unfinished jobs, and of files.")
    ] = None,
    requests_per_s: Annotated[
        float | None, Parameter(help="Requests a second (1/s), in the long run.")
    ] = None,
    burst: Annotated[int | None, Parameter(help="Requests at once.")] = None,
    weight: Annotated[int, Parameter(help="Share of the fleet beside others'.")] = 1,
    url: DispatcherUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> int:
    """Set a tenant's whole quota (what is not named has no bound); without a tenant, print all."""
    wanted = Quota(
        jobs=jobs,
        items=items,
        bytes=max_bytes,
        requests_per_s=requests_per_s,
        burst=burst,
        weight=weight,
    )
    if tenant is None and wanted != _UNSET:
        raise ConfigError("say whose quota: edge-runtime accounts quota TENANT --jobs 100")
    checked = _checked(wanted)

    async def question(client: "EdgeClient") -> None:
        found = [await client.set_quota(tenant, checked)] if tenant else await client.usage()
        for usage in found:
            if as_json:
                print_json(usage)
            else:
                print(_line(usage))

    return ask(url, DEFAULT_TENANT, question)


def _checked(quota: Quota) -> Quota:
    """The quota where its numbers are within their bounds; `ConfigError` otherwise."""
    try:
        return msgspec.convert(msgspec.to_builtins(quota), Quota)
    except msgspec.ValidationError as error:
        raise ConfigError(f"quota: {error}") from None


def _line(usage: TenantUsage) -> str:
    bounds = (
        ("jobs", usage.jobs, usage.quota.jobs),
        ("items", usage.items, usage.quota.items),
        ("bytes", usage.bytes, usage.quota.bytes),
    )
    uses = "  ".join(f"{name} {has}/{'-' if of is None else of}" for name, has, of in bounds)
    rate = usage.quota.requests_per_s
    return (
        f"{usage.tenant:<20}  {uses}  requests/s {'-' if rate is None else f'{rate:g}'}  "
        f"weight {usage.quota.weight}  refused {usage.refused}"
    )


def _offline(store: Path, act: "Callable[[Accounts], Awaitable[T]]") -> T:
    """Act on the accounts of a store that no dispatcher holds."""
    from edge_runtime.dispatcher.accounts import Accounts
    from edge_runtime.dispatcher.storage import SqliteStore

    if not store.resolve().parent.is_dir():
        raise ConfigError(f"--store {store}: its folder does not exist")

    async def run() -> T:
        opened = SqliteStore(store, holder="accounts")
        await opened.open(int(time.time()))
        try:
            accounts = Accounts(opened, lambda: time.time_ns() // 1_000_000)
            await accounts.open()
            return await act(accounts)
        finally:
            await opened.close()

    return asyncio.run(run())
