"""A car's identity while it runs: noticing renewed files, and asking for the renewal.

Invariants
- Nothing that goes wrong here stops the car: a failed renewal is logged and tried again with
  jitter, an expired certificate only keeps the car off the broker, and it goes on computing.
- Certificates are parsed in a short-lived process (`edge-runtime pki renew --if-due`): what
  handles them would cost an idle car four times the memory of verifying signatures.
- Files that changed are used at a quiet moment: trusted keys at once, certificates by a
  reconnect that the agent times.

Deliberately absent: judging the clock. Before the clock is right no certificate is valid, the
connect fails and is tried again.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RejectionReason
from edge_runtime.contract.messages import Signed

_Seen = tuple[tuple[str, int, int, int], ...]
_JITTER: Final = 0.5
"""The least part of a delay that is waited: cars of one batch must not renew together."""
_TOLD_CHARS: Final = 500

_log = structlog.get_logger()


class Trust(Protocol):
    """The public keys that this car believes."""

    @property
    def key_ids(self) -> list[str]:
        """Their ids."""
        ...

    def reload(self) -> None:
        """Read them again; where that fails, go on with those that are known."""
        ...

    def refusal(self, envelope: Signed) -> RejectionReason | None:
        """Why an envelope is not believed; None where a trusted key signed its body."""
        ...


class Identity:
    """What the agent asks about who it is and whom it believes.

    `certificates` are the files whose change means a new connection; `renew` is the command line
    that renews them when due, ending with 0 also where it is not due; None: somebody else does.
    """

    def __init__(
        self,
        *,
        trust: Trust | None = None,
        trust_path: Path | None = None,
        certificates: Sequence[Path] = (),
        renew: Sequence[str] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._trust = trust
        self._trust_path = trust_path
        self._certificates = tuple(certificates)
        self._renew = None if renew is None else tuple(renew)
        # It only spreads cars over time.
        self._rng = rng or random.Random()  # noqa: S311 - no secret
        self._seen_keys = self._keys_now()
        self._seen_certificates = _signature(self._certificates)
        self.failed_renewals = 0

    @property
    def verify(self) -> Callable[[Signed], RejectionReason | None] | None:
        """What judges every `dn` envelope; None where all are believed."""
        return None if self._trust is None else self._trust.refusal

    def say(self) -> None:
        """One line at start: whose orders this car obeys."""
        if self._trust is None:
            _log.warning("messages_not_verified", why="no trusted keys are configured")
        else:
            _log.info("messages_verified", key_ids=self._trust.key_ids)

    def look(self) -> bool:
        """Whether the certificates changed since the last look; new trusted keys are read."""
        keys = self._keys_now()
        if keys != self._seen_keys and self._trust is not None:
            self._seen_keys = keys
            self._trust.reload()
        certificates = _signature(self._certificates)
        if certificates == self._seen_certificates:
            return False
        self._seen_certificates = certificates
        return True

    async def keep_renewed(self) -> None:
        """Ask daily for a renewal, sooner after a failure; ends never, or at once without one."""
        if self._renew is None:
            return
        failures = 0
        while True:
            try:
                why = await self._run(self._renew)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not stop the car
                why = f"{type(error).__name__}: {error}"
            if why is None:
                failures = 0
                ceiling_s = limits.RENEWAL_CHECK_S
            else:
                self.failed_renewals += 1
                ceiling_s = min(
                    limits.RENEWAL_RETRY_MAX_S, limits.RENEWAL_RETRY_FIRST_S * 2**failures
                )
                failures = min(failures + 1, 16)
                _log.warning("renewal_failed", why=why[:_TOLD_CHARS], times=failures)
            await asyncio.sleep(self._rng.uniform(_JITTER, 1) * ceiling_s)

    async def _run(self, command: Sequence[str]) -> str | None:
        """Why a renewal command failed; None where it did not."""
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=limits.PKI_FILE_MAX_BYTES,
        )
        try:
            async with asyncio.timeout(limits.RENEWAL_RUN_MAX_S):
                _, told = await process.communicate()
        except TimeoutError:
            return f"no end within {limits.RENEWAL_RUN_MAX_S:g} s"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == 0:
            return None
        lines = told.decode(errors="replace").strip().splitlines()
        return f"exit code {process.returncode}: {lines[-1] if lines else 'nothing said'}"

    def _keys_now(self) -> _Seen:
        if self._trust_path is None:
            return ()
        return _signature((self._trust_path, *sorted(self._trust_path.glob("*.pem"))))


def _signature(paths: Sequence[Path]) -> _Seen:
    """What tells whether files were replaced."""
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append((str(path), 0, 0, 0))
        else:
            found.append((str(path), status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


NOBODY: Final = Identity()
"""No certificate, no trusted keys: every message is believed."""
