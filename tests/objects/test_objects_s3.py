"""Objects in a bucket: the same promises over real servers that speak S3."""

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TypeAlias

import pytest
from objects_buckets import (
    BucketServer,
    Kind,
    names_in_bucket,
    narrows,
    require,
    unfinished_in_bucket,
)
from objects_house import DAY_MS, TUS, ObjectsHouse, digest_of, open_house

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.dispatcher.objects_kept import kept_at

DATA = os.urandom(6_000_001)
NAME = digest_of(DATA)
URL = "s3://objects/edge"

MakeServer: TypeAlias = Callable[..., BucketServer]


@pytest.fixture
def make_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeServer]:
    """Servers that end with the test; the environment leads to the last."""
    made: list[BucketServer] = []

    def make(kind: Kind, **options: str) -> BucketServer:
        require(kind)
        made.append(BucketServer(kind, tmp_path / "bucket", **options))
        for name, value in made[-1].environment().items():
            monkeypatch.setenv(name, value)
        return made[-1].make()

    try:
        yield make
    finally:
        for server in made:
            server.kill()


@pytest.fixture(params=["juicefs", "moto"])
def server(request: pytest.FixtureRequest, make_server: MakeServer) -> BucketServer:
    return make_server(request.param)


@pytest.fixture
async def in_bucket(
    server: BucketServer,
    tmp_path: Path,
    broker: MemoryBroker,
    models: Path,
) -> AsyncIterator[ObjectsHouse]:
    assert server.port
    async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as opened:
        yield opened


async def _names() -> list[str]:
    return await asyncio.to_thread(names_in_bucket)


async def _upload_unkept(house: ObjectsHouse, data: bytes) -> None:
    """An upload that the bucket does not take: it is told so, and stays whole in the spool."""
    await house.create(data)
    answer = await house.patch(digest_of(data), 0, io.BytesIO(data))
    assert (answer.status, answer.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable")
    assert (house.spool / f"default.{digest_of(data)}").read_bytes() == data


async def _require_kept(house: ObjectsHouse, data: bytes) -> None:
    """One look brings a whole upload to its end."""
    assert await house.offset(digest_of(data)) == len(data)
    assert (await house.ask("GET", f"/objects/{digest_of(data)}")).body == data
    assert not (house.spool / f"default.{digest_of(data)}").exists()


async def test_an_object_lies_in_the_bucket_and_goes_from_it(in_bucket: ObjectsHouse) -> None:
    await in_bucket.upload(DATA)
    assert await _names() == [f"edge/default/{NAME}"]
    assert (await in_bucket.ask("GET", f"/objects/{NAME}")).body == DATA
    part = await in_bucket.ask("GET", f"/objects/{NAME}", Range="bytes=5999990-")
    assert (part.status, part.body) == (HTTPStatus.PARTIAL_CONTENT, DATA[5_999_990:])
    in_bucket.clock.ahead_ms = DAY_MS + 60_000
    await in_bucket.objects.sweep()
    assert await _names() == []


async def test_an_object_that_is_gone_from_the_bucket_can_still_be_forgotten(
    in_bucket: ObjectsHouse,
) -> None:
    await in_bucket.upload(b"kept")
    await kept_at(URL).delete(f"default/{digest_of(b'kept')}")
    gone = await in_bucket.ask("GET", f"/objects/{digest_of(b'kept')}")
    assert (gone.status, gone.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable")
    forgotten = await in_bucket.ask("DELETE", f"/objects/{digest_of(b'kept')}", **TUS)
    assert forgotten.status == HTTPStatus.NO_CONTENT
    assert await in_bucket.upload(b"kept")
    assert await _names() == [f"edge/default/{digest_of(b'kept')}"]


async def test_a_bucket_that_is_away_is_a_503_and_loses_nothing(
    in_bucket: ObjectsHouse, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_bucket.upload(b"was there before")
    server.kill()
    monkeypatch.setattr(limits, "OBJECT_STORE_ANSWER_S", 1.0)
    away = await in_bucket.ask("GET", f"/objects/{digest_of(b'was there before')}")
    assert (away.status, away.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable")
    await _upload_unkept(in_bucket, b"new")
    gone = await in_bucket.ask("DELETE", f"/objects/{digest_of(b'was there before')}", **TUS)
    assert gone.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert in_bucket.service.counters["objects_unavailable"] >= 2


async def test_a_bucket_that_is_missing_is_a_503_and_loses_nothing(
    server: BucketServer, tmp_path: Path, broker: MemoryBroker, models: Path
) -> None:
    assert server.port
    async with open_house(tmp_path, broker, models, kept=kept_at("s3://elsewhere/edge")) as house:
        await _upload_unkept(house, b"for nowhere")
    async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
        await _require_kept(house, b"for nowhere")


async def test_a_server_killed_half_through_an_object_shows_nothing_of_it_and_gets_it_whole_later(
    make_server: MakeServer,
    tmp_path: Path,
    broker: MemoryBroker,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = make_server("juicefs")
    async with narrows(server.port, len(DATA) // 2) as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
            await house.upload(b"was there before")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_upload_unkept(house, DATA))
                await asyncio.wait_for(way.is_blocked.wait(), 20)
                server.kill()
                way.open()
            await asyncio.to_thread(server.start)
            assert await asyncio.to_thread(unfinished_in_bucket, server.url) == 0
            assert await _names() == [f"edge/default/{digest_of(b'was there before')}"]
            await _require_kept(house, DATA)
            assert (await house.ask("GET", f"/objects/{digest_of(b'was there before')}")).body
            assert len(await _names()) == 2


async def test_a_server_that_stumbles_half_through_an_object_is_asked_again(
    make_server: MakeServer,
    tmp_path: Path,
    broker: MemoryBroker,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = make_server("juicefs")
    async with narrows(server.port, len(DATA) // 2) as way:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{way.port}")
        async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(house.upload(DATA))
                await asyncio.wait_for(way.is_blocked.wait(), 20)
                way.cut()
            assert await _names() == [f"edge/default/{NAME}"]
            assert (await house.ask("GET", f"/objects/{NAME}")).body == DATA


async def test_wrong_credentials_reach_nothing_and_lose_nothing(
    make_server: MakeServer,
    tmp_path: Path,
    broker: MemoryBroker,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_server("juicefs")
    async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
        name = await house.upload(b"was there before")
    with monkeypatch.context() as forged:
        forged.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
        refused = kept_at(URL)
    async with open_house(tmp_path, broker, models, kept=refused) as house:
        for asked in (
            await house.ask("GET", f"/objects/{name}"),
            await house.ask("DELETE", f"/objects/{name}", **TUS),
        ):
            assert asked.status == HTTPStatus.SERVICE_UNAVAILABLE
            assert asked.code == "objects_unavailable"
            assert b"Signature" not in asked.body
        await _upload_unkept(house, b"new")
    assert await _names() == [f"edge/default/{name}"]
    async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
        await _require_kept(house, b"new")
        assert (await house.ask("GET", f"/objects/{name}")).body == b"was there before"


async def test_a_full_store_keeps_what_it_has_and_gets_the_rest_when_there_is_room(
    make_server: MakeServer, tmp_path: Path, broker: MemoryBroker, models: Path
) -> None:
    server = make_server("juicefs", room="4M")
    async with open_house(tmp_path, broker, models, kept=kept_at(URL)) as house:
        small = await house.upload(b"was there before")
        await _upload_unkept(house, DATA)
        assert await _names() == [f"edge/default/{small}"]
        assert (await house.ask("GET", f"/objects/{small}")).body == b"was there before"
        await asyncio.to_thread(server.make_room)
        await _require_kept(house, DATA)


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "file://host/x", "http://host"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        kept_at(url)
