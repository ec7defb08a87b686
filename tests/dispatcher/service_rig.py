"""A running dispatcher for tests of its shell: service, desk, store and broker."""

import asyncio
from collections.abc import Callable

import msgspec

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import JobStatus, ResultEntry
from edge_runtime.contract.tensors import Tensor
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService


class House:
    """A running dispatcher with its desk, store and broker."""

    def __init__(self, service: DispatcherService, broker: MemoryBroker) -> None:
        self.service = service
        self.desk = FrontDesk(service)
        self.broker = broker

    async def until(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        """Wait for something that has no event of its own, without a guess of how long."""
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - these conditions have no event
                await asyncio.sleep(0.005)

    async def submit(self, items: int = 1, **fields: object) -> str:
        (answer,) = await self.desk.submit("t1", [job_request(items, **fields)])
        assert answer.status is not None, answer.problem
        return answer.status.job

    async def collect(self, job: str, cursor: int = 0) -> tuple[list[ResultEntry], JobStatus]:
        entries: list[ResultEntry] = []
        async with asyncio.timeout(20):
            async for page in self.desk.results("t1", job, cursor=cursor, follow=True):
                if isinstance(page, JobStatus):
                    return entries, page
                entries += page
        raise AssertionError("the stream ended without a status")


def tensor_item(values: int = 1) -> ItemInput:
    tensor = Tensor(name="x", datatype="FP32", shape=(values,), data=bytes(4 * values))
    return ItemInput(data=msgspec.msgpack.encode([tensor]))


def job_request(items: int = 1, **fields: object) -> JobRequest:
    return JobRequest(model="noop", items=(tensor_item(),) * items, **fields)  # type: ignore[arg-type]
