"""`feature-extraction`: a text in, one vector out (MiniLM: mean of the tokens, length 1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import (
    Array,
    ItemFailure,
    Runtime,
    parse_parameters,
)
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer


class _ModelParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    max_tokens: Annotated[int, Meta(ge=1, le=512)]


class _Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """None: the vector is the vector."""


class EmbeddingTask:
    """Turns texts into vectors whose dot product is their likeness."""

    def __init__(self, folder: Path, spec: ModelSpec, runtime: Runtime) -> None:
        self._runtime = runtime
        model = msgspec.convert(spec.parameters, _ModelParameters)
        self._tokens_max = model.max_tokens
        self._tokenizer = Tokenizer.read(spec.path_of("tokenizer", folder))
        if self._tokenizer.added_max >= model.max_tokens:
            raise PackageRefused(
                PackageFault.BAD_SPEC,
                f"parameters.max_tokens: {model.max_tokens} leaves no room for a text;"
                f" files.tokenizer adds {self._tokenizer.added_max} tokens",
            )
        self._session = runtime.load(spec.path_of("model", folder))
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [self._session.get_outputs()[0].name]

    def run(self, data: bytes, media_type: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return `{"datatype": "FP32", "shape": [384], "data"}`: a unit vector, little-endian.

        The text is UTF-8; tokens over the model's limit are left out. See `Task.run`.
        """
        del media_type  # text travels as UTF-8 only
        parse_parameters(parameters, _Parameters)
        if len(data) > limits.INPUT_TEXT_MAX_BYTES:
            raise ItemFailure(
                ItemError.INPUT_TOO_LARGE,
                f"the text has {len(data)} bytes; the limit is {limits.INPUT_TEXT_MAX_BYTES}",
            )
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ItemFailure(
                ItemError.UNDECODABLE_INPUT, f"the text is not UTF-8: {error}"
            ) from error
        vector = self._embed(text)
        return {"datatype": "FP32", "shape": [vector.size], "data": vector.tobytes()}

    def _embed(self, text: str) -> Array:
        tokens = self._tokenizer.encode(text, self._tokens_max)
        feeds = {
            name: np.array([values], np.int64)
            for name, values in (
                ("input_ids", tokens.ids),
                ("attention_mask", [1] * len(tokens.ids)),
                ("token_type_ids", tokens.type_ids),
            )
            if name in self._inputs
        }
        (states,) = self._runtime.run(self._session, self._outputs, feeds)
        mean = states[0].mean(axis=0, dtype=np.float64)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), "<f4")
