"""Ask a dispatcher over HTTP: the part that every client command shares."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edge_runtime.cli.lifecycle import run_command
from edge_runtime.cli.options import check_http_url
from edge_runtime.contract import limits

if TYPE_CHECKING:
    from edge_runtime.client import EdgeClient

PATIENT_S: Final = float(limits.CLIENT_UNREACHABLE_S)
"""For what waits anyway: it sits out a dispatcher's restart."""
_BRIEF_S: Final = 3.0

Ask = Callable[["EdgeClient"], Awaitable[int | None]]


def ask(url: str, tenant: str, question: Ask, *, patience_s: float = _BRIEF_S) -> int:
    """Run `question` with a client of the dispatcher at `url`; the command's exit code.

    Raises `EdgeError` where the dispatcher refuses, or does not answer for `patience_s` seconds.
    """
    check_http_url("--url", url)

    async def run() -> int | None:
        from edge_runtime.client import EdgeClient

        async with EdgeClient(url, tenant, unreachable_after_s=patience_s) as client:
            return await question(client)

    return run_command(run)


def print_json(value: Any) -> None:
    """One contract struct, or builtins, as a line of JSON."""
    print(msgspec.json.encode(value).decode(), flush=True)


def utc(at_ms: int | None) -> str:
    """A moment for people, to the second."""
    from datetime import UTC, datetime

    if at_ms is None:
        return "-"
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
