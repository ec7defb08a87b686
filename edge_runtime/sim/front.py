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
from edge_runtime.dispatcher.api.oip import OpenInference
from edge_runtime.dispatcher.api.openai.live import PATHS, LiveTexts
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService
from edge_runtime.sim.web import OPERATOR, Network

CONVERSATIONS: Final = "conversations"
KEYHOLDERS: Final = "keyholders"
NIGHT_BATCHES: Final = "night_batches"
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
) -> Api:
    """The application over a running service; `people` are the tenants who will call."""
    mounts: dict[str, Mount] = {"v2": OpenInference(service)}
    door = quotas = batches = None
    if CONVERSATIONS in chosen:
        mounts |= dict.fromkeys(PATHS, LiveTexts(service, rng.randbytes))
    if KEYHOLDERS in chosen:
        door = await open_door(service, rng.randbytes)
        quotas = door.quotas
        await _hand_out_keys(door.accounts, network, people)
    desk = FrontDesk(service, lambda count: rng.randbytes(count).hex(), quotas=quotas)
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


async def _hand_out_keys(accounts: Accounts, network: Network, people: tuple[str, ...]) -> None:
    """Whoever has no key that this store knows is given one."""
    for name in (OPERATOR, *people):
        if accounts.caller(network.keys.get(name, "")) is None:
            made = await accounts.create(NewKey(tenant=name, is_operator=name == OPERATOR))
            network.keys[name] = made.key
