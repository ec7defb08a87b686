"""Whether a client is still there: work that nobody waits for any more is stopped at once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]


class ClientLeft(Exception):  # noqa: N818 - nothing is wrong
    """The client closed its connection."""


@contextlib.asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Run the block; cancel it, and raise `ClientLeft`, as soon as the client goes.

    The request's body must have been read. The connection is watched by a task of its own, which
    sleeps until the client goes.
    """
    asking = asyncio.current_task()
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left = True
        if asking is not None:
            asking.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if has_left and asking is not None and not asking.uncancel():
            raise ClientLeft from None
        raise
    finally:
        watching.cancel()
