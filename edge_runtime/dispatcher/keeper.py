"""Keeps a signed repository current: the keys of snapshot and timestamp are the dispatcher's.

Once a minute what waits for them is published and what is past half its life is signed again, so
that cars can tell a repository that stands still from one that is being held back from them. A
failure is logged every time and changes nothing: cars notice when the timestamp has expired, and
go on with what they have.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import EdgeError

_log = structlog.get_logger(__name__)


class RepositoryKeeper:
    """Signs for the repository in `folder` with the online keys in `key_folders`."""

    def __init__(self, folder: Path, key_folders: Sequence[Path]) -> None:
        # TUF's library: not loaded by a dispatcher without a repository.
        from edge_runtime.registry.keys import KeyRing  # noqa: PLC0415
        from edge_runtime.registry.repository import ModelRepository  # noqa: PLC0415

        self._repository = ModelRepository(folder)
        # Online keys have no passphrase; a key that needs one is not the dispatcher's to open.
        self._ring = KeyRing(key_folders, lambda: b"")

    async def keep(self) -> None:
        """Sign what is due, for ever."""
        while True:
            await self.keep_once()
            await asyncio.sleep(limits.REPOSITORY_CHECK_S)

    async def keep_once(self) -> None:
        """Sign what is due now."""
        try:
            did_sign = await asyncio.to_thread(self._repository.refresh, self._ring)
        except (EdgeError, OSError) as error:
            _log.error("repository_not_signed", reason=str(error))
            return
        if did_sign:
            _log.info("repository_signed", repository=str(self._repository.folder))
