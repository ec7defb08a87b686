"""The rigs that the conformance suite runs on."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import BrokerProcess, make_embedded, make_mosquitto
from bus_rig import Rig

from edge_runtime.bus import MemoryBroker

RIGS = [
    pytest.param((adapter, kind, protocol), id=f"{adapter}-{kind}-{protocol}", marks=marks)
    for adapter, kind, protocol, marks in (
        ("memory", "memory", 5, ()),
        ("memory", "memory", 4, ()),
        *(
            (adapter, kind, protocol, pytest.mark.mosquitto if kind == "mosquitto" else ())
            for adapter in ("aiomqtt", "mqttium")
            for kind in ("embedded", "mosquitto")
            for protocol in (5, 4)
        ),
    )
]


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest) -> Rig:
    """An adapter on a broker that other tests use too."""
    adapter, kind, protocol = request.param
    broker: BrokerProcess | MemoryBroker
    if kind == "memory":
        broker = MemoryBroker(session_queue_max_messages=20_000)
    else:
        broker = request.getfixturevalue(f"{kind}_broker")
    return Rig(adapter, protocol, f"t{uuid.uuid4().hex[:12]}", broker)


@pytest.fixture(params=RIGS)
def own_rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An adapter on a broker of its own, not started yet, which the test may kill."""
    adapter, kind, protocol = request.param
    broker: BrokerProcess | MemoryBroker
    match kind:
        case "memory":
            broker = MemoryBroker()
            broker.kill()
        case "embedded":
            broker = make_embedded(tmp_path)
        case _:
            broker = make_mosquitto(tmp_path)
    yield Rig(adapter, protocol, f"t{uuid.uuid4().hex[:12]}", broker)
    broker.kill()
