"""What bad input gets: a Problem that names code, field and limit, and never a 500."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from memory_front import MemoryFront
from serving import MSGPACK, Served, job, wait_until
from structlog.testing import capture_logs

from edge_runtime.client import EdgeClient
from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.dispatcher.storage import StoreBusy, StoreError, StoreFull

ITEM = {"text": "x"}


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"", 400, "malformed", None),
        (b"{", 400, "malformed", None),
        (b"nonsense", 400, "malformed", None),
        (b'{"model":"m","items":[{}]} trailing', 400, "malformed", None),
        (b'{"model":"\xff","items":[]}', 400, "malformed", None),
        (b"[" * 100_000, 422, "invalid_field", None),
        (b'{"model":"m","parameters":{"a":' + b"[" * 100_000, 400, "malformed", None),
        (b"[]", 422, "invalid_field", None),
        (b"null", 422, "invalid_field", None),
        (job(model=""), 422, "invalid_field", "model"),
        (job(model=5), 422, "invalid_field", "model"),
        (job(model="m" * 600), 422, "invalid_field", "model"),
        ({"items": [ITEM]}, 422, "missing_field", "model"),
        ({"model": "m"}, 422, "missing_field", "items"),
        (job(items=[]), 422, "empty", "items"),
        (job(items={}), 422, "invalid_field", "items"),
        (job(items=[ITEM, 7]), 422, "invalid_field", "items[1]"),
        (job(items=[ITEM, {}]), 422, "data_or_text", "items[1]"),
        (job(items=[{"text": "a", "data": "AA=="}]), 422, "data_or_text", "items[0]"),
        (job(items=[{"data": "not base64!"}]), 422, "invalid_base64", "items[0].data"),
        (job(items=[{"text": 5}]), 422, "invalid_field", "items[0].text"),
        (job(deadline_s=0), 422, "invalid_field", "deadline_s"),
        (job(deadline_s=-1), 422, "invalid_field", "deadline_s"),
        (job(deadline_s=1e99), 422, "invalid_field", "deadline_s"),
        (job(deadline_s="soon"), 422, "invalid_field", "deadline_s"),
        (job(retention_s=0), 422, "invalid_field", "retention_s"),
        (job(priority=10), 422, "invalid_field", "priority"),
        (job(idempotency_key=""), 422, "invalid_field", "idempotency_key"),
        (job(idempotency_key="k" * 201), 422, "invalid_field", "idempotency_key"),
        (job(parameters=[]), 422, "invalid_field", "parameters"),
        (job(parameters={"n": 2**70}), 422, "invalid_field", "parameters"),
        (job(requirements={"vehicles": [""]}), 422, "invalid_field", "requirements.vehicles[0]"),
        (job(requirements={"vehicles": ["v"] * 65}), 422, "invalid_field", "requirements.vehicles"),
        (job(purpose=""), 422, "invalid_field", "purpose"),
    ],
)
async def test_a_bad_job_is_refused_by_field(
    api: Served, body: Any, status: int, code: str, field: str | None
) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, problem = await api.send(data)
    assert (got, problem["code"], problem.get("field")) == (status, code, field)
    assert problem["message"]
    assert problem["status"] == status
    assert api.front.jobs_by_id == {}


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        (b"\xc1", 400, "malformed", None),
        (b"\x82\xa5model", 400, "malformed", None),
        (b"\x91" * 100_000, 422, "invalid_field", None),
        (b"\xdd\xff\xff\xff\xff", 422, "invalid_field", None),
        ({"model": "m", "items": [{"data": "text"}]}, 422, "invalid_field", "items[0].data"),
        (
            {"model": "m", "items": [ITEM], "deadline_s": float("nan")},
            422,
            "invalid_field",
            "deadline_s",
        ),
        ({"model": "m", "items": []}, 422, "empty", "items"),
        ({1: 2}, 422, "invalid_field", None),
    ],
)
async def test_a_bad_msgpack_job_is_refused_too(
    api: Served, body: Any, status: int, code: str, field: str | None
) -> None:
    data = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
    got, problem = await api.send(data, Content_Type=MSGPACK)
    assert (got, problem["code"]) == (status, code)
    if field is not None:
        assert problem["field"] == field


async def test_an_item_over_the_limit_is_named(api: Served) -> None:
    big = "x" * (limits.ITEM_MAX_BYTES + 1)
    status, problem = await api.send(json.dumps(job(items=[ITEM, {"text": big}])).encode())
    assert (status, problem["field"]) == (413, "items[1]")
    assert problem["limit"] == f"ITEM_MAX_BYTES={limits.ITEM_MAX_BYTES}"
    body = msgspec.msgpack.encode(job(items=[{"data": big.encode()}]))
    status, problem = await api.send(body, Content_Type=MSGPACK)
    assert (status, problem["field"]) == (413, "items[0]")


async def test_the_largest_item_passes_and_text_is_measured_in_bytes(api: Served) -> None:
    await api.call(
        "POST", "/v1/jobs", body=job(items=[{"text": "x" * limits.ITEM_MAX_BYTES}]), status=201
    )
    wide = "\N{SNOWMAN}" * (limits.ITEM_MAX_BYTES // 3 + 1)
    status, problem = await api.send(json.dumps(job(items=[{"text": wide}])).encode())
    assert (status, problem["field"]) == (413, "items[0]")


async def test_parameters_over_the_limit(api: Served) -> None:
    status, problem = await api.send(json.dumps(job(parameters={"a": "x" * 9000})).encode())
    assert (status, problem["field"]) == (413, "parameters")
    assert problem["limit"].startswith("PARAMETERS_MAX_BYTES=")


@pytest.mark.parametrize("form", ["json", "msgpack"])
async def test_ten_million_items_are_refused_by_limit(api: Served, form: str) -> None:
    count = 10_000_000
    if form == "json":
        body = b'{"model":"m","items":[' + b"{}," * (count - 1) + b"{}]}"
        content_type = "application/json"
    else:
        body = b"\x82\xa5model\xa1m\xa5items\xdd" + count.to_bytes(4) + b"\x80" * count
        content_type = MSGPACK
    status, problem = await api.send(body, Content_Type=content_type)
    assert (status, problem["code"], problem["field"]) == (413, "too_large", "items")
    assert problem["limit"] == f"JOB_MAX_ITEMS={limits.JOB_MAX_ITEMS}"


async def test_braces_inside_texts_are_not_items(api: Served) -> None:
    braces = "{" * 100_000
    body = json.dumps(job(items=[{"text": braces}] * 12)).encode()
    status, _ = await api.send(body)
    assert status == 201


async def test_a_body_over_the_limit_is_refused_before_it_is_read(api: Served) -> None:
    announced = limits.JOB_MAX_BODY_BYTES + 1
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    writer.write(
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {announced}\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b" 413 " in head
    writer.close()
    await writer.wait_closed()


async def test_a_chunked_body_over_its_limit_is_refused_on_the_way(api: Served) -> None:
    async def pieces() -> Any:
        for _ in range(limits.HTTP_SMALL_BODY_MAX_BYTES // 65_536 + 2):
            yield b" " * 65_536

    async with api.session.post(
        api.url("/v1/store/backup"), data=pieces(), headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413
        assert (await response.json())["limit"].startswith("HTTP_SMALL_BODY_MAX_BYTES=")


async def test_bodies_share_a_budget(api: Served) -> None:
    async def answers(wanted: int) -> bool:
        return (await api.send(json.dumps(job()).encode()))[0] == wanted

    half = limits.HTTP_BODIES_MAX_BYTES // 2
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(
            b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {half}\r\n\r\n ".encode()
        )
        await writer.drain()
        writers.append(writer)
    await wait_until(lambda: answers(503))
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    await wait_until(lambda: answers(201))


async def test_more_jobs_than_a_request_may_hold(api: Served) -> None:
    body = json.dumps({"jobs": [job()] * (limits.JOBS_PER_REQUEST_MAX + 1)}).encode()
    status, problem = await api.send(body, "/v1/jobs/batch")
    assert (status, problem["field"]) == (413, "jobs")
    packed = msgspec.msgpack.encode({"jobs": [{"model": 1}] * 257})
    status, problem = await api.send(packed, "/v1/jobs/batch", Content_Type=MSGPACK)
    assert (status, problem["limit"]) == (413, "JOBS_PER_REQUEST_MAX=256")


async def test_no_jobs_at_all(api: Served) -> None:
    status, problem = await api.send(b'{"jobs": []}', "/v1/jobs/batch")
    assert (status, problem["field"]) == (422, "jobs")
    status, problem = await api.send(b"{}", "/v1/jobs/batch")
    assert (status, problem["field"]) == (422, "jobs")


@pytest.mark.parametrize("form", ["json", "msgpack"])
async def test_large_batches_are_bounded_and_still_work(api: Served, form: str) -> None:
    codec, content_type = (
        (msgspec.json, "application/json") if form == "json" else (msgspec.msgpack, MSGPACK)
    )
    big = job(items=[{"text": "x" * 100_000}] * 2)
    body = codec.encode({"jobs": [big] * 8 + ([] if form == "json" else [job(items=[])])})
    status, answer = await api.send(body, "/v1/jobs/batch", Content_Type=content_type)
    assert status == 200
    assert [("status" in one) for one in answer["jobs"]][:8] == [True] * 8
    assert [one["problem"]["field"] for one in answer["jobs"][8:]] in ([], ["items"])
    million = job(items=[{}] * 600_000)
    body = codec.encode({"jobs": [million] * 3})
    status, answer = await api.send(body, "/v1/jobs/batch", Content_Type=content_type)
    if form == "json":
        assert (status, answer["limit"]) == (413, f"JOB_MAX_ITEMS={limits.JOB_MAX_ITEMS}")
    else:
        assert [one["problem"]["field"] for one in answer["jobs"]] == ["items[0]"] * 2 + ["items"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/jobs?limit=x", "limit"),
        ("/v1/jobs?limit=-1", "limit"),
        ("/v1/jobs?limit=1001", "limit"),
        ("/v1/jobs?limit=99999999999999999999999", "limit"),
        ("/v1/jobs?state=sleeping", "state"),
        ("/v1/jobs?before=a%20b", "before"),
        ("/v1/jobs/job-0/results?cursor=-1", "cursor"),
        ("/v1/jobs/job-0/results?follow=maybe", "follow"),
        ("/v1/results?position=1.5", "position"),
        ("/v1/fleet?offset=all", "offset"),
        ("/v1/attempts?after=%D9%A3", "after"),
        ("/v1/dead-letters?job=%2F", "job"),
    ],
)
async def test_bad_query_parameters(api: Served, path: str, field: str) -> None:
    await api.call("POST", "/v1/jobs", body=job(), status=201)
    problem = await api.call("GET", path, status=422)
    assert problem["field"] == field


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "a/b", "+"])
async def test_bad_tenants(api: Served, tenant: str) -> None:
    for method, path in (("POST", "/v1/jobs"), ("GET", "/v1/jobs"), ("GET", "/v1/results")):
        problem = await api.call(
            method, path, body=job() if method == "POST" else None, status=422, X_Tenant=tenant
        )
        assert problem["field"] == "X-Tenant"


async def test_the_operator_does_not_submit(api: Served) -> None:
    problem = await api.call("POST", "/v1/jobs", body=job(), status=422, X_Tenant="*")
    assert problem["field"] == "X-Tenant"


@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
async def test_unknown_paths_and_methods_are_problems(api: Served, accept: str) -> None:
    decode = msgspec.msgpack.decode if accept == MSGPACK else msgspec.json.decode
    for method, path, status, code in (
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/jobs/job-9", 404, "not_found"),
        ("GET", "/v1/jobs/a%20b", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("POST", "/v1/health", 405, "method_not_allowed"),
    ):
        async with api.session.request(
            method, api.url(path), headers={"Accept": accept}
        ) as response:
            assert response.status == status
            assert response.headers["content-type"] == accept
            problem = decode(await response.read(), type=Problem)
            assert (problem.code, problem.status) == (code, status)
            if status == 405:
                assert "GET" in response.headers["allow"]


async def test_an_unsupported_content_type_is_refused(api: Served) -> None:
    status, problem = await api.send(b"<job/>", Content_Type="text/xml")
    assert (status, problem["field"]) == (415, "Content-Type")


@pytest.mark.parametrize("refused", [StoreFull("disk is full"), StoreBusy("locked")])
async def test_a_store_that_has_no_room_now_is_asked_again_later(
    api: Served, monkeypatch: pytest.MonkeyPatch, refused: StoreError
) -> None:
    """As clients take 507: found by chaos, whose requester gave up where DELETE answered 500."""
    errors = iter([refused])
    delete = MemoryFront.delete

    async def full_once(self: MemoryFront, tenant: str | None, name: str) -> None:
        for error in errors:
            raise error
        await delete(self, tenant, name)

    monkeypatch.setattr(MemoryFront, "delete", full_once)
    await api.call("POST", "/v1/jobs", body=job(), status=201)
    problem = await api.call("DELETE", "/v1/jobs/job-0", status=507)
    assert problem["code"] == "store_unavailable"
    assert str(refused) in problem["message"]
    async with EdgeClient(api.url("")) as client:
        errors = iter([refused])
        await client.delete("job-0")
    await api.call("GET", "/v1/jobs/job-0", status=404)


async def test_a_failing_front_is_a_500_that_says_nothing_of_it(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_self: MemoryFront) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("secret detail")

    monkeypatch.setattr(MemoryFront, "health", broken)
    with capture_logs() as logs:
        problem = await api.call("GET", "/v1/health", status=500)
    assert problem["code"] == "internal"
    assert "secret" not in json.dumps(problem)
    assert [entry["event"] for entry in logs] == ["http_request_failed"]


async def test_busy_answers_say_when_to_come_back(api: Served) -> None:
    api.front.refuse_next = [Problem(code="too_many_jobs", message="full", status=429)]
    async with api.session.post(api.url("/v1/jobs"), json=job()) as response:
        assert (response.status, response.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Origin": "http://evil.example"}, "Origin"),
        ({"Origin": "null"}, "Origin"),
        ({"Host": "evil.example:8080"}, "Host"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "Host"),
    ],
)
async def test_pages_of_other_sites_are_kept_out(
    api: Served, headers: dict[str, str], field: str
) -> None:
    async with api.session.post(api.url("/v1/jobs/job-0/cancel"), headers=headers) as response:
        assert response.status == 403
        assert (await response.json())["field"] == field


async def test_a_page_of_this_dispatcher_may_call_it(api: Served) -> None:
    origin = f"http://localhost:{api.server.port}"
    headers = {"Origin": origin, "Host": f"localhost:{api.server.port}"}
    async with api.session.get(api.url("/v1/health"), headers=headers) as response:
        assert response.status == 200


async def test_a_caller_that_leaves_while_sending_harms_nobody(api: Served) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()
    await api.call("GET", "/v1/health")
    assert api.front.jobs_by_id == {}
