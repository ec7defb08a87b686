"""How long a model's longest node takes: what bounds how soon a running model can be cancelled.

ONNX Runtime looks at the terminate flag before each node, so a cancel takes effect within the
longest one. It is measured where the model runs, once per package and computer: the first
`PROFILE_RUNS` runs of each of its sessions are profiled by ONNX Runtime itself, with the real
inputs that came, one row of a batch at a time. Of each node the fastest run counts, which leaves
out what the rest of the computer did meanwhile; of all nodes the slowest.

Nodes that hold a graph of their own (Loop, If, Scan) do not count: the flag is looked at inside.

This module reads the file that a profile is; `runtime` makes it.
"""

from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.contract import limits

UNKNOWN_MS: Final = float(limits.ITEM_TIME_MAX_MS)
"""Stands for a profile that could not be read: the worst is assumed."""

_KERNEL: Final = "_kernel_time"
_WITH_GRAPHS: Final = frozenset({"Loop", "If", "Scan", "SequenceMap"})
_US_PER_MS: Final = 1000


class _Arguments(msgspec.Struct):
    op_name: str = ""
    node_index: str = ""


class _Event(msgspec.Struct):
    name: str
    dur: int = 0
    args: _Arguments = msgspec.field(default_factory=_Arguments)


_decoder: Final = msgspec.json.Decoder(list[_Event])


def longest_node_ms(profile: bytes) -> float:
    """Return the longest node's time from an ONNX Runtime profile; `UNKNOWN_MS` for no profile."""
    try:
        events = _decoder.decode(profile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UNKNOWN_MS
    fastest_us: dict[tuple[str, str], int] = {}
    for event in events:
        if event.name.endswith(_KERNEL) and event.args.op_name not in _WITH_GRAPHS:
            node = (event.name, event.args.node_index)
            fastest_us[node] = min(event.dur, fastest_us.get(node, event.dur))
    return max(fastest_us.values(), default=0) / _US_PER_MS


def take_profile(path: Path) -> float:
    """As `longest_node_ms`, of a file, which is removed. Never raises: no file is no profile."""
    try:
        profile = path.read_bytes()
        path.unlink()
    except OSError:
        return UNKNOWN_MS
    return longest_node_ms(profile)


def rows_max(node_ms: float) -> int:
    """Return how many rows a run may have so that its longest node meets `CANCEL_NODE_MAX_MS`.

    A node's time grows at most with its rows, so this errs on the side of too few. At least 1.
    """
    if node_ms <= 0:
        return limits.TENSOR_MAX_ELEMENTS
    return max(1, int(limits.CANCEL_NODE_MAX_MS / node_ms))
