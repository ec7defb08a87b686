"""Objects over HTTP: uploads that break off and go on, ranges, and everything that is refused."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest
from objects_house import (
    DAY_MS,
    OFFSET_TYPE,
    TUS,
    ObjectsHouse,
    digest_of,
    eventually,
    lowered,
    open_house,
)

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest, Quota
from edge_runtime.dispatcher.front import Refusal

DATA = os.urandom(700_001)
NAME = digest_of(DATA)


async def test_what_was_uploaded_is_read_whole_and_by_ranges(house: ObjectsHouse) -> None:
    assert await house.upload(DATA) == NAME
    whole = await house.ask("GET", f"/objects/{NAME}")
    assert (whole.status, whole.body) == (HTTPStatus.OK, DATA)
    assert whole.headers["content-length"] == str(len(DATA))
    part = await house.ask("GET", f"/objects/{NAME}", Range="bytes=600000-")
    assert (part.status, part.body) == (HTTPStatus.PARTIAL_CONTENT, DATA[600_000:])
    assert part.headers["content-range"] == f"bytes 600000-700000/{len(DATA)}"
    last = await house.ask("GET", f"/objects/{NAME}", Range="bytes=-5")
    assert last.body == DATA[-5:]
    changed = await house.ask("GET", f"/objects/{NAME}", Range="bytes=5-9", If_Range='"other"')
    assert (changed.status, changed.body) == (HTTPStatus.OK, DATA)
    beyond = await house.ask("GET", f"/objects/{NAME}", Range=f"bytes={len(DATA)}-")
    assert beyond.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
    assert list(house.spool.iterdir()) == []


async def test_an_upload_that_was_cut_goes_on_where_it_ended(house: ObjectsHouse) -> None:
    await house.create(DATA)
    host, port = house.server.host, house.server.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        (
            f"PATCH /objects/{NAME} HTTP/1.1\r\nHost: {host}:{port}\r\nTus-Resumable: 1.0.0\r\n"
            f"Upload-Offset: 0\r\nContent-Type: {OFFSET_TYPE}\r\n"
            f"Content-Length: {len(DATA)}\r\n\r\n"
        ).encode()
        + DATA[:300_000]
    )
    await writer.drain()
    await eventually(lambda: house.objects._busy)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\0" * 8)
    writer.close()
    del reader
    await eventually(lambda: not house.objects._busy)
    offset = await house.offset(NAME)
    assert 0 < offset <= 300_000
    elsewhere = await house.patch(NAME, 0, DATA)
    assert (elsewhere.status, elsewhere.code) == (HTTPStatus.CONFLICT, "wrong_offset")
    done = await house.patch(NAME, offset, DATA[offset:])
    assert done.status == HTTPStatus.NO_CONTENT
    assert (await house.ask("GET", f"/objects/{NAME}")).body == DATA


async def test_a_restart_of_the_dispatcher_forgets_no_byte(
    tmp_path: Path, broker: MemoryBroker, models: Path
) -> None:
    async with open_house(tmp_path, broker, models) as first:
        other = await first.upload(b"another")
        ticket = first.path_for_cars("default", other)
        await first.create(DATA)
        await first.patch(NAME, 0, DATA[:1000])
        (first.spool / "left-by-a-crash").write_bytes(b"x")
    async with open_house(tmp_path, broker, models) as second:
        assert [path.name for path in second.spool.iterdir()] == [f"default.{NAME}"]
        assert await second.offset(NAME) == 1000
        await second.patch(NAME, 1000, DATA[1000:])
        assert (await second.ask("GET", f"/objects/{NAME}")).body == DATA
        assert (await second.ask("GET", ticket)).body == b"another"


async def test_a_crash_before_the_end_was_told_is_mended_by_asking(house: ObjectsHouse) -> None:
    await house.create(DATA)
    (house.spool / f"default.{NAME}").write_bytes(DATA)
    assert await house.offset(NAME) == len(DATA)
    assert (await house.ask("GET", f"/objects/{NAME}")).body == DATA


async def test_bytes_with_another_hash_are_not_kept(house: ObjectsHouse) -> None:
    await house.create(DATA)
    wrong = await house.patch(NAME, 0, DATA[:-1] + b"!")
    assert (wrong.status, wrong.code) == (HTTPStatus.UNPROCESSABLE_ENTITY, "wrong_hash")
    assert (await house.ask("GET", f"/objects/{NAME}")).status == HTTPStatus.NOT_FOUND
    assert (await house.ask("HEAD", f"/objects/{NAME}", **TUS)).status == HTTPStatus.NOT_FOUND
    assert await house.upload(DATA) == NAME


async def test_more_bytes_than_announced_are_refused(house: ObjectsHouse) -> None:
    await house.create(DATA)
    await house.patch(NAME, 0, DATA[:10])

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield DATA[:100_000]

    over = await house.patch(NAME, 10, endless())
    assert (over.status, over.code) == (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large")
    assert await house.offset(NAME) == 10
    again = await house.create(DATA, length=5)
    assert (again.status, again.code) == (HTTPStatus.CONFLICT, "other_length")


async def test_one_writer_at_a_time(house: ObjectsHouse) -> None:
    await house.create(DATA)
    may_end = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await may_end.wait()
        yield DATA[1000:]

    first = asyncio.create_task(house.patch(NAME, 0, slow()))
    await eventually(lambda: house.objects._busy)
    second = await house.patch(NAME, 0, DATA)
    may_end.set()
    assert (second.status, second.code) == (HTTPStatus.LOCKED, "locked")
    assert (await first).status == HTTPStatus.NO_CONTENT


async def test_nobody_hears_of_all_bytes_before_they_are_proven(house: ObjectsHouse) -> None:
    data = os.urandom(limits.UPLOAD_WRITE_BYTES)
    name = digest_of(data)
    await house.create(data)
    may_end = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield data
        await may_end.wait()

    first = asyncio.create_task(house.patch(name, 0, slow()))
    await eventually(lambda: [path.stat().st_size for path in house.spool.iterdir()] == [len(data)])
    looked = await house.ask("HEAD", f"/objects/{name}", **TUS)
    begun = await house.create(data)
    may_end.set()
    assert (looked.status, begun.status) == (HTTPStatus.LOCKED, HTTPStatus.LOCKED)
    assert (await first).status == HTTPStatus.NO_CONTENT
    assert await house.offset(name) == len(data)


async def test_a_silent_upload_is_given_up(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create(DATA)
    never = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        yield DATA[:1000]
        await never.wait()

    with lowered(monkeypatch, UPLOAD_SILENCE_S=0.2):
        async with asyncio.timeout(20):
            answer = await house.patch(NAME, 0, silent())
    assert (answer.status, answer.code) == (HTTPStatus.REQUEST_TIMEOUT, "too_slow")
    assert await house.offset(NAME) == 1000


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Tus-Resumable": "0.2.2"}, 412, "Tus-Resumable"),
        ({"Upload-Length": "many"}, 422, "Upload-Length"),
        ({"Upload-Length": "-1"}, 422, "Upload-Length"),
        ({"Upload-Length": "0"}, 422, "Upload-Length"),
        ({"Upload-Length": str(limits.OBJECT_MAX_BYTES + 1)}, 413, "Upload-Length"),
        ({"Upload-Metadata": "sha256 ????"}, 422, "Upload-Metadata"),
        ({"Upload-Metadata": "sha256 QUJD"}, 422, "Upload-Metadata"),
        ({"Upload-Metadata": "a," * 4000}, 422, "Upload-Metadata"),
        ({"X-Tenant": "../../etc"}, 422, "X-Tenant"),
    ],
)
async def test_a_wrong_creation_names_its_header(
    house: ObjectsHouse, headers: dict[str, str], status: int, field: str
) -> None:
    answer = await house.create(DATA, **headers)
    assert answer.status == status, answer
    assert f'"field":"{field}"' in answer.body.decode()
    assert len(house.objects) == 0


async def test_paths_that_name_no_object(house: ObjectsHouse) -> None:
    for method, path in (
        ("GET", "/objects/../store.db"),
        ("GET", f"/objects/{NAME}/x"),
        ("GET", f"/objects/{NAME}"),
        ("GET", "/objects/for-cars/default/00/xyz"),
        ("POST", f"/objects/for-cars/default/00/{NAME}"),
    ):
        assert (await house.ask(method, path)).status == HTTPStatus.NOT_FOUND, (method, path)
    put = await house.ask("PUT", f"/objects/{NAME}", DATA)
    assert put.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert put.headers["allow"] == "GET, HEAD, PATCH, DELETE, OPTIONS"
    listed = await house.ask("GET", "/objects")
    assert (listed.status, listed.headers["allow"]) == (405, "POST, OPTIONS")
    typed = await house.patch(NAME, 0, b"x", **{"Content-Type": "text/plain"})
    assert typed.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    options = await house.ask("OPTIONS", "/objects")
    assert options.headers["tus-version"] == "1.0.0"
    assert options.headers["tus-max-size"] == str(limits.OBJECT_MAX_BYTES)


async def test_another_tenant_has_nothing_of_it(house: ObjectsHouse) -> None:
    await house.upload(DATA, **{"X-Tenant": "acme"})
    other = {"X-Tenant": "other"}
    assert (await house.ask("GET", f"/objects/{NAME}", **other)).status == HTTPStatus.NOT_FOUND
    deleted = await house.ask("DELETE", f"/objects/{NAME}", **TUS, **other)
    assert deleted.status == HTTPStatus.NOT_FOUND
    request = JobRequest(model="noop", items=(ItemInput(ref=NAME),))
    async with house.client("other") as client:
        refused = [result async for result in client.submit_many([request])]
    (only,) = refused
    assert only.problem is not None
    assert (only.problem.code, only.problem.field) == ("unknown_object", "items[0].ref")
    url = house.path_for_cars("acme", NAME)
    assert (await house.ask("GET", url)).body == DATA
    assert (await house.ask("GET", url.replace("/acme/", "/other/"))).status == 404
    _, _, _, tenant, ticket, name = url.split("/")
    forged = f"/objects/for-cars/{tenant}/{ticket[:-1]}{'0' if ticket[-1] != '0' else '1'}/{name}"
    assert (await house.ask("GET", forged)).status == HTTPStatus.NOT_FOUND


async def test_with_accounts_a_key_or_a_ticket_is_needed(house: ObjectsHouse) -> None:
    async with house.client() as nobody:
        operator = (await nobody.create_key("ops", is_operator=True)).key
    async with house.client(key=operator) as client:
        key = (await client.create_key("acme")).key
    mine = {"X-API-Key": key}
    assert (await house.create(DATA)).status == HTTPStatus.UNAUTHORIZED
    await house.upload(DATA, **mine)
    assert (await house.ask("GET", f"/objects/{NAME}")).status == HTTPStatus.UNAUTHORIZED
    assert (await house.ask("GET", f"/objects/{NAME}", **mine)).body == DATA
    assert (await house.ask("GET", house.path_for_cars("acme", NAME))).body == DATA


async def test_a_tenants_quota_of_bytes_counts_objects(house: ObjectsHouse) -> None:
    async with house.client() as client:
        await client.set_quota("default", Quota(bytes=len(DATA) + 10))
        await house.upload(DATA)
        over = await house.create(b"x" * 11)
        assert (over.status, over.code) == (HTTPStatus.TOO_MANY_REQUESTS, "quota_exceeded")
        never = await house.create(b"x" * (len(DATA) + 11))
        assert (never.status, never.code) == (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "over_quota")
        await house.ask("DELETE", f"/objects/{NAME}", **TUS)
        assert (await house.create(b"x" * 11)).status == HTTPStatus.CREATED


async def test_there_is_an_end_to_objects_and_to_the_disk(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lowered(monkeypatch, STORE_RESERVE_BYTES=1 << 60):
        full = await house.create(DATA)
    assert (full.status, full.code) == (HTTPStatus.INSUFFICIENT_STORAGE, "disk_full")
    with lowered(monkeypatch, OBJECTS_MAX=0):
        many = await house.create(DATA)
    assert (many.status, many.code) == (HTTPStatus.INSUFFICIENT_STORAGE, "objects_full")
    with lowered(monkeypatch, OBJECT_UPLOADS_MAX=0):
        busy = await house.create(DATA)
    assert (busy.status, busy.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "busy")
    assert len(house.objects) == 0


async def test_a_disk_that_fills_up_meanwhile_ends_the_upload_where_it_was(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.create(DATA)
    await house.patch(NAME, 0, DATA[:1000])
    spooled = house.spool / f"default.{NAME}"
    # A full device under the file's name: every write to it fails with ENOSPC, for root too.
    spooled.rename(spooled.with_suffix(".aside"))
    spooled.symlink_to("/dev/full")
    monkeypatch.setattr("edge_runtime.dispatcher.objects._size_of", lambda _path: 1000)
    full = await house.patch(NAME, 1000, DATA[1000:])
    assert (full.status, full.code) == (HTTPStatus.INSUFFICIENT_STORAGE, "disk_full")
    monkeypatch.undo()
    spooled.with_suffix(".aside").replace(spooled)
    assert await house.offset(NAME) == 1000
    assert (await house.patch(NAME, 1000, DATA[1000:])).status == HTTPStatus.NO_CONTENT


async def test_objects_that_no_job_uses_go_after_a_day(house: ObjectsHouse) -> None:
    await house.upload(DATA)
    await house.create(b"never finished")
    house.clock.ahead_ms = DAY_MS - 60_000
    await house.objects.sweep()
    assert len(house.objects) == 2
    house.clock.ahead_ms = DAY_MS + 60_000
    await house.objects.sweep()
    assert len(house.objects) == 0
    assert [path for path in house.kept.rglob("*") if path.is_file()] == []
    assert list(house.spool.iterdir()) == []
    assert house.service.counters["objects_expired"] == 2
    assert (await house.ask("GET", f"/objects/{NAME}")).status == HTTPStatus.NOT_FOUND


async def test_objects_stay_as_long_as_their_jobs_and_no_longer(house: ObjectsHouse) -> None:
    await house.upload(DATA)
    async with house.client() as client:
        handle = client.submit("embed", [ItemInput(ref=NAME)])
        with pytest.raises(Exception, match="unknown_model"):
            await handle
        handle = client.submit("noop", [ItemInput(ref=NAME)], deadline_s=30 * 24 * 3600)
        await handle
        in_use = await house.ask("DELETE", f"/objects/{NAME}", **TUS)
        assert (in_use.status, in_use.code) == (HTTPStatus.CONFLICT, "in_use")
        house.clock.ahead_ms = 9 * DAY_MS
        await house.objects.sweep()
        assert (await house.ask("GET", f"/objects/{NAME}")).body == DATA
        await handle.delete()
        house.clock.ahead_ms += limits.OBJECT_LOOK_S * 1000 + 1
        await house.objects.sweep()
    assert (await house.ask("GET", f"/objects/{NAME}")).status == HTTPStatus.NOT_FOUND


async def test_an_object_of_more_jobs_than_it_remembers_stays_for_the_last(
    house: ObjectsHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.upload(DATA)
    until_ms = house.clock().utc_ms + 3 * DAY_MS
    with lowered(monkeypatch, OBJECT_JOBS_MAX=2):
        await house.objects.use("default", {f"gone{n}": [NAME, NAME] for n in range(3)}, until_ms)
    house.clock.ahead_ms = 2 * DAY_MS
    await house.objects.sweep()
    assert house.objects.find_whole("default", NAME).jobs == ("gone1", "gone2")
    house.clock.ahead_ms = 4 * DAY_MS
    await house.objects.sweep()
    with pytest.raises(Refusal):
        house.objects.find_whole("default", NAME)
