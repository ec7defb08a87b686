"""How slowly a body may come: silence is bounded, and so is a trickle."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.dispatcher.api.problems import named_limit
from edge_runtime.dispatcher.front import refusal

_END: Final = "http.request"


class Pace:
    """Receives one request's body; `body_bytes` is how much has come."""

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive
        self._started_s = asyncio.get_running_loop().time()
        self.body_bytes = 0

    async def piece(self) -> tuple[bytes, bool]:
        """The next piece, and whether there are more.

        `Refusal` 408 where nothing comes for `UPLOAD_SILENCE_S`, or less than
        `HTTP_BODY_MIN_BYTES_PER_S` all the time after that; 400 where the caller left.
        """
        now_s = asyncio.get_running_loop().time()
        earned_s = self.body_bytes / limits.HTTP_BODY_MIN_BYTES_PER_S
        silence_s = limits.UPLOAD_SILENCE_S
        due_s = min(now_s + silence_s, self._started_s + silence_s + earned_s)
        try:
            async with asyncio.timeout_at(due_s):
                message = await self._receive()
        except TimeoutError:
            is_silent = asyncio.get_running_loop().time() - now_s >= silence_s
            name = "UPLOAD_SILENCE_S" if is_silent else "HTTP_BODY_MIN_BYTES_PER_S"
            raise refusal(
                HTTPStatus.REQUEST_TIMEOUT,
                "too_slow",
                "nothing came of the body for too long"
                if is_silent
                else "the body comes too slowly",
                field="body",
                limit=named_limit(name, getattr(limits, name)),
            ) from None
        if message["type"] != _END:
            raise refusal(HTTPStatus.BAD_REQUEST, "disconnected", "the caller left")
        body: bytes = message["body"]
        self.body_bytes += len(body)
        return body, message["more_body"]
