"""A decoder-only model with its cache of keys and values, as ONNX Runtime computes it.

The graph's interface is that of `GroupQueryAttention`, whose present output may lie in the same
memory as its past input: a step writes one token's keys and values into each row's place and
copies nothing. Inputs: `input_ids` int64 [rows, tokens], `seqlens_k` int32 [rows] (a row's tokens
with this step's, minus 1), `total_length` int32 [] (the most of any row), `past_k_N` and
`past_v_N` FP32 [rows, heads, context, size]. Outputs: `logits` FP32 [rows, vocabulary] of the
last token, `present_…` as `past_…`.

Invariants
- The cache is address space until a row grows into it.
- A step that was stopped and is repeated gives what it would have given.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from edge_runtime.contract import limits
from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused, TensorSpec
from edge_runtime.vehicle.inference.generation.sampler import Logits
from edge_runtime.vehicle.inference.tasks.base import Array, Binding, Runtime, Session

_PAST: Final = "past_"
_PRESENT: Final = "present_"
_LOGITS: Final = "logits"
_FP32_BYTES: Final = 4
_CACHE_RANK: Final = 4
_BINDINGS_KEPT: Final = 2 * limits.GENERATION_ROWS_MAX


class CachedDecoder:
    """See the module; `Decoder` of `batch`.

    Raises `PackageRefused` (bad_spec) where `model.toml` describes no such graph, or more cache
    than a car gives.
    """

    def __init__(
        self, runtime: Runtime, session: Session, spec: ModelSpec, rows: int, context_tokens: int
    ) -> None:
        self._runtime = runtime
        self._session = session
        self.rows = rows
        self.vocabulary = _vocabulary(spec, session)
        caches = [tensor for tensor in spec.inputs if tensor.name.startswith(_PAST)]
        shapes = {tensor.name: _cache_shape(tensor, rows, context_tokens) for tensor in caches}
        kv_bytes = sum(_FP32_BYTES * int(np.prod(shape)) for shape in shapes.values())
        if not shapes or kv_bytes > limits.GENERATION_KV_MAX_BYTES:
            raise PackageRefused(
                PackageFault.BAD_SPEC,
                f"model.toml: {rows} rows of {context_tokens} tokens need {kv_bytes} bytes of"
                f" cache; the limit is {limits.GENERATION_KV_MAX_BYTES}",
            )
        self._caches = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        self._logits = np.zeros((rows, self.vocabulary), np.float32)
        self._bindings: dict[tuple[int, int, int], _Step] = {}

    def prefill(self, row: int, ids: Sequence[int], start: int) -> Logits:
        """Read tokens into a row behind its first `start`; the logits after the last, [V]."""
        step = self._step(row, row + 1, len(ids))
        step.ids[0] = ids
        logits: Logits = self._run(step, [start + len(ids)])[0]
        return logits

    def decode(self, tokens: Sequence[int], lengths: Sequence[int]) -> Logits:
        """Read one token into each of the first rows, behind its `lengths`; logits [rows, V].

        They are valid until the next step.
        """
        step = self._step(0, len(tokens), 1)
        step.ids[:, 0] = tokens
        return self._run(step, [length + 1 for length in lengths])

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of one row over another."""
        for cache in self._caches.values():
            cache[target, :, :length] = cache[source, :, :length]

    def swap(self, first: int, second: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        for cache in self._caches.values():
            kept = cache[first, :, :length].copy()
            cache[first, :, :length] = cache[second, :, :length]
            cache[second, :, :length] = kept

    def _run(self, step: "_Step", lengths: list[int]) -> Logits:
        step.last[:] = lengths
        step.last -= 1
        step.total[...] = max(lengths)
        self._runtime.run_bound(self._session, step.binding)
        return step.logits

    def _step(self, first: int, stop: int, tokens: int) -> "_Step":
        """Return a step of this shape; one that is repeated is bound to its memory only once."""
        key = (first, stop, tokens)
        step = self._bindings.pop(key, None) or _Step(
            self._runtime.bind(self._session),
            {name: cache[first:stop] for name, cache in self._caches.items()},
            self._logits[first:stop],
            tokens,
        )
        self._bindings[key] = step
        while len(self._bindings) > _BINDINGS_KEPT:
            del self._bindings[next(iter(self._bindings))]
        return step


class _Step:
    """Inputs and outputs of one shape, and the memory where they lie."""

    def __init__(
        self, binding: Binding, caches: dict[str, Array], logits: Logits, tokens: int
    ) -> None:
        rows = logits.shape[0]
        self.binding = binding
        self.logits = logits
        self.ids = np.zeros((rows, tokens), np.int64)
        self.last = np.zeros(rows, np.int32)
        self.total = np.zeros((), np.int32)
        binding.bind_input("input_ids", self.ids)
        binding.bind_input("seqlens_k", self.last)
        binding.bind_input("total_length", self.total)
        for name, cache in caches.items():
            binding.bind_input(name, cache)
            binding.bind_output(_PRESENT + name.removeprefix(_PAST), cache)
        binding.bind_output(_LOGITS, logits)


def _vocabulary(spec: ModelSpec, session: Session) -> int:
    """Return how many tokens there are. Refuses a `model.toml` that describes another graph."""
    for values, declared in (
        (session.get_inputs(), spec.inputs),
        (session.get_outputs(), spec.outputs),
    ):
        found, named = {value.name for value in values}, {tensor.name for tensor in declared}
        if found != named:
            different = ", ".join(sorted(found ^ named)[:4])
            raise PackageRefused(
                PackageFault.BAD_SPEC, f"model.toml and the file differ in the tensors {different}"
            )
    for tensor in spec.outputs:
        if tensor.name == _LOGITS and tensor.datatype == "FP32" and tensor.shape[-1] > 0:
            return tensor.shape[-1]
    raise PackageRefused(
        PackageFault.BAD_SPEC, "model.toml: needs an FP32 output `logits` [-1, vocabulary]"
    )


def _cache_shape(tensor: TensorSpec, rows: int, context_tokens: int) -> tuple[int, ...]:
    if len(tensor.shape) != _CACHE_RANK or tensor.shape[1] < 1 or tensor.shape[3] < 1:
        raise PackageRefused(
            PackageFault.BAD_SPEC,
            f"model.toml: {tensor.name} has shape {list(tensor.shape)}; it must be"
            " [-1, heads, -1, size]",
        )
    return (rows, tensor.shape[1], context_tokens, tensor.shape[3])
