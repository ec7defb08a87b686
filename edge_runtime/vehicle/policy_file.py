"""The policy as it changes: read again whenever its file, or that of the decisions, is another.

Invariants
- A file that is being written is a wrong policy until it is whole: no work, and no crash.
- What is seen is what counts: a change between looking and reading is seen at the next look.
- A withdrawal is one whatever is the matter with the policy file.
"""

from pathlib import Path

import structlog

from edge_runtime.contract.reasons import HoldReason
from edge_runtime.vehicle.owner_decisions import apply_decisions, load_decisions
from edge_runtime.vehicle.policy import Consent, OwnerPolicy, PolicyError, load_policy

_log = structlog.get_logger()

Signature = tuple[int, int, int]


class PolicyFile:
    """Reads the owner's policy and decisions; a change is seen at the next `changed`.

    `trouble` is the one line that says what is wrong with either, None where nothing is.
    `written` is the policy file alone, where it is right; `consent` what was decided by command.
    """

    def __init__(self, path: Path, decisions: Path) -> None:
        self.path = path
        self.decisions = decisions
        self.trouble: str | None = None
        self.written: OwnerPolicy | None = None
        self.consent: Consent | None = None
        self._seen: tuple[Signature | None, Signature | None] = (None, None)

    def read(self) -> OwnerPolicy | HoldReason:
        """The policy now, or why there is none, and a line in the log."""
        policy = self.peek()
        if isinstance(policy, HoldReason):
            _log.error("policy_unusable", hold=policy.value, why=self.trouble)
        else:
            _log.info(
                "policy_read",
                path=str(self.path),
                consent=policy.consent.given,
                consent_version=policy.consent.version,
                paused=policy.paused,
            )
        return policy

    def peek(self) -> OwnerPolicy | HoldReason:
        """As `read`, for who only asks."""
        self._seen = self._signatures()
        try:
            policy = self._read()
        except PolicyError as error:
            self.trouble = str(error)
            return error.hold
        self.trouble = None
        return policy

    def changed(self) -> OwnerPolicy | HoldReason | None:
        """The policy if a file is another than was read last."""
        return None if self._signatures() == self._seen else self.read()

    def _read(self) -> OwnerPolicy:
        self.written = self.consent = None
        decisions = load_decisions(self.decisions)
        self.consent = consent = decisions.consent
        try:
            self.written = load_policy(self.path)
        except PolicyError as error:
            if consent is not None and not consent.given:
                raise PolicyError(HoldReason.CONSENT_WITHDRAWN, str(error)) from None
            raise
        return apply_decisions(self.written, decisions)

    def _signatures(self) -> tuple[Signature | None, Signature | None]:
        return _signature(self.path), _signature(self.decisions)


def _signature(path: Path) -> Signature | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
