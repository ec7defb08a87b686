"""Builds the ONNX graph of a Llama-like decoder from its shape and weights.

The graph is the one that `vehicle.inference.generation.decoder` runs: rotary embedding, grouped
queries and the cache of keys and values are one `GroupQueryAttention` a layer, whose present
output may lie in the memory of its past input; queries, keys and values are one multiplication.
Operators of `com.microsoft` are part of ONNX Runtime itself, on every provider.

Weights lie in the file as FP16 and become FP32 when the model is loaded (ONNX Runtime folds the
casts): measured on SmolLM2-135M, 270 MB instead of 539 MB to send to each car, and 760 MB instead
of 940 MB in memory, because the table of embeddings stays FP16. Kept as 4 bits (MatMulNBits, with
the blocks' minima as a second multiplication) it takes 290 MB of memory, but eight requests
together gain 2 to 4 times instead of 5: each step decodes all weights once more.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.contract.package import TensorSpec
from edge_runtime.vehicle.models.importers.llama_shape import LlamaShape, input_specs, output_specs

Weights = Callable[[str], npt.NDArray[np.float32]]
"""A weight by its name in GGUF, as [outputs, inputs] or [size]."""

_OPSET: Final = 17
_IR_VERSION: Final = 8
_CONTRIB: Final = "com.microsoft"


def build_graph(name: str, shape: LlamaShape, weights: Weights) -> bytes:
    """Return the ONNX file. Weight names are GGUF's; the output's weights are the embeddings'."""
    builder = _Builder(shape, weights)
    builder.decoder()
    model = helper.make_model(
        helper.make_graph(
            builder.nodes,
            name,
            [_value(spec) for spec in input_specs(shape)],
            [_value(spec) for spec in output_specs(shape)],
            list(builder.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


_ELEMENTS: Final[Mapping[str, int]] = {
    "INT64": TensorProto.INT64,
    "INT32": TensorProto.INT32,
    "FP32": TensorProto.FLOAT,
}
_AXES: Final[Mapping[str, tuple[str, ...]]] = {
    "input_ids": ("rows", "tokens"),
    "seqlens_k": ("rows",),
    "logits": ("rows", "vocabulary"),
}


def _value(spec: TensorSpec) -> Any:
    axes = _AXES.get(spec.name, ("rows", "heads", "context", "size"))
    dimensions = [axis if size < 0 else size for axis, size in zip(axes, spec.shape, strict=False)]
    return helper.make_tensor_value_info(spec.name, _ELEMENTS[spec.datatype], dimensions)


class _Builder:
    """Nodes and constants of one graph; every method returns the name of its output."""

    def __init__(self, shape: LlamaShape, weights: Weights) -> None:
        self._shape = shape
        self._weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def decoder(self) -> None:
        """The whole graph."""
        shape = self._shape
        self._positions()
        table = self._weights("token_embd.weight").astype(np.float16)
        self._constant("embeddings", table)
        rows = self._node("Gather", ["embeddings", "input_ids"], "tokens_fp16")
        x = self._node("Cast", [rows], "tokens", to=TensorProto.FLOAT)
        normed = self._norm(x, "blk.0.attn_norm.weight", "layer_0/normed")
        for layer in range(shape.layers):
            x, normed = self._layer(layer, x, normed)
        head = self._node("Cast", ["embeddings"], "head", to=TensorProto.FLOAT)
        self._node("Gemm", [normed, head], "logits", transB=1)

    def _positions(self) -> None:
        shape = self._shape
        exponents = np.arange(0, shape.head_size, 2, dtype=np.float64) / shape.head_size
        angles = np.outer(np.arange(shape.context), shape.rope_base**-exponents)
        self._constant("cosines", np.cos(angles).astype(np.float32))
        self._constant("sines", np.sin(angles).astype(np.float32))

    def _layer(self, layer: int, x: str, normed: str) -> tuple[str, str]:
        """Return the stream after a layer, and what its successor reads: the stream, normed."""
        shape, here, block = self._shape, f"layer_{layer}", f"blk.{layer}"
        qkv = self._multiply(normed, self._attention_weights(block), f"{here}/qkv")
        past = [f"past_k_{layer}", f"past_v_{layer}"]
        self._node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_length", "cosines", "sines"],
            f"{here}/attended",
            f"present_k_{layer}",
            f"present_v_{layer}",
            domain=_CONTRIB,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
            do_rotary=1,
            scale=shape.head_size**-0.5,
        )
        added = self._multiply(
            f"{here}/attended", self._weights(f"{block}.attn_output.weight"), f"{here}/attention"
        )
        x, normed = self._add_and_norm(x, added, f"{block}.ffn_norm.weight", f"{here}/middle")
        gate = self._multiply(normed, self._weights(f"{block}.ffn_gate.weight"), f"{here}/gate")
        up = self._multiply(normed, self._weights(f"{block}.ffn_up.weight"), f"{here}/up")
        # With alpha 1 this is x * sigmoid(x), the SiLU of the model.
        open_gate = self._node("QuickGelu", [gate], f"{here}/open", domain=_CONTRIB, alpha=1.0)
        inner = self._node("Mul", [open_gate, up], f"{here}/inner")
        added = self._multiply(inner, self._weights(f"{block}.ffn_down.weight"), f"{here}/forward")
        if layer + 1 < shape.layers:
            return self._add_and_norm(x, added, f"blk.{layer + 1}.attn_norm.weight", here)
        return "", self._last_token(self._node("Add", [x, added], f"{here}/stream"))

    def _last_token(self, x: str) -> str:
        """Return the last token of each row, normed: nobody asks for the others' logits."""
        self._constant("last", np.array(-1, np.int64))
        last = self._node("Gather", [x, "last"], "last_token", axis=1)
        return self._norm(last, "output_norm.weight", "last_normed")

    def _attention_weights(self, block: str) -> npt.NDArray[np.float32]:
        """Return queries, keys and values, one below the other."""
        shape = self._shape
        return np.concatenate(
            [
                self._halved(self._weights(f"{block}.attn_q.weight"), shape.heads),
                self._halved(self._weights(f"{block}.attn_k.weight"), shape.kv_heads),
                self._weights(f"{block}.attn_v.weight"),
            ]
        )

    def _halved(self, weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
        """Undo GGUF's order of a head's rows: pairs side by side, where the model has halves."""
        half = self._shape.head_size // 2
        return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)

    def _multiply(self, x: str, weight: npt.NDArray[np.float32], output: str) -> str:
        stored = self._constant(f"{output}_fp16", weight.T.astype(np.float16))
        cast = self._node("Cast", [stored], f"{output}_weight", to=TensorProto.FLOAT)
        return self._node("MatMul", [x, cast], output)

    def _norm(self, x: str, weight: str, output: str) -> str:
        """RMSNorm (Zhang and Sennrich, 2019), in operators that every opset has."""
        self._constant("epsilon", np.array(self._shape.epsilon, np.float32))
        square = self._node("Mul", [x, x], f"{output}/square")
        mean = self._node("ReduceMean", [square], f"{output}/mean", axes=[-1], keepdims=1)
        sum_ = self._node("Add", [mean, "epsilon"], f"{output}/sum")
        root = self._node("Sqrt", [sum_], f"{output}/root")
        scaled = self._node("Div", [x, root], f"{output}/scaled")
        return self._node("Mul", [scaled, self._norm_weight(weight)], output)

    def _add_and_norm(self, x: str, added: str, weight: str, output: str) -> tuple[str, str]:
        """Return `x + added`, and that normed."""
        self._node(
            "SkipSimplifiedLayerNormalization",
            [x, added, self._norm_weight(weight)],
            f"{output}/next",
            "",
            "",
            f"{output}/stream",
            domain=_CONTRIB,
            epsilon=self._shape.epsilon,
        )
        return f"{output}/stream", f"{output}/next"

    def _norm_weight(self, name: str) -> str:
        return self._constant(name, self._weights(name))

    def _constant(self, name: str, array: npt.NDArray[Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def _node(
        self, operator: str, inputs: list[str], *outputs: str, domain: str = "", **attributes: Any
    ) -> str:
        self.nodes.append(
            helper.make_node(
                operator, inputs, list(outputs), name=f"{outputs[0]}#", domain=domain, **attributes
            )
        )
        return outputs[0]
