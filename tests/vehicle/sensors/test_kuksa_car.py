"""A whole car whose signals come from a databroker: it works, and rests when that dies."""

import time
from pathlib import Path

import pytest
from agent_rig import Garage, is_ready
from sensor_rig import GOOD_CAR, SEAT, databroker

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.sensors.combined import CombinedSensors
from edge_runtime.vehicle.sensors.kuksa import KuksaSensors, KuksaSettings

NAMES = frozenset(signal.name for signal in SIGNALS)
SLOW_MACHINE_S = 3.0


@pytest.mark.parametrize("death", ["killed", "occupied"])
async def test_a_car_rests_when_its_databroker_says_so_or_says_nothing(
    tmp_path: Path, death: str
) -> None:
    garage = Garage(tmp_path)
    async with databroker() as broker:
        broker.write_all(GOOD_CAR)
        kuksa = KuksaSensors(KuksaSettings(address=broker.address), sorted(NAMES))
        garage.sensors = CombinedSensors({"kuksa": (kuksa, NAMES)})  # type: ignore[assignment]  # the rig's are simulated
        async with garage.dispatcher() as peer, garage.car():
            await peer.until(lambda: is_ready(peer))
            began_s = time.monotonic()
            if death == "killed":
                await broker.kill()
            else:
                broker.write(SEAT, "string", "OCCUPIED")
            await peer.until(lambda: peer.states[-1].availability is Availability.HOLD)
            took_s = time.monotonic() - began_s
            state = peer.states[-1]
    if death == "killed":
        assert state.hold is HoldReason.SENSOR_STALE
        assert took_s <= limits.SENSOR_STALE_MS / 1000 + 1 + SLOW_MACHINE_S
    else:
        assert state.hold is HoldReason.OCCUPIED
        assert took_s <= SLOW_MACHINE_S
    assert state.signals.__struct_fields__ == tuple(s.name for s in SIGNALS if not s.is_local)
