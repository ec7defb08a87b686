"""Every route of the whole front door, as the command line puts it together: the same bad requests.

Routes are taken from the OpenAPI document, and the document is held against the router and what is
mounted beside it: a route that is new is in the table, or a test fails.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from raw_http import Said, Wire, head
from serving import wait_until

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.cli.commands.dispatcher import open_app
from edge_runtime.contract.http import NewKey, Quota
from edge_runtime.dispatcher.api import Api, Door, HttpServer, serve
from edge_runtime.dispatcher.api.door import needs_no_key
from edge_runtime.dispatcher.api.openapi import ALL_OPERATIONS, openapi_json
from edge_runtime.dispatcher.api.operations import Operation
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings
from edge_runtime.dispatcher.storage import SqliteStore
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

DOCUMENT: Final = json.loads(openapi_json())
NOT_DESCRIBED: Final = {"/openapi.json", "dashboard", "metrics"}
"""The document itself; pages for people, what they show, and what scrapers read (http.md)."""
UNDESCRIBED_PATHS: Final = ("/dashboard/data/overview", "/dashboard/data/live", "/metrics")
HUGE: Final = 2**40


@dataclass
class Front:
    service: DispatcherService
    app: Api
    server: HttpServer
    operator: str
    tenant: str
    poor: str
    """The key of a tenant that may ask once in a thousand seconds."""

    async def said(self, text: str | bytes) -> Said:
        data = text.encode() if isinstance(text, str) else text
        async with Wire(self.server.port) as wire:
            await wire.send(data)
            return await wire.answer(has_body=not data.startswith(b"HEAD"))

    async def ask(
        self, operation: Operation, *headers: str, body: bytes = b"", model: str = "nothing"
    ) -> Said:
        if operation.method in {"GET", "HEAD"}:
            body = b""
        length = (f"Content-Length: {len(body)}",) if body or operation.method != "GET" else ()
        lines = (*needed(operation), *headers, *length)
        text = head(operation.method, path_of(operation, model), *lines)
        return await self.said(text.encode() + body)


def path_of(operation: Operation, model: str = "nothing") -> str:
    """With names of nothing."""
    path = operation.path.replace("{sha256}", "0" * 64).replace("{model}", model)
    return re.sub(r"\{\w+\}", "nothing", path.replace("{version}", "1"))


def needed(operation: Operation) -> list[str]:
    """Headers without which a request is another one."""
    values = {"Tus-Resumable": "1.0.0", "Upload-Length": "1", "Upload-Offset": "0"}
    values["Upload-Metadata"] = "sha256 " + "MDAw" * 21 + "MA=="
    lines = [f"{p.name}: {values[p.name]}" for p in operation.parameters if p.is_required]
    if operation.sends is not None or operation.body is not None:
        lines.append(f"Content-Type: {next(iter(operation.sends or {'application/json': 0}))}")
    return lines


def bearer(key: str) -> str:
    return f"Authorization: Bearer {key}"


def is_guarded(operation: Operation) -> bool:
    return not needs_no_key(operation.path)


def identity(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def has_tenant(operation: Operation) -> bool:
    return any(parameter.name == "X-Tenant" for parameter in operation.parameters)


GUARDED: Final = [one for one in ALL_OPERATIONS if is_guarded(one)]
TENANTS: Final = [one for one in ALL_OPERATIONS if has_tenant(one)]
OPERATORS: Final = [one for one in ALL_OPERATIONS if "operator" in one.tags]
WITH_A_BODY: Final = [one for one in ALL_OPERATIONS if one.body or one.sends]
OF_ONE_THING: Final = [one for one in ALL_OPERATIONS if "{" in one.path and one.method != "PUT"]


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    models = tmp_path / "models"
    write_synthetic("noop", models)
    broker = MemoryBroker()

    def open_bus(settings: BusSettings) -> MemoryBus:
        return MemoryBus(settings, broker)

    settings = DispatcherSettings("memory://", models_dir=models)
    path = tmp_path / "store.db"
    async with DispatcherService(settings, SqliteStore(path), open_bus) as service:
        app, door = await open_app(service, path)
        keys = [await _key(door, name, is_operator=name == "ops") for name in ("ops", "a", "poor")]
        await door.quotas.put("poor", Quota(requests_per_s=0.001, burst=1))
        server = await serve(app, port=0)
        try:
            yield Front(service, app, server, *keys)
        finally:
            await server.close()


async def _key(door: Door, tenant: str, *, is_operator: bool) -> str:
    return (await door.accounts.create(NewKey(tenant=tenant, is_operator=is_operator))).key


def refused(said: Said, operation: Operation, *statuses: int) -> str | None:
    """The refusal is one of these, documented, in its family's form; its code where it has one."""
    assert said.status in statuses, (identity(operation), said.status, said.body[:300])
    documented = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
    assert str(said.status) in documented, (identity(operation), said.status)
    if said.status == 429:
        assert int(said.headers["retry-after"]) >= 1
    if operation.method == "HEAD" or not said.body:
        return None
    if operation.path.startswith("/v2"):
        assert isinstance(said.json["error"], str)
        return None
    problem = said.json["error"] if "openai" in operation.tags and "error" in said.json else None
    if problem is None:
        problem = said.json
        assert problem["status"] == said.status
    assert problem["message"]
    return str(problem["code"])


def test_no_route_is_forgotten(tmp_path: Path) -> None:
    described = {(one.method, one.path) for one in ALL_OPERATIONS}

    async def routed() -> tuple[set[tuple[str, str]], set[str]]:
        settings = DispatcherSettings("memory://", models_dir=tmp_path)
        store = tmp_path / "store.db"
        broker = MemoryBroker()
        open_bus = lambda settings: MemoryBus(settings, broker)  # noqa: E731 - one line is what it is
        async with DispatcherService(settings, SqliteStore(store), open_bus) as service:
            app, _ = await open_app(service, store)
            routes = {
                (method, re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path))
                for route in app._router.routes
                for method in getattr(route, "methods", ())
            }
            return routes, set(app._mounts)

    routes, mounts = asyncio.run(routed())
    own = {(method, path) for method, path in routes if method not in {"OPTIONS", "HEAD"}}
    beside = {
        (method, path)
        for method, path in described
        if any(path[1:] == mount or path[1:].startswith(f"{mount}/") for mount in mounts)
    }
    assert {path for _, path in own} & NOT_DESCRIBED == {"/openapi.json"}
    assert own - {("GET", "/openapi.json")} == described - beside
    for mount in mounts - NOT_DESCRIBED:
        assert any(path[1:].startswith(mount) for _, path in beside), mount
    assert len(UNDESCRIBED_PATHS) > len(NOT_DESCRIBED - {"/openapi.json"})


async def test_without_a_right_key_nobody_passes(front: Front) -> None:
    for operation in GUARDED:
        wrong = front.tenant[:-1] + ("a" if front.tenant[-1] != "a" else "b")
        for headers in ((), (bearer(wrong),), (f"X-API-Key: {wrong}",), (bearer("x" * 10_000),)):
            said = await front.ask(operation, *headers)
            assert refused(said, operation, 401) in {"unauthorized", None}
            assert said.headers["www-authenticate"] == "Bearer"
        twice = await front.ask(operation, bearer(front.tenant), bearer(front.operator))
        assert refused(twice, operation, 400) in {"duplicate_header", None}


@pytest.mark.parametrize("path", UNDESCRIBED_PATHS)
async def test_what_is_not_described_is_guarded_too(front: Front, path: str) -> None:
    assert (await front.said(head("GET", path))).status == 401
    assert (await front.said(head("GET", path, bearer(front.tenant)))).status == 403
    said = await front.said(head("PUT", path, bearer(front.operator), "Content-Length: 0"))
    assert (said.status, said.headers["allow"]) == (405, "GET, HEAD")


async def test_a_key_speaks_for_its_own_tenant_only(front: Front) -> None:
    for operation in TENANTS:
        said = await front.ask(operation, bearer(front.tenant), "X-Tenant: other", model="noop")
        assert refused(said, operation, 403) in {"forbidden", "permission_error", None}


async def test_what_is_the_operators_is_not_a_tenants(front: Front) -> None:
    for operation in OPERATORS:
        said = await front.ask(operation, bearer(front.tenant), "X-Tenant: *", body=b"{}")
        assert refused(said, operation, 403) == "forbidden"


async def test_two_tenants_are_none(front: Front) -> None:
    for operation in ALL_OPERATIONS:
        said = await front.ask(operation, bearer(front.operator), "X-Tenant: a", "X-Tenant: b")
        assert refused(said, operation, 400) in {"duplicate_header", None}


async def test_a_quota_that_is_passed_is_said_with_when_to_come_back(front: Front) -> None:
    await front.said(head("GET", "/v1/jobs", bearer(front.poor)))
    for operation in GUARDED:
        said = await front.ask(operation, bearer(front.poor))
        assert refused(said, operation, 429) in {"quota_exceeded", None}


async def test_a_body_beyond_all_bounds_is_not_read(front: Front) -> None:
    for operation in ALL_OPERATIONS:
        lines = [*needed(operation), bearer(front.operator), f"Content-Length: {HUGE}"]
        said = await front.said(head(operation.method, path_of(operation), *lines).encode() + b"{")
        if operation.sends or operation.body:
            # An upload is counted as it comes, or names what there is not.
            refused(said, operation, 413, 404, *((400, 415) if operation.sends else ()))
        else:
            assert said.status < 500, identity(operation)


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff\xfe", b"null", b'{"model": [1], "on": 7}'])
async def test_a_body_of_the_wrong_shape_is_refused(front: Front, body: bytes) -> None:
    for operation in WITH_A_BODY:
        said = await front.ask(operation, bearer(front.operator), body=body)
        if said.status in {200, 201}:
            # All fields have defaults, and unknown ones are passed over.
            assert body.startswith(b'{"model"')
            assert operation.method == "PUT" or operation.path.endswith("/backup")
        else:
            refused(said, operation, 400, 404, 409, 413, 415, 422)


async def test_what_is_not_there_is_not_found(front: Front) -> None:
    for operation in OF_ONE_THING:
        body = b"{}" if operation.body else b""
        said = await front.ask(operation, bearer(front.operator), body=body)
        if operation.handler == "quarantine":
            refused(said, operation, 422)  # it looks at its body first
            said = await front.ask(operation, bearer(front.operator), body=b'{"on": true}')
        refused(said, operation, 404)


async def test_another_method_is_refused_with_those_there_are(front: Front) -> None:
    for operation in ALL_OPERATIONS:
        path = path_of(operation)
        said = await front.said(
            head(
                "PROPFIND",
                path,
                bearer(front.operator),
                "Tus-Resumable: 1.0.0",
                "Content-Length: 0",
            )
        )
        assert said.status == 405, (said.status, said.body)
        assert operation.method in said.headers["allow"].replace(",", " ").split()


async def test_a_client_that_disappears_leaves_nothing_behind(front: Front) -> None:
    for operation in ALL_OPERATIONS:
        heads = [*needed(operation), bearer(front.operator)]
        length = ["Content-Length: 1000"] if operation.body or operation.sends else []
        path = path_of(operation) + ("?follow=true" if operation.stream else "")
        async with Wire(front.server.port) as wire:
            await wire.send(
                head(operation.method, path, *heads, *length).encode() + b"{"[: len(length)]
            )
            if operation.path == "/v1/results":
                assert b"200" in await wire.reader.readline(), "in the middle of a stream"
                assert front.app.open_streams == 1
            wire.writer.transport.abort()
        await wait_until(lambda: not front.server._server.server_state.connections)
        await wait_until(lambda: not front.server._server.server_state.tasks)
        assert front.app.open_streams == 0
        assert not front.service.interactive.core.waiting
        assert (await front.said(head("GET", "/v1/health", bearer(front.operator)))).status == 200


def problems_of(document: dict[str, Any]) -> list[str]:
    return [
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "default" in operation["responses"]
    ]


def test_the_document_names_each_status() -> None:
    assert problems_of(DOCUMENT) == []
