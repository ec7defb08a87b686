"""The owner's ways to a running car, around its agent: the socket for commands, and the page.

A door that cannot be opened is an error in the log, no reason to stop: decisions are in a file
that the car looks at once a second.
"""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from edge_runtime.vehicle.agent import VehicleAgent

_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def owner_doors(
    agent: "VehicleAgent", state_dir: Path, page_port: int | None
) -> AsyncIterator[None]:
    """Both doors, while the context lasts; the page where `page_port` says so."""
    from edge_runtime.vehicle.owner_page import OwnerPage
    from edge_runtime.vehicle.owner_socket import OwnerSocket

    async with contextlib.AsyncExitStack() as stack:
        doors: list[OwnerSocket | OwnerPage] = [
            OwnerSocket(state_dir, agent.owner_report, agent.look_again)
        ]
        if page_port is not None:
            doors.append(OwnerPage(page_port, agent.owner_report))
        for door in doors:
            try:
                await stack.enter_async_context(door)
            except OSError as error:
                _log.error("owner_door_closed", door=type(door).__name__, why=str(error))
        yield
