"""Having packages on allowed networks only, and losing those that are not published any more."""

import asyncio
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from edge_runtime.contract.package import Package, PackageFault, PackageRefused
from edge_runtime.vehicle.core.events import Event, ModelFailed, ModelFault, ModelReady
from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.supply import Supply

DIGEST = "a" * 64


class ScriptedStore:
    """Answers by host: a package, or what is wrong."""

    def __init__(self, answers: dict[str, Package | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.broken_off = 0

    def digests(self) -> Iterable[str]:
        return (DIGEST,)

    def get(self, digest: str) -> Package | None:
        del digest
        return None

    def using(self, digest: str) -> AbstractContextManager[None]:
        del digest
        return nullcontext()

    async def fetch(self, digest: str, base_url: str) -> Package:
        del digest
        self.asked.append(base_url)
        answer = self.answers[base_url]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def check(self, base_url: str) -> tuple[str, ...]:
        self.asked.append(base_url)
        answer = self.answers.get(base_url)
        if isinstance(answer, Exception):
            raise answer
        return (DIGEST,)

    def take_received_bytes(self) -> int:
        return 0

    def break_off(self) -> None:
        self.broken_off += 1


class Rig:
    def __init__(self, answers: dict[str, Package | Exception]) -> None:
        self.store = ScriptedStore(answers)
        self.told: list[Event] = []
        self.is_allowed = True
        self.urls = list(answers)
        self.supply = Supply(
            self.store,
            vehicle="car-1",
            urls=lambda: self.urls,
            tell=self.told.append,
            is_network_allowed=lambda: self.is_allowed,
        )


def refusal() -> PackageRefused:
    return PackageRefused(PackageFault.BAD_REPOSITORY, "signed by 0/1 keys")


async def test_a_host_that_lies_does_not_keep_the_next_from_being_asked(tmp_path: Path) -> None:
    package = write_synthetic("noop", tmp_path)
    rig = Rig({"http://evil": refusal(), "http://good": package})
    await rig.supply.have(DIGEST)
    assert rig.told == [ModelReady(DIGEST)]
    assert rig.store.asked == ["http://evil", "http://good"]


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({"http://a": refusal(), "http://b": refusal()}, ModelFault.INVALID),
        ({"http://a": refusal(), "http://b": OSError("down")}, ModelFault.UNAVAILABLE),
        ({"http://a": OSError("down"), "http://b": refusal()}, ModelFault.UNAVAILABLE),
    ],
)
async def test_a_package_is_wrong_only_where_every_host_was_asked(
    answers: dict[str, Package | Exception], fault: ModelFault
) -> None:
    rig = Rig(answers)
    await rig.supply.have(DIGEST)
    (told,) = rig.told
    assert isinstance(told, ModelFailed)
    assert told.fault is fault


async def test_a_host_that_introduces_itself_is_waited_for(tmp_path: Path) -> None:
    rig = Rig({"http://good": write_synthetic("noop", tmp_path)})
    rig.urls = []
    having = asyncio.create_task(rig.supply.have(DIGEST))
    await asyncio.sleep(0)
    rig.urls = ["http://good"]
    rig.supply.heard_of_hosts()
    await having
    assert rig.told == [ModelReady(DIGEST)]


def test_downloads_are_broken_off_where_they_are_not_allowed_any_more() -> None:
    rig = Rig({})
    rig.supply.look_at_network()
    assert rig.store.broken_off == 0
    rig.is_allowed = False
    rig.supply.look_at_network()
    assert rig.store.broken_off == 1


async def test_what_is_not_published_any_more_is_told() -> None:
    rig = Rig({"http://evil": refusal(), "http://down": OSError("down"), "http://good": refusal()})
    del rig.store.answers["http://good"]
    await rig.supply.check()
    (told,) = rig.told
    assert told == ModelFailed(DIGEST, ModelFault.INVALID, "it is not published any more")
    assert rig.store.asked == ["http://evil", "http://down", "http://good"]
