"""What the protocol's clients may ask of a model, apart from inference: metadata, config, counts.

The platform is `onnx_onnxv1`, as the protocol names it; the configuration is in the form of
Triton's `ModelConfig`, with what clients and measuring tools read from it.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from edge_runtime.contract import limits
from edge_runtime.contract.package import Package, TensorSpec
from edge_runtime.dispatcher.api.oip.infer import Interface
from edge_runtime.dispatcher.core.placement import Requirement

PLATFORM: Final = "onnx_onnxv1"
_NS_PER_MS: Final = 1_000_000
_CONFIG_TYPES: Final = {"BYTES": "TYPE_STRING"}


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, milliseconds: float) -> None:
        """Once more."""
        self.count += 1
        self.ns += int(milliseconds * _NS_PER_MS)

    def view(self) -> dict[str, int]:
        """As statistics say it."""
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Statistics:
    """Of one model in this process. `executions` counts units, by the part that each answer is."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)
    inferences: int = 0
    executions: float = 0.0
    last_ms: int = 0

    def answered(
        self, *, took_ms: float, queue_ms: float, busy_ms: float, rows: int, batch: int
    ) -> None:
        """One request was answered."""
        self.success.add(took_ms)
        self.queue.add(queue_ms)
        self.compute.add(busy_ms)
        self.inferences += rows
        self.executions += 1 / batch
        self.last_ms = time.time_ns() // _NS_PER_MS


class Model:
    """One package as the protocol shows it."""

    def __init__(self, package: Package) -> None:
        spec = package.spec
        self.name, self.version, self.digest = spec.name, spec.version, package.digest
        self.reference_ms = spec.reference_ms
        self.requirement = Requirement(model=package.digest, task=spec.task)
        self.interface = Interface(spec)
        self.statistics = Statistics()
        self.task = spec.task

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """`GET /v2/models/{name}`."""
        return {
            "name": self.name,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": [_tensor(tensor) for tensor in self.interface.inputs],
            "outputs": [_tensor(tensor) for tensor in self.interface.outputs],
        }

    def config(self) -> dict[str, Any]:
        """`GET /v2/models/{name}/config`, as far as this is one of Triton's.

        With a `max_batch_size` the first dimension is left out of `dims`, as there.
        """
        is_batched = self.interface.is_batched and all(
            tensor.batch_axis == 0 for tensor in (*self.interface.inputs, *self.interface.outputs)
        )
        config: dict[str, Any] = {
            "name": self.name,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": limits.INTERACTIVE_BATCH_ROWS_MAX if is_batched else 0,
            "input": [_declared(tensor, is_batched) for tensor in self.interface.inputs],
            "output": [_declared(tensor, is_batched) for tensor in self.interface.outputs],
            "instance_group": [],
            "model_transaction_policy": {"decoupled": False},
            "parameters": {"task": {"string_value": self.task}},
        }
        if is_batched:
            config["dynamic_batching"] = {
                "max_queue_delay_microseconds": limits.INTERACTIVE_BATCH_WAIT_MS * 1000
            }
        return config

    def stats(self) -> dict[str, Any]:
        """One entry of `model_stats`."""
        counts = self.statistics
        nothing = Duration().view()
        return {
            "name": self.name,
            "version": self.version,
            "last_inference": counts.last_ms,
            "inference_count": counts.inferences,
            "execution_count": round(counts.executions),
            "inference_stats": {
                "success": counts.success.view(),
                "fail": counts.fail.view(),
                "queue": counts.queue.view(),
                "compute_input": nothing,
                "compute_infer": counts.compute.view(),
                "compute_output": nothing,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": [],
        }


def _tensor(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _declared(tensor: TensorSpec, is_batched: bool) -> dict[str, Any]:
    dims = tensor.shape[1:] if is_batched else tensor.shape
    kind = _CONFIG_TYPES.get(tensor.datatype, f"TYPE_{tensor.datatype}")
    return {"name": tensor.name, "data_type": kind, "dims": list(dims)}
