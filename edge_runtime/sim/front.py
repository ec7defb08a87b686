"""The dispatcher's HTTP application as a world needs it: what nobody uses there is not built.

Texts, accounts, and files with batches are opened where their nemeses take part; a world without
them takes the steps that it always took. Accounts come with a key for everybody in the world, as
an installation's first key is made before its door opens; who has which is `Network.keys`.
"""

import random
from pathlib import Path
from typing import Final

from edge_runtime.contract.http import NewKey
from edge_runtime.dispatcher.accounts import Accounts
from edge_runtime.dispatcher.accounts_quotas import Quotas
from edge_runtime.dispatcher.api import Api, BatchDesk, build_app, open_door
from edge_runtime.dispatcher.api.app import Mount
from edge_runtime.dispatcher.api.objects import ObjectRoutes
from edge_runtime.dispatcher.api.oip import OpenInference
from edge_runtime.dispatcher.api.openai.live import PATHS, LiveTexts
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.lending import Lender
from edge_runtime.dispatcher.objects import Objects
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.sim.objects import SimKept
from edge_runtime.sim.web import OPERATOR, Network

CONVERSATIONS: Final = "conversations"
KEYHOLDERS: Final = "keyholders"
NIGHT_BATCHES: Final = "night_batches"
BULKY: Final = "bulky"
WRITING: Final = frozenset({CONVERSATIONS, NIGHT_BATCHES})
"""The nemeses that want a model which writes."""
FILES: Final = "files"
"""The folder of uploads, beside the store."""
_STRETCH_LINES: Final = 3


async def open_front(
    service: DispatcherService,
    folder: Path,
    rng: random.Random,
    *,
    chosen: frozenset[str],
    network: Network,
    people: tuple[str, ...],
    kept: Path,
) -> Api:
    """The application over a running service; `people` are the tenants who will call.

    `kept` is where objects lie.
    """
    mounts: dict[str, Mount] = {}
    lender = None
    door = quotas = batches = None
    if CONVERSATIONS in chosen:
        mounts |= dict.fromkeys(PATHS, LiveTexts(service, rng.randbytes))
    if KEYHOLDERS in chosen:
        door = await open_door(service, rng.randbytes)
        quotas = door.quotas
        await _hand_out_keys(door.accounts, network, people)
    objects = None
    if BULKY in chosen:
        quotas = quotas or Quotas(service.store, service.clock)
        objects = await _open_objects(service, kept, quotas, rng)
        lender = Lender(quotas, service.counters, rng.randbytes)
        receiver = service.receive_outputs(rng.randbytes)
        mounts["objects"] = ObjectRoutes(objects, lender, receiver)
    mounts["v2"] = OpenInference(service, lender)
    desk = FrontDesk(
        service, lambda count: rng.randbytes(count).hex(), quotas=quotas, objects=objects
    )
    if NIGHT_BATCHES in chosen:
        batches = BatchDesk(
            desk,
            service.store,
            folder / FILES,
            quotas or Quotas(service.store, service.clock),
            lambda: service.clock().utc_ms,
            random_bytes=rng.randbytes,
            stretch_lines=_STRETCH_LINES,
        )
        await batches.shelf.open()
        service.spawn(batches.run)
    return build_app(desk, door=door, mounts=mounts, batches=batches)


async def _open_objects(
    service: DispatcherService, kept: Path, quotas: Quotas, rng: random.Random
) -> Objects:
    objects = Objects(
        service.store,
        SimKept(kept),
        kept.with_name("uploads"),
        quotas=quotas,
        clock=service.clock,
        counters=service.counters,
        random_bytes=rng.randbytes,
    )
    await objects.open()
    service.spawn(objects.sweep_forever)
    return objects


async def _hand_out_keys(accounts: Accounts, network: Network, people: tuple[str, ...]) -> None:
    """Whoever has no key that this store knows is given one."""
    for name in (OPERATOR, *people):
        if accounts.caller(network.keys.get(name, "")) is None:
            made = await accounts.create(NewKey(tenant=name, is_operator=name == OPERATOR))
            network.keys[name] = made.key
