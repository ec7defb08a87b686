"""Embeddings that somebody waits for: each text an interactive request, all of them at once.

Nothing of them is written down; with the first failure, and when the caller leaves, the others are
given up and their cars stop.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final

import msgspec

from edge_runtime.contract.http import ItemInput, Problem
from edge_runtime.dispatcher.api.openai.lines import Line
from edge_runtime.dispatcher.api.problems import refusal
from edge_runtime.dispatcher.core.interactive_parts import Failed, Why
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.interactive import InteractiveFailure
from edge_runtime.dispatcher.service import DispatcherService

_MS_PER_S: Final = 1000
_output: Final = msgspec.msgpack.Decoder()


class LiveEmbeddings:
    """Asks cars for vectors, over one running dispatcher."""

    def __init__(self, service: DispatcherService) -> None:
        self._service = service

    async def __call__(self, tenant: str, line: Line) -> list[Any]:
        """The decoded outputs of a request's items, in order. Raises `Refusal`."""
        package = self._service.shelf.find(line.model)
        if package is None:
            message = f"no model {line.model[:80]!r}; see GET /v1/models"
            raise refusal(HTTPStatus.NOT_FOUND, "model_not_found", message, field="model")
        requirement = Requirement(model=package.digest, task=package.spec.task)

        async def one(item: ItemInput) -> Any:
            answered = await self._service.interactive.infer(
                tenant=tenant,
                requirement=requirement,
                item=(item.text or "").encode(),
                media_type=item.media_type,
                reference_ms=package.spec.reference_ms,
            )
            return _output.decode(answered.output)

        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one(item)) for item in line.items]
        except* InteractiveFailure as failures:
            failure = failures.exceptions[0]
            while isinstance(failure, BaseExceptionGroup):
                failure = failure.exceptions[0]
            raise _refusal(failure.failed) from None
        return [task.result() for task in asked]


def _refusal(failed: Failed) -> Refusal:
    """Why there is no vector, in the terms of HTTP."""
    code = failed.why.value if failed.code is None else failed.code.value
    match failed.why:
        case Why.DEADLINE:
            status = HTTPStatus.GATEWAY_TIMEOUT
        case Why.NO_CAR | Why.OVERLOADED:
            status = HTTPStatus.SERVICE_UNAVAILABLE
        case Why.ITEM:
            is_input = failed.code is not None and failed.code.is_final
            status = HTTPStatus.BAD_REQUEST if is_input else HTTPStatus.INTERNAL_SERVER_ERROR
    return Refusal(
        Problem(
            code=code,
            message=failed.message,
            status=int(status),
            field="input" if failed.why is Why.ITEM else None,
            retry_after_s=failed.retry_after_ms / _MS_PER_S if failed.retry_after_ms else None,
        )
    )
