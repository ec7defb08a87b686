"""Objects in a bucket: the same promises over a real server that speaks S3 (moto's)."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from pathlib import Path

import aiohttp
import obstore
import pytest
from objects_house import DAY_MS, TUS, ObjectsHouse, digest_of, open_house
from obstore.store import S3Store

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.dispatcher.objects_kept import kept_at

DATA = os.urandom(6_000_001)  # over the 5 MiB from which S3 takes an object in parts
NAME = digest_of(DATA)
_LISTENS = re.compile(r"Running on (http://127\.0\.0\.1:\d+)")


class BucketServer:
    """A process that speaks S3."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := _LISTENS.search(line):
                self.url = found[1]
                return
        raise AssertionError("the server said no address")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    running = BucketServer()
    for name, value in {
        "AWS_ENDPOINT_URL": running.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests-only",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
async def in_bucket(
    server: BucketServer, tmp_path: Path, broker: MemoryBroker, models: Path
) -> AsyncIterator[ObjectsHouse]:
    async with aiohttp.ClientSession() as session, session.put(f"{server.url}/objects") as made:
        assert made.status == HTTPStatus.OK
    kept = kept_at("s3://objects/edge")
    async with open_house(tmp_path, broker, models, kept=kept) as opened:
        yield opened


def _names() -> list[str]:
    return [
        meta["path"]
        for page in obstore.list(S3Store("objects", client_options={"allow_http": True}))
        for meta in page
    ]


async def test_an_object_lies_in_the_bucket_and_goes_from_it(in_bucket: ObjectsHouse) -> None:
    await in_bucket.upload(DATA)
    assert await asyncio.to_thread(_names) == [f"edge/default/{NAME}"]
    assert (await in_bucket.ask("GET", f"/objects/{NAME}")).body == DATA
    part = await in_bucket.ask("GET", f"/objects/{NAME}", Range="bytes=5999990-")
    assert (part.status, part.body) == (HTTPStatus.PARTIAL_CONTENT, DATA[5_999_990:])
    in_bucket.clock.ahead_ms = DAY_MS + 60_000
    await in_bucket.objects.sweep()
    assert await asyncio.to_thread(_names) == []


async def test_a_bucket_that_is_away_is_a_503_and_loses_nothing(
    in_bucket: ObjectsHouse, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await in_bucket.upload(b"was there before")
    server.close()
    monkeypatch.setattr(limits, "OBJECT_STORE_ANSWER_S", 1.0)
    away = await in_bucket.ask("GET", f"/objects/{digest_of(b'was there before')}")
    assert (away.status, away.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable")
    await in_bucket.create(b"new")
    unkept = await in_bucket.patch(digest_of(b"new"), 0, b"new")
    assert (unkept.status, unkept.code) == (HTTPStatus.SERVICE_UNAVAILABLE, "objects_unavailable")
    assert (in_bucket.spool / f"default.{digest_of(b'new')}").read_bytes() == b"new"
    gone = await in_bucket.ask("DELETE", f"/objects/{digest_of(b'was there before')}", **TUS)
    assert gone.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert in_bucket.service.counters["objects_unavailable"] >= 2


@pytest.mark.parametrize("url", ["ftp://host/x", "s3://", "file://host/x", "http://host"])
def test_an_address_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        kept_at(url)
