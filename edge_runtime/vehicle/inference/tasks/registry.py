"""From a task's name to the code that does it, loaded when first wanted."""

from pathlib import Path

import msgspec

from edge_runtime.contract.package import ModelSpec, PackageFault, PackageRefused
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.tasks.base import Runtime, Task
from edge_runtime.vehicle.inference.tasks.installed import why_not_installed


def load_task(folder: Path, spec: ModelSpec, runtime: Runtime) -> Task | Generation:
    """Load the package's models and return its task, or a `Generation`, whose items share steps.

    Raises `PackageRefused` (unknown_task, bad_spec) and `ItemFailure` (model_error,
    out_of_memory).
    """
    try:
        return _load(folder, spec, runtime)
    except msgspec.ValidationError as error:
        raise PackageRefused(PackageFault.BAD_SPEC, f"model.toml: parameters: {error}") from error


def _load(folder: Path, spec: ModelSpec, runtime: Runtime) -> Task | Generation:
    if lacks := why_not_installed(spec.task):
        raise PackageRefused(PackageFault.UNKNOWN_TASK, lacks)
    # Imports sit in the branches: a process that embeds text has no use for OpenCV.
    match spec.task:
        case "tensor":
            from edge_runtime.vehicle.inference.tasks.tensor import TensorTask  # noqa: PLC0415

            return TensorTask(folder, spec, runtime)
        case "object-detection":
            from edge_runtime.vehicle.inference.tasks.detection import (  # noqa: PLC0415
                DetectionTask,
            )

            return DetectionTask(folder, spec, runtime)
        case "image-to-text":
            from edge_runtime.vehicle.inference.tasks.ocr import OcrTask  # noqa: PLC0415

            return OcrTask(folder, spec, runtime)
        case "feature-extraction":
            from edge_runtime.vehicle.inference.tasks.embedding import (  # noqa: PLC0415
                EmbeddingTask,
            )

            return EmbeddingTask(folder, spec, runtime)
        case "voice-activity-detection":
            from edge_runtime.vehicle.inference.tasks.speech import SpeechTask  # noqa: PLC0415

            return SpeechTask(folder, spec, runtime)
        case "text-generation":
            from edge_runtime.vehicle.inference.tasks.text_generation import (  # noqa: PLC0415
                load_text_generation,
            )

            return load_text_generation(folder, spec, runtime)
        case unknown:
            raise PackageRefused(PackageFault.UNKNOWN_TASK, repr(unknown))
