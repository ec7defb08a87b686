"""Embeddings that somebody waits for: each text an interactive request, all of them at once.

Nothing of them is written down; with the first failure, and when the caller leaves, the others are
given up and their cars stop.
"""

import asyncio
from http import HTTPStatus

from edge_runtime.contract.http import ItemInput
from edge_runtime.dispatcher.api.failures import problem_of_failed
from edge_runtime.dispatcher.api.openai.lines import Line
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.interactive import InteractiveFailure
from edge_runtime.dispatcher.service import DispatcherService


class LiveEmbeddings:
    """Asks cars for vectors, over one running dispatcher."""

    def __init__(self, service: DispatcherService) -> None:
        self._service = service

    async def __call__(self, tenant: str, line: Line) -> list[bytes]:
        """The outputs (MessagePack) of a request's items, in order. Raises `Refusal`."""
        package = self._service.shelf.find(line.model)
        if package is None:
            message = f"no model {line.model[:80]!r}; see GET /v1/models"
            raise refusal(HTTPStatus.NOT_FOUND, "model_not_found", message, field="model")
        requirement = Requirement(model=package.digest, task=package.spec.task)

        async def one(item: ItemInput) -> bytes:
            answered = await self._service.interactive.infer(
                tenant=tenant,
                requirement=requirement,
                item=(item.text or "").encode(),
                media_type=item.media_type,
                reference_ms=package.spec.reference_ms,
            )
            return answered.output

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(item)) for item in line.items]
        except* InteractiveFailure as failures:
            failure = failures.exceptions[0]
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            raise Refusal(problem_of_failed(failure.failed, "input")) from None
        return [task.result() for task in asked]
