"""The policy file as it changes: read again whenever its name leads to another file or time."""

from pathlib import Path

import structlog

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.policy import OwnerPolicy, PolicyError, load_policy

_log = structlog.get_logger()


class PolicyFile:
    """Reads the owner's policy; a change is seen at the next `changed`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def read(self) -> OwnerPolicy | HoldReason:
        """The policy now, or why there is none."""
        self._seen = self._signature()
        try:
            policy = load_policy(self._path)
        except PolicyError as error:
            _log.error("policy_unusable", hold=error.hold.value, why=str(error))
            return error.hold
        _log.info(
            "policy_read",
            path=str(self._path),
            consent=policy.consent.given,
            consent_version=policy.consent.version,
            paused=policy.paused,
        )
        return policy

    def changed(self) -> OwnerPolicy | HoldReason | None:
        """The policy if the file is another than was read last."""
        return None if self._signature() == self._seen else self.read()

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
