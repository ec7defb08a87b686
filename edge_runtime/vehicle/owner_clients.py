"""Who talks to the car's owner's doors, the socket and the page: so many at once, each so long.

A client that is slow, silent or gone harms nobody; beyond `OWNER_CLIENTS_MAX` each is told so, and
beyond twice as many it is cut off.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from edge_runtime.contract import limits

_log = structlog.get_logger()


class OwnerClients:
    """`answer` reads what one client asks and says what to write.

    It is told whether that client is one too many. It may raise what reading raises.
    """

    def __init__(self, answer: Callable[[asyncio.StreamReader, bool], Awaitable[bytes]]) -> None:
        self._answer = answer
        self._tasks: set[asyncio.Task[None]] = set()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk to one more: what an asyncio server calls."""
        if len(self._tasks) >= 2 * limits.OWNER_CLIENTS_MAX:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Leave everybody."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(limits.OWNER_TALK_MAX_S):
                is_one_too_many = len(self._tasks) > limits.OWNER_CLIENTS_MAX
                writer.write(await self._answer(reader, is_one_too_many))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            _log.info("owner_left", why=str(error) or "too slow")
        finally:
            writer.close()
