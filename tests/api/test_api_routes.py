"""Every route, over a real socket, in JSON and MessagePack."""

from pathlib import Path

import msgspec
import pytest
from memory_front import MemoryFront
from serving import MSGPACK, Served, job, served

from edge_runtime.contract.http import JobRequest, JobsAnswer, JobsRequest
from edge_runtime.contract.messages import JobStatus

DIGEST = "a" * 64


async def test_submit_is_created_once_per_idempotency_key(api: Served) -> None:
    first = await api.call("POST", "/v1/jobs", body=job(idempotency_key="k"), status=201)
    again = await api.call("POST", "/v1/jobs", body=job(idempotency_key="k"), status=200)
    assert first == again
    assert first["state"] == "accepted"
    other = await api.call(
        "POST", "/v1/jobs", body=job(idempotency_key="k", priority=1), status=409
    )
    assert other["code"] == "key_reused"


async def test_submit_refused_by_the_dispatcher_is_its_problem(api: Served) -> None:
    problem = await api.call("POST", "/v1/jobs", body=job(model="nothing"), status=404)
    assert problem == {"code": "unknown_model", "message": "no", "status": 404, "field": "model"}


async def test_msgpack_both_ways_gives_the_same_job(api: Served) -> None:
    body = msgspec.msgpack.encode(job(items=[{"data": b"\x00\xff"}]))
    headers = {"Content-Type": MSGPACK, "Accept": MSGPACK}
    async with api.session.post(api.url("/v1/jobs"), data=body, headers=headers) as response:
        assert response.status == 201
        assert response.headers["content-type"] == MSGPACK
        status = msgspec.msgpack.decode(await response.read(), type=JobStatus)
    assert api.front.jobs_by_id[status.job].request.items[0].data == b"\x00\xff"
    as_json = await api.call("GET", f"/v1/jobs/{status.job}")
    assert msgspec.json.decode(msgspec.json.encode(as_json), type=JobStatus) == status


async def test_json_bytes_are_base64(api: Served) -> None:
    status = await api.call("POST", "/v1/jobs", body=job(items=[{"data": "AP8="}]), status=201)
    assert api.front.jobs_by_id[status["job"]].request.items[0].data == b"\x00\xff"


@pytest.mark.parametrize("form", ["json", "msgpack"])
async def test_batch_answers_each_job_by_itself(api: Served, form: str) -> None:
    jobs = [job(), job(items=[]), {"model": 5, "items": []}, job(model="nothing"), job()]
    codec = msgspec.json if form == "json" else msgspec.msgpack
    media_type = "application/json" if form == "json" else MSGPACK
    async with api.session.post(
        api.url("/v1/jobs/batch"),
        data=codec.encode({"jobs": jobs}),
        headers={"Content-Type": media_type, "Accept": media_type},
    ) as response:
        assert response.status == 200
        answers = codec.decode(await response.read(), type=JobsAnswer).jobs
    codes = [answer.problem.code if answer.problem else None for answer in answers]
    assert codes == [None, "empty", "invalid_field", "unknown_model", None]
    assert answers[2].problem is not None
    assert answers[2].problem.field == "model"
    assert [answers[0].status.job, answers[4].status.job] == list(api.front.jobs_by_id)


async def test_batch_of_good_jobs_is_one_call_of_the_front(api: Served) -> None:
    body = msgspec.json.encode(JobsRequest(jobs=(msgspec.convert(job(), JobRequest),) * 256))
    status, answer = await api.send(body, "/v1/jobs/batch")
    assert status == 200
    assert len(answer["jobs"]) == 256
    assert api.front.submit_calls == 1


async def test_jobs_are_listed_newest_first_by_tenant_state_and_page(api: Served) -> None:
    for tenant in ("one", "one", "two"):
        await api.call("POST", "/v1/jobs", body=job(), status=201, X_Tenant=tenant)
    mine = await api.call("GET", "/v1/jobs", X_Tenant="one")
    assert [status["job"] for status in mine] == ["job-1", "job-0"]
    assert len(await api.call("GET", "/v1/jobs", X_Tenant="*")) == 3
    assert await api.call("GET", "/v1/jobs") == []
    page = await api.call("GET", "/v1/jobs?limit=1&before=job-1", X_Tenant="one")
    assert [status["job"] for status in page] == ["job-0"]
    assert await api.call("GET", "/v1/jobs?state=done", X_Tenant="one") == []


async def test_a_job_is_seen_by_its_tenant_and_the_operator_only(api: Served) -> None:
    await api.call("POST", "/v1/jobs", body=job(), status=201, X_Tenant="one")
    await api.call("GET", "/v1/jobs/job-0", X_Tenant="one")
    await api.call("GET", "/v1/jobs/job-0", X_Tenant="*")
    problem = await api.call("GET", "/v1/jobs/job-0", X_Tenant="two", status=404)
    assert problem["field"] == "job"
    for path in ("results", "why", "attempts"):
        found = await api.call("GET", f"/v1/jobs/job-0/{path}", X_Tenant="two", status=404)
        assert found["code"] == "not_found"


async def test_cancel_is_idempotent_and_delete_forgets(api: Served) -> None:
    await api.call("POST", "/v1/jobs", body=job(), status=201)
    for _ in range(2):
        status = await api.call("POST", "/v1/jobs/job-0/cancel")
        assert status["state"] == "cancelled"
    await api.call("DELETE", "/v1/jobs/job-0", status=204)
    await api.call("DELETE", "/v1/jobs/job-0", status=404)


async def test_why_attempts_and_dead_letters(api: Served) -> None:
    await api.call("POST", "/v1/jobs", body=job(), status=201, X_Tenant="one")
    await api.call("POST", "/v1/jobs", body=job(), status=201, X_Tenant="two")
    why = await api.call("GET", "/v1/jobs/job-0/why", X_Tenant="one")
    assert why["cars_excluded"] == {"not_plugged": 3}
    assert len(await api.call("GET", "/v1/attempts")) == 2
    assert len(await api.call("GET", "/v1/attempts", X_Tenant="one")) == 1
    assert len(await api.call("GET", "/v1/attempts?after=1&limit=5")) == 1
    assert len(await api.call("GET", "/v1/jobs/job-0/attempts", X_Tenant="*")) == 1
    api.front.fail("job-1", 0)
    (letter,) = await api.call("GET", "/v1/dead-letters")
    assert (letter["job"], letter["error"]["code"]) == ("job-1", "model_error")
    assert await api.call("GET", "/v1/dead-letters?job=job-0") == []
    again = await api.call("POST", "/v1/jobs/job-1/requeue", X_Tenant="two")
    assert again == {"items": 1}
    none = await api.call("POST", "/v1/jobs/job-1/requeue", body={"items": [5]}, X_Tenant="two")
    assert none == {"items": 0}


async def test_fleet_pages_and_quarantine(api: Served) -> None:
    fleet = await api.call("GET", "/v1/fleet?limit=1&offset=1")
    assert fleet["total"] == 3
    assert [car["vehicle"] for car in fleet["cars"]] == ["car-1"]
    await api.call("POST", "/v1/fleet/car-1/quarantine", body={"on": True}, status=204)
    assert api.front.quarantined == {"car-1": True}
    await api.call("POST", "/v1/fleet/car-9/quarantine", body={"on": True}, status=404)
    problem = await api.call("POST", "/v1/fleet/car-1/quarantine", body={}, status=422)
    assert (problem["code"], problem["field"]) == ("missing_field", "on")


async def test_backup_goes_into_the_backup_folder_and_never_over_a_file(
    api: Served, tmp_path: Path
) -> None:
    done = await api.call("POST", "/v1/store/backup", body={"name": "a.db"}, status=201)
    assert done == {"path": str(tmp_path / "backups" / "a.db"), "bytes": 5}
    assert (await api.call("POST", "/v1/store/backup", body={"name": "a.db"}, status=409))[
        "code"
    ] == "exists"
    assert (await api.call("POST", "/v1/store/backup", status=201))["bytes"] == 5
    for name in ("../a.db", "/etc/x", "", ".hidden", "a/b"):
        problem = await api.call("POST", "/v1/store/backup", body={"name": name}, status=422)
        assert problem["field"] == "name"


async def test_backup_without_a_folder_is_refused() -> None:
    async with served(MemoryFront()) as api:
        problem = await api.call("POST", "/v1/store/backup", status=409)
        assert problem["code"] == "backups_off"


async def test_health_and_readiness(api: Served) -> None:
    health = await api.call("GET", "/v1/health")
    assert (health["ready"], health["epoch"]) == (True, 7)
    await api.call("GET", "/livez", status=204)
    await api.call("GET", "/healthz", status=204)
    await api.call("GET", "/readyz")
    api.front.is_ready = False
    assert (await api.call("GET", "/readyz", status=503))["broker"] == "down"
    await api.call("GET", "/v1/health")


@pytest.fixture
def package(api: Served, tmp_path: Path) -> bytes:
    root = tmp_path / "package"
    root.mkdir()
    content = bytes(range(256)) * 3000
    (root / "model.onnx").write_bytes(content)
    (root / "empty").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    api.front.model_root = root
    api.front.manifests[DIGEST] = b'{"files": {}}'
    return content


@pytest.mark.usefixtures("package")
async def test_manifest_is_served_byte_for_byte(api: Served) -> None:
    assert (await api.call("GET", "/v1/packages"))[0]["name"] == "noop"
    async with api.session.get(api.url(f"/v1/models/{DIGEST}/manifest")) as response:
        assert await response.read() == b'{"files": {}}'
    await api.call("GET", f"/v1/models/{'b' * 64}/manifest", status=404)


@pytest.mark.usefixtures("package")
async def test_signed_metadata_is_served_byte_for_byte(api: Served, tmp_path: Path) -> None:
    (tmp_path / "package" / "timestamp.json").write_bytes(b'{"signed": 1}')
    async with api.session.get(api.url("/v1/metadata/timestamp.json")) as response:
        assert await response.read() == b'{"signed": 1}'
    await api.call("GET", "/v1/metadata/9.root.json", status=404)
    await api.call("GET", "/v1/metadata/..%2f..%2fsecret", status=404)


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=700000-", 700_000, 768_000),
        ("bytes=-5", 767_995, 768_000),
        ("bytes=767999-9999999", 767_999, 768_000),
    ],
)
async def test_file_ranges(api: Served, package: bytes, asked: str, first: int, stop: int) -> None:
    url = api.url(f"/v1/models/{DIGEST}/files/model.onnx")
    async with api.session.get(url, headers={"Range": asked}) as response:
        assert response.status == 206
        assert response.headers["content-range"] == f"bytes {first}-{stop - 1}/768000"
        assert await response.read() == package[first:stop]


async def test_whole_file_resume_with_if_range_and_bad_ranges(api: Served, package: bytes) -> None:
    url = api.url(f"/v1/models/{DIGEST}/files/model.onnx")
    async with api.session.get(url) as response:
        assert (response.status, response.headers["accept-ranges"]) == (200, "bytes")
        tag = response.headers["etag"]
        assert await response.read() == package
    for if_range, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=5-", "If-Range": if_range}
        async with api.session.get(url, headers=headers) as response:
            assert response.status == status
            await response.read()
    async with api.session.get(url, headers={"Range": "bytes=768000-"}) as response:
        assert response.status == 416
        assert (await response.json())["field"] == "Range"
    for ignored in ("bytes=9-5", "lines=1-2", "bytes=1-2,4-5", "bytes=-"):
        async with api.session.get(url, headers={"Range": ignored}) as response:
            assert response.status == 200
            assert len(await response.read()) == len(package)


@pytest.mark.usefixtures("package")
async def test_empty_missing_and_outside_files(api: Served) -> None:
    base = f"/v1/models/{DIGEST}/files"
    async with api.session.get(api.url(f"{base}/empty")) as response:
        assert (response.status, await response.read()) == (200, b"")
    for name in ("none", "../secret", "..%2fsecret", "%2fetc%2fpasswd"):
        async with api.session.get(api.url(f"{base}/{name}")) as response:
            assert response.status == 404, name
            assert (await response.json())["code"] == "not_found"
