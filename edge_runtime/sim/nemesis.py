"""What every nemesis is, and what they share."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from edge_runtime.sim.hosts import Host
from edge_runtime.sim.world import World

Nemesis = Callable[[World, random.Random], Awaitable[None]]
HALF: Final = 0.5


async def often(
    world: World, rng: random.Random, mean_s: float, strike: Callable[[], Awaitable[None]]
) -> None:
    """Strike at random moments until the fault phase ends."""
    while True:
        await asyncio.sleep(rng.expovariate(1 / mean_s))
        if world.is_healed:
            return
        await strike()


def hosts_of(world: World) -> list[Host]:
    """The dispatcher and the cars."""
    return [world.dispatcher, *(car.host for car in world.cars)]
