"""Reads GGUF: weights, and its tokenizer as a `tokenizer.json`. Needs `gguf` and `tokenizers`."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from edge_runtime.vehicle.models.importers import sources

_CONTROL_TOKEN: Final = 3
"""GGUF's type of special tokens (`TokenType.CONTROL`)."""


class GgufFile:
    """Weights and fields of a GGUF file, opened where it lies."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def field(self, name: str) -> Any:
        """Return a field's value. Raises `DownloadFailed` where the file has none."""
        field = self._reader.fields.get(name)
        if field is None:
            raise sources.DownloadFailed(f"the GGUF file has no field {name}")
        return field.contents()

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        """Return a weight, dequantised, as [outputs, inputs] or [size].

        Raises `DownloadFailed` where the file has none.
        """
        tensor = self._tensors.get(name)
        if tensor is None:
            raise sources.DownloadFailed(f"the GGUF file has no weight {name}")
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)


def tokenizer_json(file: GgufFile) -> bytes:
    """Return `tokenizer.json`: byte-level BPE with single digits, as `tokenizer.ggml.pre` says."""
    tokens = file.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in file.field("tokenizer.ggml.merges")]
    types = file.field("tokenizer.ggml.token_type")
    bpe = models.BPE({text: number for number, text in enumerate(tokens)}, merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=True)
            for text, kind in zip(tokens, types, strict=True)
            if kind == _CONTROL_TOKEN
        ]
    )
    return str(tokenizer.to_str()).encode()
