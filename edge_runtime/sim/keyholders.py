"""A nemesis with keys: made, used, lent, guessed and revoked while they are used.

S18 is judged here: a key is let in from the answer that made it until somebody asks to revoke it,
and never again once a revocation was answered, whatever died since; nobody enters with a guess,
or as another tenant. However many operators revoke each other's keys at once, one is left.

What an older store says after it was put back is not judged: keys are forgotten then.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import msgspec

from edge_runtime.client.transport import Interrupted
from edge_runtime.contract.http import KeyMade, NewKey
from edge_runtime.sim.nemesis import often
from edge_runtime.sim.web import OPERATOR, exchange
from edge_runtime.sim.world import TENANT, World

_HOLDER: Final = "holder"
_KEYS: Final = "/v1/accounts/keys"
_DOORS: Final = ("/v1/jobs", "/v2", "/v1/accounts/usage")
"""One behind each way in: the routes, a mounted application, what accounts say of themselves."""
_OK: Final = 200
_CREATED: Final = 201
_UNAUTHORIZED: Final = 401
_PASSING: Final = frozenset({500, 502, 503, 504, 507})
_PREFIX_CHARS: Final = len("er_") + 12
_AGAIN_S: Final = 1.0
_RESTED_S: Final = 5.0
_made: Final = msgspec.json.Decoder(KeyMade)


class _State(Enum):
    GOOD = auto()
    BEING_REVOKED = auto()
    REVOKED = auto()


@dataclass
class _Key:
    key: str
    prefix: str
    state: _State = _State.GOOD


async def keyholders(world: World, rng: random.Random) -> None:
    """See the module."""
    holders = _Holders(world, rng)
    world.ledger.unanswered.add(_HOLDER)
    world.waits_for.append(lambda: _HOLDER not in world.ledger.unanswered)
    # It goes on when faults have stopped.
    world.keepers.append(asyncio.ensure_future(holders.after()))
    await often(world, rng, 8, holders.strike)


class _Holders:
    """Who has keys, and an operator who makes and revokes them."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._keys: list[_Key] = []
        self._stores = 0

    async def strike(self) -> None:
        """One thing that people do with keys."""
        rng, ledger = self._rng, self._world.ledger
        kind = rng.choice(("make", "use", "use", "revoke", "revoke", "guess"))
        good = [key for key in self._keys if key.state is _State.GOOD]
        if kind == "make" or not self._keys:
            await self._make()
        elif kind == "use":
            key = rng.choice(self._keys)
            ledger.fault("key_used" if key.state is _State.GOOD else "revoked_key_used", key.prefix)
            await self._use(key)
        elif kind == "guess":
            key = rng.choice(self._keys)
            ledger.fault("key_guessed", key.prefix)
            await self._guess(f"{key.prefix}_{rng.randbytes(32).hex()}")
            await self._use_as_another(key)
        else:
            key = rng.choice(good or self._keys)
            ledger.fault("key_revoked", key.prefix)
            await asyncio.gather(self._revoke(key), self._use(key), self._use(key))
            await self._use(key)

    # --- what people do ---

    async def _make(self) -> _Key | None:
        body = msgspec.json.encode(NewKey(tenant=_HOLDER))
        status, content = await self._ask("POST", _KEYS, {}, body)
        if status != _CREATED:
            self._must_pass(status, content, "make a key")
            return None
        made = _made.decode(content)
        key = _Key(made.key, made.view.prefix)
        self._keys.append(key)
        self._world.ledger.fault("key_made", key.prefix)
        return key

    async def _use(self, key: _Key) -> int:
        """Knock with a key; what is answered must be right for it."""
        was, path = key.state, self._rng.choice(_DOORS)
        status, content = await self._ask("GET", path, _with(key.key))
        if key not in self._keys:
            return status  # made in a store that is no more
        is_refused = status == _UNAUTHORIZED
        if is_refused and key.state is _State.GOOD:
            self._wrong(f"{key.prefix} is good and was refused: {content[:120]!r}")
        if status and not is_refused and was is _State.REVOKED:
            self._wrong(f"{key.prefix} was revoked and let in: {status}")
        if not is_refused and status != _OK:
            self._must_pass(status, content, f"ask for {path}")
        return status

    async def _use_as_another(self, key: _Key) -> None:
        """A key that names another tenant."""
        status, _ = await self._ask("GET", "/v1/jobs", _with(key.key) | {"x-tenant": TENANT})
        if status == _OK:
            self._world.ledger.violated("S10", f"{key.prefix} of {_HOLDER} speaks for {TENANT}")

    async def _guess(self, key: str) -> None:
        status, _ = await self._ask("GET", "/v1/jobs", _with(key))
        if status not in {0, _UNAUTHORIZED}:
            self._wrong(f"a guess was let in: {status}")

    async def _revoke(self, key: _Key) -> None:
        if key.state is _State.GOOD:
            key.state = _State.BEING_REVOKED
        status, content = await self._ask("DELETE", f"{_KEYS}/{key.prefix}", {})
        if status == _OK:
            key.state = _State.REVOKED
        elif key in self._keys:
            self._must_pass(status, content, f"revoke {key.prefix}")

    # --- asking ---

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> tuple[int, bytes]:
        """(status, content); 0 where the connection broke. Without a key it is an operator's."""
        world = self._world
        self._forget_if_gone_back()
        try:
            status, _, content = await exchange(
                world.network,
                method,
                path,
                body,
                {"accept": "application/json", "content-type": "application/json", **headers},
            )
        except Interrupted as error:
            world.ledger.note(f"{_HOLDER}: {error}")
            status, content = 0, b""
        self._forget_if_gone_back()
        world.ledger.note(f"{_HOLDER}: {method} {path} {status}")
        return status, content

    def _forget_if_gone_back(self) -> None:
        stores = self._world.ledger.fired["restored_backup"]
        if stores != self._stores:
            self._stores = stores
            self._keys.clear()

    def _must_pass(self, status: int, content: bytes, what: str) -> None:
        if status and status not in _PASSING:
            self._wrong(f"could not {what}: {status} {content[:120]!r}")

    def _wrong(self, what: str) -> None:
        self._world.ledger.violated("S18", what)

    # --- when faults have stopped ---

    async def after(self) -> None:
        """A key from its making to its end; then two operators at once end each other's."""
        world = self._world
        while not world.is_healed:  # noqa: ASYNC110 - virtual time; healing has no event
            await asyncio.sleep(_AGAIN_S)
        while (key := await self._make()) is None:  # noqa: ASYNC110 - the question is the wait
            await asyncio.sleep(_AGAIN_S)
        while await self._use(key) != _OK:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_AGAIN_S)
        while key.state is not _State.REVOKED:
            await self._revoke(key)
            await asyncio.sleep(_AGAIN_S)
        for known in self._keys:
            await self._use(known)
        await asyncio.sleep(_RESTED_S)  # other operators are done by then
        await self._revoke_each_other()
        world.ledger.unanswered.discard(_HOLDER)

    async def _revoke_each_other(self) -> None:
        """Two operators revoke each other's key in one moment."""
        world = self._world
        body = msgspec.json.encode(NewKey(tenant=OPERATOR, is_operator=True))
        status, content = await self._ask("POST", _KEYS, {}, body)
        if status != _CREATED:
            return
        made = _made.decode(content)
        first, second = world.network.keys[OPERATOR], made.key
        world.ledger.fault("operators_revoke_each_other")
        await asyncio.gather(
            self._ask("DELETE", f"{_KEYS}/{first[:_PREFIX_CHARS]}", _with(second)),
            self._ask("DELETE", f"{_KEYS}/{second[:_PREFIX_CHARS]}", _with(first)),
        )
        found = {key: (await self._ask("GET", _KEYS, _with(key)))[0] for key in (first, second)}
        if set(found.values()) == {_UNAUTHORIZED}:
            self._wrong("two operators revoked each other's keys, and none is left")
        for key, status in found.items():
            if status == _OK:
                world.network.keys[OPERATOR] = key


def _with(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
