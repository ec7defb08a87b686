"""What tests of objects share: a real dispatcher with a store of objects, and a tus client."""

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import aiohttp
import msgspec
import pytest

from edge_runtime.bus import BusSettings, MemoryBroker, MemoryBus
from edge_runtime.client import EdgeClient
from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.dispatcher.api import HttpServer, build_app, open_door, serve
from edge_runtime.dispatcher.api.objects import ObjectRoutes
from edge_runtime.dispatcher.api.oip import OpenInference
from edge_runtime.dispatcher.chores import Chores
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.lending import Lender
from edge_runtime.dispatcher.objects import Objects
from edge_runtime.dispatcher.objects_kept import KeptObjects, kept_in_folder
from edge_runtime.dispatcher.service import DispatcherService, DispatcherSettings, system_clock
from edge_runtime.dispatcher.storage import SqliteStore

TUS = {"Tus-Resumable": "1.0.0"}
OFFSET_TYPE = "application/offset+octet-stream"
DAY_MS = 24 * 3600 * 1000


@dataclass
class Ahead:
    """The system's clock, and how far a test has set it ahead."""

    ahead_ms: int = 0

    def __call__(self) -> Now:
        now = system_clock()
        return Now(now.boot_ns, now.utc_ms + self.ahead_ms)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(msgspec.json.decode(self.body)["code"])


@dataclass
class ObjectsHouse:
    folder: Path
    service: DispatcherService
    objects: Objects
    lender: Lender
    server: HttpServer
    clock: Ahead
    session: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def spool(self) -> Path:
        return self.folder / "objects" / "uploads"

    @property
    def kept(self) -> Path:
        return self.folder / "objects" / "kept"

    def client(self, tenant: str = "default", key: str | None = None) -> EdgeClient:
        return EdgeClient(self.server.url, tenant, api_key=key, unreachable_after_s=5.0)

    async def ask(self, method: str, path: str, data: object = None, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, self.server.url + path, data=data, headers={**self.headers, **named}
        ) as response:
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, lower, await response.read())

    async def create(
        self, data: bytes, length: int | None = None, place: str = "/objects", **headers: str
    ) -> Answer:
        sha256 = base64.b64encode(digest_of(data).encode()).decode()
        wanted = {
            **TUS,
            "Upload-Length": str(len(data) if length is None else length),
            "Upload-Metadata": f"filename {base64.b64encode(b'x').decode()},sha256 {sha256}",
            **headers,
        }
        return await self.ask("POST", place, **wanted)

    async def patch(
        self, sha256: str, offset: int, data: object, place: str = "/objects", **headers: str
    ) -> Answer:
        wanted = {**TUS, "Upload-Offset": str(offset), "Content-Type": OFFSET_TYPE, **headers}
        return await self.ask("PATCH", f"{place}/{sha256}", data, **wanted)

    async def offset(self, sha256: str, **headers: str) -> int:
        answer = await self.ask("HEAD", f"/objects/{sha256}", **TUS, **headers)
        assert answer.status == HTTPStatus.OK, answer
        return int(answer.headers["upload-offset"])

    async def upload(self, data: bytes, **headers: str) -> str:
        """The name of an object that was uploaded to its end."""
        created = await self.create(data, **headers)
        assert created.status == HTTPStatus.CREATED, created
        assert created.headers["location"] == f"/objects/{digest_of(data)}"
        patched = await self.patch(digest_of(data), 0, io.BytesIO(data), **headers)
        assert patched.status == HTTPStatus.NO_CONTENT, patched
        assert patched.headers["upload-offset"] == str(len(data))
        return digest_of(data)

    async def put_output(self, place: str, data: bytes) -> int:
        """The status of an output's upload to its end; OK where it was there already."""
        begun = await self.create(data, place=place)
        if begun.status != HTTPStatus.CREATED:
            return begun.status
        offset = int(begun.headers["upload-offset"])
        if offset == len(data):
            return HTTPStatus.OK
        return (await self.patch(digest_of(data), offset, io.BytesIO(data), place)).status

    def path_for_cars(self, tenant: str, sha256: str) -> str:
        return self.objects.reference(tenant, sha256).url


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@asynccontextmanager
async def open_house(
    folder: Path,
    broker: MemoryBroker,
    models: Path,
    *,
    kept: KeptObjects | None = None,
    port: int = 0,
) -> AsyncIterator[ObjectsHouse]:
    """The same store and objects each time."""

    def open_bus(settings: BusSettings) -> MemoryBus:
        return MemoryBus(settings, broker)

    clock = Ahead()
    settings = DispatcherSettings("memory://", models_dir=models)
    store = SqliteStore(folder / "store.db")
    async with DispatcherService(settings, store, open_bus, clock) as service:
        door = await open_door(service)
        place = folder / "objects"
        objects = Objects(
            service.store,
            kept or kept_in_folder(place / "kept"),
            place / "uploads",
            quotas=door.quotas,
            clock=clock,
            counters=service.counters,
        )
        await objects.open()
        desk = FrontDesk(service, quotas=door.quotas, objects=objects)
        lender = Lender(door.quotas, service.counters)
        mounts = {
            "objects": ObjectRoutes(objects, lender, service.receive_outputs()),
            "v2": OpenInference(service, lender),
        }
        app = build_app(desk, door=door, mounts=mounts)
        server = await serve(app, port=port)
        service.announce(server.url)
        Chores(service).start()
        try:
            async with aiohttp.ClientSession() as session:
                yield ObjectsHouse(folder, service, objects, lender, server, clock, session)
        finally:
            await server.close()


async def eventually(condition: object, timeout_s: float = 20.0) -> None:
    """Wait for something that has no event of its own."""
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - these conditions have no event
            await asyncio.sleep(0.01)


@contextmanager
def lowered(monkeypatch: pytest.MonkeyPatch, **bounds: float) -> Iterator[None]:
    """Bounds that a test lowers so as to meet them."""
    with monkeypatch.context() as patched:
        for name, value in bounds.items():
            patched.setattr(limits, name, value)
        yield
