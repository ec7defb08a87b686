"""A nemesis that asks and waits: interactive requests through the Open Inference Protocol.

Visitors ask with a number that nobody else has, so that an answer shows whose it is. Some hang up,
some have little time. When faults have stopped, one asks until it is answered, and one asks
for something slow, hangs up when a car has begun it, and looks whether the car goes on.
"""

import asyncio
import json
import random
from typing import Any, Final

import msgspec

from edge_runtime.client.transport import Interrupted
from edge_runtime.sim.car import tensor_answer
from edge_runtime.sim.nemesis import often
from edge_runtime.sim.web import exchange
from edge_runtime.sim.world import World, tensor_item

_VISITOR: Final = "visitor"
_FIRST: Final = 5_000_000
_PATH: Final = "/v2/models/noop/infer"
_LENGTH: Final = "inference-header-content-length"
_OK: Final = 200
_MAY_FAIL: Final = frozenset({500, 503, 504})
"""A car that fails, no car, no time. Anything else would blame the question."""
_VISITS_AT_ONCE: Final = 4
_LEAVES: Final = 0.25
_HURRIES: Final = 0.25
_IDLE_BOUND_S: Final = 3.0
"""Far less than a slow item takes (`SLOW_ITEM_S`)."""
_AGAIN_S: Final = 1.0
_BATCHED: Final = 0.5


async def visitors(world: World, rng: random.Random) -> None:
    """See the module."""
    visits = _Visits(world, rng)
    world.ledger.unanswered.add(_VISITOR)
    world.waits_for.append(lambda: not world.ledger.unanswered)
    # It goes on when faults have stopped.
    world.keepers.append(asyncio.ensure_future(visits.after()))

    async def strike() -> None:
        together = rng.randint(2, _VISITS_AT_ONCE) if rng.random() < _BATCHED else 1
        await asyncio.gather(*(visits.visit() for _ in range(together)))

    await often(world, rng, 4, strike)


class _Visits:
    """Asks, and judges what is answered."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._number = _FIRST

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def visit(self) -> None:
        """Ask once: patiently, in a hurry, or to hang up before the answer."""
        world, rng, number = self._world, self._rng, self._next()
        manner = rng.random()
        if manner < _LEAVES:
            world.ledger.fault("visitor_leaves", str(number))
            try:
                async with asyncio.timeout(rng.uniform(0.001, 1.5)):
                    await self._ask(number)
            except TimeoutError:
                world.ledger.note(f"visitor {number} hangs up")
        elif manner < _LEAVES + _HURRIES:
            world.ledger.fault("visitor_hurries", str(number))
            await self._ask(number, timeout_us=rng.randint(1_000, 800_000))
        else:
            world.ledger.fault("visit", str(number))
            await self._ask(number)

    async def _ask(self, number: int, timeout_us: int | None = None) -> int | None:
        """Ask once; the status, None where the connection broke. The answer is judged here."""
        ledger, data = self._world.ledger, tensor_item(number)
        body, headers = _request(number, timeout_us)
        try:
            status, said, content = await exchange(
                self._world.network, "POST", _PATH, body, headers
            )
        except Interrupted as error:
            ledger.note(f"visitor {number}: {error}")
            return None
        ledger.note(f"visitor {number}: {status}")
        if status == _OK:
            length = int(said[_LENGTH])
            if content[length:] != tensor_answer(data):
                ledger.violated("S13", f"visitor {number} was given what is not its answer")
            if json.loads(content[:length]).get("id") != str(number):
                ledger.violated("S13", f"visitor {number} was given another's id")
        elif status not in _MAY_FAIL or not json.loads(content)["error"]:
            ledger.violated("S13", f"visitor {number} was told {status} {content[:200]!r}")
        return status

    # --- when faults have stopped ---

    async def after(self) -> None:
        """Ask until there is an answer; then leave in the middle of one."""
        world = self._world
        while not world.is_healed:  # noqa: ASYNC110 - virtual time; healing has no event
            await asyncio.sleep(_AGAIN_S)
        while await self._ask(self._next()) != _OK:  # noqa: ASYNC110 - the question is the wait
            await asyncio.sleep(_AGAIN_S)
        await self._leave_in_the_middle()
        world.ledger.unanswered.discard(_VISITOR)

    async def _leave_in_the_middle(self) -> None:
        """Hang up on something slow, and see that its car stops long before its end."""
        world, number = self._world, self._next()
        data = tensor_item(number)
        for car in world.cars:
            car.script.slow.add(data)
        asking = asyncio.ensure_future(self._ask(number))
        while not (begun := world.ledger.starts[data]) and not asking.done():  # noqa: ASYNC110 - virtual
            await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait([asking])
        if not begun:
            return
        world.ledger.note(f"visitor {number} hangs up in the middle")
        await asyncio.sleep(_IDLE_BOUND_S)
        for car in world.cars:
            if car.is_computing and car.engine is not None and car.engine.in_hand == data:
                world.ledger.violated(
                    "S13", f"{car.name} computes {_IDLE_BOUND_S:g} s after its visitor has left"
                )


def _request(number: int, timeout_us: int | None) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of one inference, its tensor in binary."""
    (tensor,) = msgspec.msgpack.decode(tensor_item(number))
    parameters: dict[str, Any] = {"binary_data_output": True}
    if timeout_us is not None:
        parameters["timeout"] = timeout_us
    size = {"binary_data_size": len(tensor["data"])}
    inputs = [{"name": "x", "shape": [1], "datatype": "FP32", "parameters": size}]
    request = {"id": str(number), "inputs": inputs, "parameters": parameters}
    text = json.dumps(request).encode()
    headers = {_LENGTH: str(len(text)), "x-tenant": _VISITOR}
    return text + tensor["data"], headers
