"""Makes a model package of your own: one folder, `model.toml` beside the ONNX file.

    python examples/models/pack_your_own.py my-model

Give the folder to `edge-runtime dispatcher` with its other packages; cars fetch it by digest.
Needs `pip install onnx`, here only to have a model to pack: any ONNX file will do.
"""

import sys
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from edge_runtime.contract.package import read_package

MODEL_TOML = """\
name = "celsius-to-fahrenheit"
version = "1"
task = "tensor"              # any ONNX model: named tensors in, named tensors out
licence = "Apache-2.0"
source = "examples/models/pack_your_own.py"
reference_ms = 0.1           # one typical item on one core; the watchdog allows 20 times that,
                             # and 30 s at least
memory_bytes = 1_000_000     # what the loaded model adds to the engine

[files]
model = "model.onnx"         # weights must be inside: external data is refused

[[inputs]]
name = "celsius"
datatype = "FP32"            # names of the Open Inference Protocol
shape = [-1]                 # -1: any length
batch_axis = 0               # all inputs and outputs of one item agree along it

[[outputs]]
name = "fahrenheit"
datatype = "FP32"
shape = [-1]
batch_axis = 0
"""


def model() -> onnx.ModelProto:
    """Return a graph that computes 1.8 x + 32."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["celsius", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["fahrenheit"]),
        ],
        "celsius-to-fahrenheit",
        [helper.make_tensor_value_info("celsius", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("fahrenheit", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor("factor", TensorProto.FLOAT, [], [1.8]),
            helper.make_tensor("offset", TensorProto.FLOAT, [], [32.0]),
        ],
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def main(folder: Path) -> None:
    """Write the package and check it as a car will."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model(), folder / "model.onnx")
    (folder / "model.toml").write_text(MODEL_TOML)
    package = read_package(folder)
    print(f"{package.spec.name} {package.spec.version} is {package.digest}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
