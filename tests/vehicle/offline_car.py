"""A car whose clock is wrong: `offline_car.py FOLDER BROKER_URL NAMESPACE CLOCK_OFFSET_S`.

Everything else is the production car. SIGTERM leaves in good order; standard output is its log.
"""

import asyncio
import signal
import sys
from pathlib import Path

from edge_runtime.bus import open_bus
from edge_runtime.contract.clock import Now
from edge_runtime.vehicle.agent import VehicleAgent, VehicleSettings
from edge_runtime.vehicle.clock import read_clock
from edge_runtime.vehicle.inference.engine import SupervisedEngine
from edge_runtime.vehicle.inference.options import EngineOptions
from edge_runtime.vehicle.models.store import PackageStore
from edge_runtime.vehicle.sensors.simulated import SimulatedSensors


async def main(folder: Path, broker_url: str, namespace: str, offset_s: int) -> None:
    settings = VehicleSettings(
        vehicle="car-1",
        broker_url=broker_url,
        state_dir=folder / "car",
        policy=folder / "policy.toml",
        namespace=namespace,
        models_url="http://127.0.0.1:9",
    )

    def wrong_clock() -> Now:
        now = read_clock()
        return Now(now.boot_ns, now.utc_ms + offset_s * 1000)

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with VehicleAgent(
        settings,
        open_bus=open_bus,
        make_engine=lambda emit: SupervisedEngine(EngineOptions(), emit),
        packages=PackageStore(settings.state_dir / "models", 1 << 30),
        sensors=SimulatedSensors(),
        clock=wrong_clock,
    ) as agent:
        await agent.wait_ended()


if __name__ == "__main__":
    try:
        asyncio.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
    except asyncio.CancelledError:
        sys.exit(0)
