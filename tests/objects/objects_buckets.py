"""Servers that speak S3, for the tests of objects: each a process of its own, ended by its pid.

`juicefs` is a storage server that people run (its gateway is MinIO's code): it checks signatures,
knows which buckets there are, fills up, and finds what it stored again after a kill. `moto`
imitates S3 in memory and lets everybody in; it says what Amazon's own service says.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal, Self, TypeAlias

import boto3
import obstore
import pytest
from brokers import START_TIMEOUT_S, free_port
from obstore.store import S3Store

BUCKET = "objects"
ACCESS_KEY = "tests"
SECRET_KEY = "tests-only"  # noqa: S105 - a test's own
ROOMY = "256M"

Kind: TypeAlias = Literal["juicefs", "moto"]


@dataclass
class BucketServer:
    """A process that speaks S3 and can be killed, and started again on the same port."""

    kind: Kind
    folder: Path
    room: str = ROOMY
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, url: str | None = None) -> dict[str, str]:
        """What a dispatcher is given so as to find it."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def make(self) -> Self:
        """Start for the first time, with an empty bucket."""
        self.folder.mkdir()
        match self.kind:
            case "juicefs":
                # A volume is a bucket of its name.
                data = ("--storage", "file", "--bucket", f"{self.folder}/data/")
                sizes = ("--capacity", self.room, "--trash-days", "0")
                self._juicefs("format", *data, *sizes, self._catalogue, BUCKET)
                self.start()
            case "moto":
                self.start()
                ask = urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT")  # noqa: S310 - http
                with urllib.request.urlopen(ask, timeout=START_TIMEOUT_S):  # noqa: S310 - http
                    pass
        return self

    def start(self) -> Self:
        log_path = self.folder / "log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(), stdout=log, stderr=log, env=self._variables()
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"{self.kind} did not start: {log_path.read_text()[-2000:]}")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def make_room(self) -> None:
        """Let a full volume hold more; told to the server by a restart."""
        self.kill()
        self._juicefs("config", "--yes", "--capacity", ROOMY, self._catalogue)
        self.start()

    @property
    def _catalogue(self) -> str:
        return f"sqlite3://{self.folder}/catalogue.db"

    def _argv(self) -> list[str]:
        match self.kind:
            case "juicefs":
                nothing_elsewhere = (
                    *("--no-banner", "--no-usage-report", "--backup-meta", "0"),
                    *("--metrics", "127.0.0.1:0", "--log", f"{self.folder}/gateway.log"),
                    *("--cache-dir", f"{self.folder}/cache", "--cache-size", "16"),
                )
                address = f"127.0.0.1:{self.port}"
                program = [str(find_juicefs()), "--no-agent", "--no-color", "gateway"]
                return [*program, *nothing_elsewhere, self._catalogue, address]
            case "moto":
                return [
                    sys.executable,
                    "-m",
                    "moto.server",
                    "-H",
                    "127.0.0.1",
                    "-p",
                    str(self.port),
                ]

    def _variables(self) -> dict[str, str]:
        own = {"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY}
        return {**os.environ, **own, "HOME": str(self.folder)}

    def _juicefs(self, *arguments: str) -> None:
        argv = [str(find_juicefs()), "--quiet", "--no-color", *arguments]
        subprocess.run(
            argv, env=self._variables(), check=True, capture_output=True, timeout=START_TIMEOUT_S
        )

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=1):  # noqa: S310 - http
                return True
        except urllib.error.HTTPError as error:
            # Juicefs refuses who does not sign; while it starts, it says that it does.
            error.close()
            return error.code == HTTPStatus.FORBIDDEN
        except OSError:
            return False


def find_juicefs() -> Path | None:
    """The program that the package brings into the environment of these tests."""
    found = shutil.which("juicefs", path=sysconfig.get_path("scripts"))
    return None if found is None else Path(found)


def require(kind: Kind) -> None:
    """Skip without the server at home, fail in CI."""
    if kind != "juicefs" or find_juicefs() is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("juicefs is missing, and CI tests on it")
    pytest.skip("juicefs is not installed")


def names_in_bucket() -> list[str]:
    """Every whole object, by the environment's credentials."""
    store = S3Store(BUCKET, client_options={"allow_http": True})
    return sorted(meta["path"] for page in obstore.list(store) for meta in page)


def unfinished_in_bucket(url: str) -> int:
    """Uploads in parts that nobody ended: for these a bucket's owner pays until he looks."""
    client = boto3.client("s3", endpoint_url=url)
    with contextlib.closing(client):
        page = client.list_multipart_uploads(Bucket=BUCKET, Prefix="edge/default/")
    return len(page.get("Uploads", ()))


@dataclass
class Narrows:
    """A way to a port: so many bytes go through, both ways, and then none until it is opened."""

    target_port: int
    bytes_left: int
    port: int = 0
    is_blocked: asyncio.Event = field(default_factory=asyncio.Event)
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def open(self) -> None:
        self._open.set()

    def narrow(self, bytes_left: int) -> None:
        self.bytes_left = bytes_left
        self._open.clear()
        self.is_blocked.clear()

    def cut(self) -> None:
        """Break what is connected, and let everything through from now on."""
        for writer in self._writers:
            writer.transport.abort()
        self._open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            sides.append(up_writer)
            self._writers += sides
            tasks = [
                asyncio.create_task(self._copy(reader, up_writer)),
                asyncio.create_task(self._copy(up_reader, writer)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for side in sides:
            side.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self._open.is_set():
                now, data = data[: self.bytes_left], data[self.bytes_left :]
                self.bytes_left -= len(now)
                writer.write(now)
                await writer.drain()
                if self.bytes_left == 0:
                    self.is_blocked.set()
                    await self._open.wait()
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def narrows(target_port: int, bytes_left: int) -> AsyncIterator[Narrows]:
    """A running one; leave it after its clients."""
    way = Narrows(target_port, bytes_left)
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(way.serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    way.port = server.sockets[0].getsockname()[1]
    try:
        yield way
    finally:
        server.close()
        await server.wait_closed()
        # The library keeps connections for its next request.
        way.cut()
        if connections:
            await asyncio.wait_for(asyncio.gather(*connections), 10.0)
