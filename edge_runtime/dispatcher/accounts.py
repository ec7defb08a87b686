"""Who may ask: API keys of tenants and operators.

A key is `er_` + 12 characters that name it + `_` + 256 random bits. The name is listed; of the
whole key the store has only the SHA-256. A fast hash is right here: what a slow one protects are
passwords, which can be guessed, and nobody guesses 256 bits. Hashes are compared in constant time.

Invariants
- Accounts are in force from the first key on, for ever: revoking keys never opens the door.
- The first key is an operator's, and the last operator's key in force cannot be revoked.
- A key is known, and a revoked one refused, from the moment that it is durable.
- Keys are made and revoked one after the other: what was looked at still holds when it is written.

Deliberately absent: passwords, sessions, expiry, scopes finer than a tenant.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.http import KeyMade, KeyView, NewKey, Problem
from edge_runtime.contract.topics import ID_PATTERN
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.storage import Record, RecordStore

_log = structlog.get_logger(__name__)

_KIND: Final = "key"
_MARK: Final = "er_"
_NAME_BYTES: Final = 9
_NAME_CHARS: Final = 12
_SECRET_BYTES: Final = 32
_NOBODY: Final = hashlib.sha256(b"").digest()


class Caller(NamedTuple):
    """Whom a request speaks for. An operator may speak for any tenant."""

    tenant: str
    is_operator: bool
    prefix: str


class _StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it lies in the store."""

    sha256: bytes
    is_operator: bool
    note: str
    revoked_ms: int | None = None


class _Known(NamedTuple):
    view: KeyView
    sha256: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_StoredKey).decode


class Accounts:
    """The keys of one store, in memory; `open` reads them."""

    def __init__(
        self,
        store: RecordStore,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._keys: dict[str, _Known] = {}
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Read every key."""
        for record in await self._store.records(_KIND, None, limits.KEYS_MAX):
            stored = _decode(record.body)
            view = KeyView(
                prefix=record.id,
                tenant=record.tenant,
                created_ms=record.at_ms,
                is_operator=stored.is_operator,
                note=stored.note,
                revoked_ms=stored.revoked_ms,
            )
            self._keys[record.id] = _Known(view, stored.sha256)

    @property
    def in_force(self) -> bool:
        """Whether callers need a key."""
        return bool(self._keys)

    def caller(self, key: str) -> Caller | None:
        """Whose key it is; None for one that is unknown or revoked."""
        known = self._keys.get(key[: len(_MARK) + _NAME_CHARS])
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # Compared in any case: how long a refusal takes says nothing of which names exist.
        is_right = hmac.compare_digest(digest, _NOBODY if known is None else known.sha256)
        if known is None or not is_right or known.view.revoked_ms is not None:
            return None
        view = known.view
        return Caller(view.tenant, view.is_operator, view.prefix)

    async def create(self, wanted: NewKey) -> KeyMade:
        """Make a key. Raises `Refusal`: 422 without an operator before it, 409 for too many."""
        if not ID_PATTERN.fullmatch(wanted.tenant):
            message = "a tenant is 1 to 64 of A-Z a-z 0-9 _ -"
            raise _refused(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_field", message, "tenant")
        async with self._changing:
            return await self._create(wanted)

    async def _create(self, wanted: NewKey) -> KeyMade:
        if not self._keys and not wanted.is_operator:
            message = "the first key must be an operator's: with it, every caller needs one"
            raise _refused(
                HTTPStatus.UNPROCESSABLE_ENTITY, "operator_first", message, "is_operator"
            )
        if len(self._keys) >= limits.KEYS_MAX:
            message = f"there are {len(self._keys)} keys, of at most {limits.KEYS_MAX}"
            raise _refused(HTTPStatus.CONFLICT, "too_many_keys", message, None)
        prefix = (
            _MARK + base64.b32encode(self._random_bytes(_NAME_BYTES)).decode()[:_NAME_CHARS].lower()
        )
        secret = base64.urlsafe_b64encode(self._random_bytes(_SECRET_BYTES)).decode().rstrip("=")
        key = f"{prefix}_{secret}"
        view = KeyView(
            prefix=prefix,
            tenant=wanted.tenant,
            created_ms=self._now_ms(),
            is_operator=wanted.is_operator,
            note=wanted.note,
        )
        known = _Known(view, hashlib.sha256(key.encode()).digest())
        await self._put(known)
        _log.info("key_made", prefix=prefix, tenant=view.tenant, operator=view.is_operator)
        return KeyMade(key=key, view=view)

    async def revoke(self, prefix: str) -> KeyView:
        """End a key, at once and for good; idempotent. Raises `Refusal` 404 or 409."""
        async with self._changing:
            return await self._revoke(prefix)

    async def _revoke(self, prefix: str) -> KeyView:
        known = self._keys.get(prefix)
        if known is None:
            message = f"no key begins with {prefix[:80]!r}"
            raise _refused(HTTPStatus.NOT_FOUND, "unknown_key", message, "prefix")
        if known.view.revoked_ms is not None:
            return known.view
        if known.view.is_operator and self._operators_in_force() == 1:
            message = "it is the last operator's key; make another one first"
            raise _refused(HTTPStatus.CONFLICT, "last_operator", message, "prefix")
        view = msgspec.structs.replace(known.view, revoked_ms=self._now_ms())
        await self._put(known._replace(view=view))
        _log.info("key_revoked", prefix=prefix, tenant=view.tenant)
        return view

    def _operators_in_force(self) -> int:
        views = (known.view for known in self._keys.values())
        return sum(view.is_operator and view.revoked_ms is None for view in views)

    def views(self, tenant: str | None) -> list[KeyView]:
        """Keys of a tenant (None: of all), oldest first."""
        views = [known.view for known in self._keys.values()]
        views.sort(key=lambda view: (view.created_ms, view.prefix))
        return [view for view in views if tenant in (None, view.tenant)]

    async def _put(self, known: _Known) -> None:
        view = known.view
        stored = _StoredKey(
            sha256=known.sha256,
            is_operator=view.is_operator,
            note=view.note,
            revoked_ms=view.revoked_ms,
        )
        await self._store.put_records(
            [Record(_KIND, view.prefix, view.tenant, view.created_ms, _encode(stored))]
        )
        self._keys[view.prefix] = known


def _refused(status: HTTPStatus, code: str, message: str, field: str | None) -> Refusal:
    return Refusal(Problem(code=code, message=message, status=int(status), field=field))
