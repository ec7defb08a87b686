"""The numbers of a Llama-like decoder, and what `model.toml` says of its tensors.

See `llama_graph`; apart from it, because this needs no `onnx`.
"""

from dataclasses import dataclass

from edge_runtime.contract.package import TensorSpec


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers that GGUF calls `llama.*`; `context` is how many positions may be asked for."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float
    epsilon: float

    @property
    def head_size(self) -> int:
        """Numbers of one head."""
        return self.width // self.heads


def cache_specs(shape: LlamaShape, prefix: str) -> tuple[TensorSpec, ...]:
    """Return what `model.toml` says of the cache's tensors; `prefix` is past or present."""
    return tuple(
        TensorSpec(
            name=f"{prefix}_{kind}_{layer}",
            datatype="FP32",
            shape=(-1, shape.kv_heads, -1, shape.head_size),
            batch_axis=0,
        )
        for layer in range(shape.layers)
        for kind in "kv"
    )


def input_specs(shape: LlamaShape) -> tuple[TensorSpec, ...]:
    """Return the inputs of `model.toml`."""
    return (
        TensorSpec(name="input_ids", datatype="INT64", shape=(-1, -1), batch_axis=0),
        TensorSpec(name="seqlens_k", datatype="INT32", shape=(-1,), batch_axis=0),
        TensorSpec(name="total_length", datatype="INT32", shape=()),
        *cache_specs(shape, "past"),
    )


def output_specs(shape: LlamaShape) -> tuple[TensorSpec, ...]:
    """Return the outputs of `model.toml`."""
    logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, shape.vocabulary), batch_axis=0)
    return (logits, *cache_specs(shape, "present"))
