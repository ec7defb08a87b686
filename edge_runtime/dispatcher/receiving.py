"""Large outputs of requests that wait: handed in by cars, held in memory, gone with their unit.

What `dispatcher.lending` is for inputs. A car is told of a place in its offer, puts an output there
as it puts one of a job, in pieces that may be sent again, and then says so in its chunk.

Invariants
- A car reaches a place by a ticket that only this process can make, and only while its unit is out.
- What is taken has the length and the SHA-256 by which it was announced, and nests no deeper than
  an inline output may.
- All that is held is bounded, by `INTERACTIVE_OUTPUTS_MAX_BYTES`, and of one unit by
  `UNIT_OBJECTS_MAX_BYTES`. It counts from its announcement on, in no tenant's quota: it lives no
  longer than its unit, of which requests are counted.

Deliberately absent: HTTP (`api.objects`).
"""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Reference
from edge_runtime.contract.nesting import TooNested, check_nesting
from edge_runtime.dispatcher.front import Refusal, refusal
from edge_runtime.dispatcher.objects import CARS_PATH

_SECRET_BYTES: Final = 32
_TICKET_BYTES: Final = 16
_NAME: Final = "unit-"
_any_value: Final = msgspec.msgpack.Decoder(msgspec.Raw)


@dataclass(slots=True, eq=False)
class Incoming:
    """One output, of which `data` has come."""

    length: int
    data: bytearray = field(default_factory=bytearray)
    is_whole: bool = False
    is_busy: bool = False


class Receiver:
    """What cars hand in now; `random_bytes` makes the secret of this process's tickets.

    `is_out` says whether a car still has a unit, `comes` is told how many bytes of a unit's output
    are about to come.
    """

    def __init__(
        self,
        is_out: Callable[[int], bool],
        comes: Callable[[int, int], None],
        counters: Counter[str],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._is_out = is_out
        self._comes = comes
        self._counters = counters
        self._secret = random_bytes(_SECRET_BYTES)
        self._units: dict[int, dict[str, Incoming]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._units.values()))

    # --- for offers ---

    def place(self, tenant: str, unit: int) -> str:
        """The path under which a car may put outputs of a unit."""
        name = f"{_NAME}{unit}"
        return f"{CARS_PATH}/{tenant}/{self._ticket(tenant, name)}/{name}"

    def _ticket(self, tenant: str, name: str) -> str:
        # Keyed BLAKE2 (RFC 7693): each offer has one, and OpenSSL's HMAC takes three times as long.
        place = f"{tenant}/{name}".encode()
        return hashlib.blake2b(place, key=self._secret, digest_size=_TICKET_BYTES).hexdigest()

    # --- for cars ---

    def unit_at(self, tenant: str, ticket: str, name: str) -> int | None:
        """The unit whose place this is; None where it is none of ours.

        Raises `Refusal`: 410 where no car has the unit any more.
        """
        right = self._ticket(tenant, name)
        if not name.startswith(_NAME) or not hmac.compare_digest(ticket.encode(), right.encode()):
            return None
        unit = int(name.removeprefix(_NAME))
        if not self._is_out(unit):
            message = "nobody waits for this output any more"
            raise refusal(HTTPStatus.GONE, "not_awaited", message)
        return unit

    def create(self, unit: int, sha256: str, length: int) -> int:
        """Begin an output, or find one that was begun; how many bytes have come.

        Raises `Refusal`: 409, 413 or 422 for a wrong length, 423 while all its bytes are being
        proven, 503 where there is no room for it.
        """
        outputs = self._units.get(unit, {})
        known = outputs.get(sha256)
        if known is None:
            self._require_room(outputs, length)
            known = self._units.setdefault(unit, outputs)[sha256] = Incoming(length)
        elif known.length != length:
            message = f"this output was begun with {known.length} bytes"
            raise refusal(HTTPStatus.CONFLICT, "other_length", message, field="Upload-Length")
        elif len(known.data) == length and not known.is_whole:
            if known.is_busy:
                raise _locked()
            known.data.clear()  # their proof was broken off
        self._comes(unit, length - len(known.data))
        return len(known.data)

    def _require_room(self, outputs: dict[str, Incoming], length: int) -> None:
        if length < 1:
            message = "an output has at least one byte"
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            raise refusal(status, "invalid_field", message, field="Upload-Length")
        of_unit = sum(output.length for output in outputs.values())
        for name, held, most in (
            ("OBJECT_MAX_BYTES", 0, limits.OBJECT_MAX_BYTES),
            ("UNIT_OBJECTS_MAX_BYTES", of_unit, limits.UNIT_OBJECTS_MAX_BYTES),
        ):
            if held + length > most:
                raise refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "too_large",
                    f"at most {most} bytes, not {held + length}",
                    field="Upload-Length",
                    limit=f"{name}={most}",
                )
        held = sum(one.length for outputs in self._units.values() for one in outputs.values())
        if held + length > limits.INTERACTIVE_OUTPUTS_MAX_BYTES:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                f"outputs of {held} bytes wait in memory already",
                limit=f"INTERACTIVE_OUTPUTS_MAX_BYTES={limits.INTERACTIVE_OUTPUTS_MAX_BYTES}",
            )

    async def append(self, unit: int, sha256: str, offset: int, body: AsyncIterator[bytes]) -> int:
        """Take what `body` gives from `offset` on; how many bytes have come then.

        What came of a broken body stays. Raises `Refusal`: 404 for an output that was not begun,
        409 where `offset` is not where it ended, 413 for more than its length, 422 where the whole
        is not what was announced (then nothing of it is kept), 423 while another body comes.
        """
        output = self._units.get(unit, {}).get(sha256)
        if output is None:
            raise refusal(HTTPStatus.NOT_FOUND, "unknown_object", "this output was not begun")
        if output.is_busy:
            raise _locked()
        if output.is_whole or offset != len(output.data):
            message = f"the output goes on at byte {len(output.data)}, not {offset}"
            raise refusal(HTTPStatus.CONFLICT, "wrong_offset", message, field="Upload-Offset")
        output.is_busy = True
        try:
            async for piece in body:
                if len(output.data) + len(piece) > output.length:
                    raise refusal(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        "too_large",
                        f"the body goes beyond the output's {output.length} bytes",
                        field="Upload-Length",
                    )
                output.data += piece
            if len(output.data) == output.length:
                await self._finish(unit, sha256, output)
        finally:
            output.is_busy = False
        return len(output.data)

    async def _finish(self, unit: int, sha256: str, output: Incoming) -> None:
        problem = await asyncio.to_thread(_problem_with, bytes(output.data), sha256)
        if problem is not None:
            self._units.get(unit, {}).pop(sha256, None)
            raise problem
        output.is_whole = True
        self._counters["outputs_received"] += 1

    # --- for their requesters ---

    def problem(self, ref: Reference) -> str | None:
        """What is wrong with an output that a car refers to; None for one that may be taken."""
        output = self._at(ref)
        if output is None or not output.is_whole:
            return "the output was not handed in to its end"
        if output.length != ref.length:
            return f"the output has {output.length} bytes, not {ref.length}"
        return None

    def read(self, ref: Reference) -> bytes:
        """An output without a `problem`."""
        output = self._at(ref)
        return b"" if output is None else bytes(output.data)

    def _at(self, ref: Reference) -> Incoming | None:
        """The ticket in its address proves whose it is: no other address is believed."""
        tenant, _, rest = ref.url.removeprefix(f"{CARS_PATH}/").partition("/")
        ticket, _, rest = rest.partition("/")
        name, _, sha256 = rest.partition("/")
        right = self._ticket(tenant, name)
        if sha256 != ref.sha256 or not hmac.compare_digest(ticket.encode(), right.encode()):
            return None
        return self._units.get(int(name.removeprefix(_NAME)), {}).get(sha256)

    def forget_ended(self) -> None:
        """Drop what units were handed in that no car has any more."""
        for unit in [unit for unit in self._units if not self._is_out(unit)]:
            del self._units[unit]


def _locked() -> Refusal:
    return refusal(HTTPStatus.LOCKED, "locked", "another request is writing this output")


def _problem_with(data: bytes, sha256: str) -> Refusal | None:
    """Why these bytes are not what was announced, or no output. Takes up to a second."""
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    if hashlib.sha256(data).hexdigest() != sha256:
        message = "the bytes have another SHA-256 than was announced; begin again"
        return refusal(status, "wrong_hash", message, field="sha256")
    try:
        _any_value.decode(data)
        check_nesting(data, limits.OUTPUT_NESTING_MAX, limits.OBJECT_MAX_BYTES)
    except (msgspec.DecodeError, RecursionError, TooNested) as error:
        message = f"the output is not one readable MessagePack value: {error}"
        return refusal(status, "invalid_field", message[: limits.TEXT_MAX_CHARS])
    return None
