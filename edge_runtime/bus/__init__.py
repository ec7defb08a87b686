"""The message bus: one port, and adapters for it.

`open_bus` picks an adapter; importing this package loads none of them, so that a car pays for
paho only, and never for what the dispatcher uses.
"""

from typing import TYPE_CHECKING

from edge_runtime.bus.port import (
    Bus,
    BusCounters,
    BusError,
    BusEvent,
    BusOverflow,
    BusRefused,
    BusSettings,
    BusUnavailable,
    Connected,
    Disconnected,
    DropReason,
    Message,
    TlsSettings,
)

if TYPE_CHECKING:
    from edge_runtime.bus.memory import Faults, MemoryBroker, MemoryBus, Partition

__all__ = [
    "Bus",
    "BusCounters",
    "BusError",
    "BusEvent",
    "BusOverflow",
    "BusRefused",
    "BusSettings",
    "BusUnavailable",
    "Connected",
    "Disconnected",
    "DropReason",
    "Faults",
    "MemoryBroker",
    "MemoryBus",
    "Message",
    "Partition",
    "TlsSettings",
    "open_bus",
]

_IN_MEMORY = frozenset({"Faults", "MemoryBroker", "MemoryBus", "Partition"})


def open_bus(settings: BusSettings, *, fast: bool = False) -> Bus:
    """A bus to the broker at `settings.url`, to be entered with `async with`.

    `fast` asks for the adapter of the dispatcher's hot path, which needs the `dispatcher` extra.
    Raises ConfigError for a URL that is not `mqtt[s]://…` (a memory bus needs its broker:
    `MemoryBus(settings, broker)`).
    """
    if fast:
        from edge_runtime.bus.fast import MqttiumBus  # noqa: PLC0415 - a car has no mqttium

        return MqttiumBus(settings)
    from edge_runtime.bus.mqtt import AiomqttBus  # noqa: PLC0415 - keeps this import light

    return AiomqttBus(settings)


def __getattr__(name: str) -> object:
    """Load the memory bus only where somebody asks for it."""
    if name in _IN_MEMORY:
        from edge_runtime.bus import memory  # noqa: PLC0415 - keeps this import light

        return getattr(memory, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
