"""A nemesis that asks and waits: interactive requests through the Open Inference Protocol.

Visitors ask with a number that nobody else has, so that an answer shows whose it is. Some hang up,
some have little time. When faults have stopped, one asks until it is answered, and one asks
for something slow, hangs up when a car has begun it, and looks whether the car goes on.

Those of `bulk` ask the same way, for what does not travel inline.
"""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec

from edge_runtime.client.transport import Interrupted
from edge_runtime.sim.car import tensor_answer
from edge_runtime.sim.nemesis import often
from edge_runtime.sim.web import exchange
from edge_runtime.sim.world import VISITOR, World, tensor_item

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
    visits = Visits(world, rng, VISITOR, _FIRST, tensor_item)
    # It goes on when faults have stopped.
    visits.keep_asking(visits.after())

    async def strike() -> None:
        together = rng.randint(2, _VISITS_AT_ONCE) if rng.random() < _BATCHED else 1
        await asyncio.gather(*(visits.visit() for _ in range(together)))

    await often(world, rng, 4, strike)


class Visits:
    """Asks, and judges what is answered: one after the other with the number behind `first`.

    `item` makes the tensor of a number.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        name: str,
        first: int,
        item: Callable[[int], bytes],
    ) -> None:
        self._world = world
        self._rng = rng
        self._name = name
        self._number = first
        self._item = item

    def keep_asking(self, asking: Coroutine[None, None, None]) -> None:
        """The world is not done before this has ended."""
        unanswered = self._world.ledger.unanswered
        unanswered.add(self._name)
        self._world.waits_for.append(lambda: self._name not in unanswered)

        async def until_its_end() -> None:
            await asking
            unanswered.discard(self._name)

        self._world.keepers.append(asyncio.ensure_future(until_its_end()))

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def visit(self) -> None:
        """Ask once: patiently, in a hurry, or to hang up before the answer."""
        world, rng, number = self._world, self._rng, self._next()
        manner = rng.random()
        if manner < _LEAVES:
            world.ledger.fault(f"{self._name}_leaves", str(number))
            try:
                async with asyncio.timeout(rng.uniform(0.001, 1.5)):
                    await self._ask(number)
            except TimeoutError:
                world.ledger.note(f"{self._name} {number} hangs up")
        elif manner < _LEAVES + _HURRIES:
            world.ledger.fault(f"{self._name}_hurries", str(number))
            await self._ask(number, timeout_us=rng.randint(1_000, 800_000))
        else:
            world.ledger.fault(f"{self._name}_asks", str(number))
            await self._ask(number)

    async def _ask(
        self, number: int, timeout_us: int | None = None, data: bytes | None = None
    ) -> int | None:
        """Ask once; the status, None where the connection broke. The answer is judged here."""
        ledger, data = self._world.ledger, data or self._item(number)
        body, headers = _request(number, data, timeout_us)
        try:
            status, said, content = await exchange(
                self._world.network, "POST", _PATH, body, headers
            )
        except Interrupted as error:
            ledger.note(f"{self._name} {number}: {error}")
            return None
        ledger.note(f"{self._name} {number}: {status}")
        if status == _OK:
            length = int(said[_LENGTH])
            if content[length:] != tensor_answer(data):
                ledger.violated("S13", f"{self._name} {number} was given what is not its answer")
            if json.loads(content[:length]).get("id") != str(number):
                ledger.violated("S13", f"{self._name} {number} was given another's id")
        elif status not in _MAY_FAIL or not json.loads(content)["error"]:
            ledger.violated("S13", f"{self._name} {number} was told {status} {content[:200]!r}")
        return status

    # --- when faults have stopped ---

    async def after(self) -> None:
        """Ask until there is an answer; then leave in the middle of one."""
        await self.until_answered(self._item)
        await self._leave_in_the_middle()

    async def until_answered(self, item: Callable[[int], bytes]) -> None:
        """When faults have stopped, ask until there is an answer."""
        while not self._world.is_healed:  # noqa: ASYNC110 - virtual time; healing has no event
            await asyncio.sleep(_AGAIN_S)
        number = self._next()
        while await self._ask(number, data=item(number)) != _OK:
            await asyncio.sleep(_AGAIN_S)
            number = self._next()

    async def _leave_in_the_middle(self) -> None:
        """Hang up on something slow, and see that its car stops long before its end."""
        world, number = self._world, self._next()
        data = self._item(number)
        for car in world.cars:
            car.script.slow.add(data)
        asking = asyncio.ensure_future(self._ask(number))
        while not (begun := world.ledger.starts[data]) and not asking.done():  # noqa: ASYNC110 - virtual
            await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.wait([asking])
        if not begun:
            return
        world.ledger.note(f"{self._name} {number} hangs up in the middle")
        await asyncio.sleep(_IDLE_BOUND_S)
        for car in world.cars:
            if car.is_computing and car.engine is not None and car.engine.in_hand == data:
                world.ledger.violated(
                    "S13", f"{car.name} computes {_IDLE_BOUND_S:g} s after its visitor has left"
                )


def _request(number: int, data: bytes, timeout_us: int | None) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of one inference, its tensor in binary."""
    (tensor,) = msgspec.msgpack.decode(data)
    parameters: dict[str, Any] = {"binary_data_output": True}
    if timeout_us is not None:
        parameters["timeout"] = timeout_us
    size = {"binary_data_size": len(tensor["data"])}
    inputs = [{"name": "x", "shape": tensor["shape"], "datatype": "FP32", "parameters": size}]
    request = {"id": str(number), "inputs": inputs, "parameters": parameters}
    text = json.dumps(request).encode()
    headers = {_LENGTH: str(len(text)), "x-tenant": VISITOR}
    return text + tensor["data"], headers
