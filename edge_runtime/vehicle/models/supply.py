"""Having packages: from the store, or from the first host that has them, on allowed networks.

Invariants
- `have` ends as exactly one of `ModelReady` and `ModelFailed`.
- A package is refused only when no host could be asked that might have had the right one.
- When the owner's rules stop allowing it, downloads are broken off; they go on later where they
  ended. While they do not allow it nobody is asked what is still published, either.

Deliberately absent: which packages to have, which is the core's.
"""

import asyncio
import zlib
from collections.abc import Callable

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.package import Package, PackageRefused
from edge_runtime.vehicle.core.events import Event, ModelFailed, ModelFault, ModelReady
from edge_runtime.vehicle.ports import PackageStore

_log = structlog.get_logger()


class Supply:
    """One car's packages. `urls` says who serves packages, best first.

    `tell` hears what came of it; `is_network_allowed` says whether the owner's rules let the car
    fetch what no work needs at once.
    """

    def __init__(
        self,
        packages: PackageStore,
        *,
        vehicle: str,
        urls: Callable[[], list[str]],
        tell: Callable[[Event], None],
        is_network_allowed: Callable[[], bool],
    ) -> None:
        self._packages = packages
        # Cars that start together must not ask together; this needs no random source.
        self._spread = zlib.crc32(vehicle.encode()) / 2**32
        self._urls = urls
        self._tell = tell
        self._is_network_allowed = is_network_allowed
        self._news = asyncio.Event()

    def take_fetched_bytes(self) -> int:
        """What came from package servers since the last call, of use or not."""
        return self._packages.take_received_bytes()

    def heard_of_hosts(self) -> None:
        """A host said where it serves packages: whoever waits for one looks again."""
        self._news.set()

    def look_at_network(self) -> None:
        """Break downloads off where they are not allowed any more. Call about once a second."""
        if not self._is_network_allowed():
            self._packages.break_off()

    async def have(self, digest: str) -> None:
        """Ends as `ModelReady` or `ModelFailed`."""
        try:
            await self._fetch(digest)
        except PackageRefused as error:
            self._tell(ModelFailed(digest, ModelFault.INVALID, str(error)))
        except OSError as error:
            _log.warning("model_unavailable", model=digest, why=str(error))
            self._tell(ModelFailed(digest, ModelFault.UNAVAILABLE, str(error)))
        else:
            self._tell(ModelReady(digest))

    async def _fetch(self, digest: str) -> Package:
        held = self._packages.get(digest)
        if held is not None:
            return held
        refusal: PackageRefused | None = None
        failure: OSError | None = None
        for url in await self._known_urls():
            try:
                return await self._packages.fetch(digest, url)
            except PackageRefused as error:
                refusal = error
            except OSError as error:
                failure = error
        if refusal is not None and failure is None:
            raise refusal
        raise failure or OSError("no dispatcher has said where packages are")

    async def _known_urls(self) -> list[str]:
        """Where to fetch; a host that is only about to introduce itself is waited for."""
        try:
            async with asyncio.timeout(limits.MODELS_URL_WAIT_MS / 1000):
                while not self._urls():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return []
        return self._urls()

    async def check_forever(self) -> None:
        """Ask now and then whether what is held is still published; what is not is gone."""
        await asyncio.sleep(limits.PACKAGES_FIRST_CHECK_S * (1 + self._spread))
        while True:
            if self._is_network_allowed():
                await self.check()
            await asyncio.sleep(limits.PACKAGES_CHECK_S * (0.5 + self._spread))

    async def check(self) -> None:
        """Ask the first host that can be believed."""
        for url in self._urls():
            try:
                gone = await self._packages.check(url)
            except (PackageRefused, OSError) as error:
                # What is held was proven once and goes on being used.
                _log.info("packages_not_checked", why=str(error))
                continue
            for digest in gone:
                message = "it is not published any more"
                self._tell(ModelFailed(digest, ModelFault.INVALID, message))
            return
