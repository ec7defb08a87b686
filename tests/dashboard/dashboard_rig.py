"""A running dispatcher with its dashboard, for tests that look at it."""

from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from edge_runtime.bus import MemoryBroker
from edge_runtime.contract.http import ItemInput, JobRequest
from edge_runtime.contract.messages import Birth, VehicleLimits, VehicleState
from edge_runtime.contract.overview import Overview
from edge_runtime.contract.reasons import Availability, EnergyMethod, HoldReason, WearMethod
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.tensors import Tensor
from edge_runtime.dispatcher.api import HttpServer
from edge_runtime.dispatcher.core.commands import BookWork
from edge_runtime.dispatcher.core.fleet import Fleet
from edge_runtime.dispatcher.dashboard import Picture
from edge_runtime.dispatcher.desk import FrontDesk
from edge_runtime.dispatcher.service import DispatcherService


@dataclass
class Watched:
    """A running dispatcher that is looked at."""

    service: DispatcherService
    desk: FrontDesk
    picture: Picture
    server: HttpServer
    broker: MemoryBroker
    session: aiohttp.ClientSession

    def url(self, path: str) -> str:
        return f"{self.server.url}{path}"

    async def text(self, path: str, status: int = 200, **headers: str) -> str:
        async with self.session.get(self.url(path), headers=headers) as answer:
            text = await answer.text()
            assert answer.status == status, text
            return text

    async def data(self, path: str, status: int = 200) -> Any:
        return msgspec.json.decode(await self.text(f"/dashboard/data/{path}", status))

    async def submit(self, items: int = 1, tenant: str = "t1", **fields: Any) -> str:
        tensor = Tensor(name="x", datatype="FP32", shape=(1,), data=bytes(4))
        item = ItemInput(data=msgspec.msgpack.encode([tensor]))
        request = JobRequest(model="noop", items=(item,) * items, **fields)
        (answer,) = await self.desk.submit(tenant, [request])
        assert answer.status is not None, answer.problem
        return answer.status.job

    async def finish(self, vehicle: str = "busy", **items: int) -> None:
        """Items that a car has finished for tenants: booked, of the second tenant without wear."""
        how = [(EnergyMethod.RAPL, WearMethod.WORST_CELL_TABLE)]
        how += [(EnergyMethod.UNKNOWN, WearMethod.UNKNOWN)] * len(items)
        works = [
            BookWork(
                tenant=tenant,
                vehicle=vehicle,
                at_ms=self.service.clock().utc_ms,
                items=count,
                credits=0.25 * count,
                energy_j=36.0 * count,
                energy_method=energy,
                wear_percent=0.000001 * count,
                wear_method=wear,
            )
            for (tenant, count), (energy, wear) in zip(items.items(), how, strict=False)
        ]
        await self.service.store.commit(works)
        for watch in self.service.watchers:
            watch(works)

    def put_car(
        self,
        vehicle: str,
        availability: Availability = Availability.READY,
        hold: HoldReason | None = None,
        region: str = "default",
    ) -> None:
        """A car that has said so, straight into the registry."""
        put_car(
            self.service.core.fleet,
            vehicle,
            self.service.clock().boot_ms,
            availability=availability,
            hold=hold,
            region=region,
        )

    def overview(self) -> Overview:
        return msgspec.json.decode(self.picture.as_json(), type=Overview)


def put_car(
    fleet: Fleet,
    vehicle: str,
    now_ms: int,
    *,
    availability: Availability = Availability.READY,
    hold: HoldReason | None = None,
    region: str = "default",
) -> None:
    fleet.born(
        Birth(
            vehicle=vehicle,
            boot=1,
            connection=1,
            contract=1,
            runtime="test",
            vss="6.0",
            hardware="cpu",
            tasks=("tensor",),
            resident=(),
            limits=VehicleLimits(units_max=4),
            region=region,
        )
    )
    fleet.reported(
        VehicleState(
            vehicle=vehicle,
            boot=1,
            seq=1,
            at_ms=1,
            availability=availability,
            hold=hold,
            free_units=4,
            energy_budget_wh=None,
            signals=Signals(charge_percent=55.0),
        ),
        now_ms,
    )
