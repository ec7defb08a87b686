"""Tiny generated models for tests and benches, good and evil, each a `tensor` package.

Every one takes `x` and gives `y`, FP32. The evil ones are what a car must survive: a graph that
never ends, one that asks for 64 GB, one that turns bad for certain items only.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_runtime.contract.package import ModelSpec, Package, TensorSpec
from edge_runtime.vehicle.models.importers.sources import Say
from edge_runtime.vehicle.models.importers.writer import write_package

OPSET: Final = 17
IR_VERSION: Final = 8
HUGE_ELEMENTS: Final = 1 << 34
"""64 GiB of FP32."""
MLP_WIDTH: Final = 256
MLP_LAYERS: Final = 16
"""Layers that take about 5 ms on one core of the reference machine."""
CHAIN_WIDTH: Final = 160
CHAIN_NODES: Final = 400
BIG_NODE_WIDTH: Final = 6_000
_SEED: Final = 7


def _value(name: str, shape: list[int | str]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _constant(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def _model(nodes: list[Any], shape: list[int | str], constants: list[Any]) -> bytes:
    graph = helper.make_graph(
        nodes, "synthetic", [_value("x", shape)], [_value("y", shape)], constants
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _noop() -> bytes:
    return _model([helper.make_node("Identity", ["x"], ["y"])], ["n"], [])


def _layers(width: int, layers: int) -> bytes:
    """Stretch one row to a square, multiply it `layers` times, and average it back to a row."""
    random = np.random.default_rng(_SEED)
    weight = (random.standard_normal((width, width)) / np.sqrt(width)).astype(np.float32)
    constants = [
        _constant("square", np.array([width, width], np.int64)),
        _constant("weight", weight),
    ]
    nodes = [helper.make_node("Expand", ["x", "square"], ["h0"])]
    nodes += [
        helper.make_node("MatMul", [f"h{layer}", "weight"], [f"h{layer + 1}"])
        for layer in range(layers)
    ]
    nodes.append(helper.make_node("ReduceMean", [f"h{layers}"], ["y"], axes=[0], keepdims=1))
    return _model(nodes, [1, width], constants)


def _endless_body() -> Any:
    """Return a loop body that changes nothing and always goes on."""
    return helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Identity", ["state"], ["state_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("iteration", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            _value("state", ["n"]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            _value("state_on", ["n"]),
        ],
    )


def _loop_forever() -> bytes:
    loop = helper.make_node("Loop", ["", "true", "x"], ["y"], body=_endless_body())
    return _model([loop], ["n"], [_constant("true", np.array(True))])


def _loop_when_positive() -> bytes:
    """Return a model that is the identity, but never ends where the first element is over 0."""
    then_branch = helper.make_graph(
        [helper.make_node("Loop", ["", "true", "x"], ["then_y"], body=_endless_body())],
        "forever",
        [],
        [_value("then_y", ["n"])],
        [_constant("true", np.array(True))],
    )
    else_branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else_y"])], "at_once", [], [_value("else_y", ["n"])]
    )
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["head"], axis=0),
        helper.make_node("Greater", ["head", "zero"], ["is_bad"]),
        helper.make_node("If", ["is_bad"], ["y"], then_branch=then_branch, else_branch=else_branch),
    ]
    constants = [
        _constant("first", np.array(0, np.int64)),
        _constant("zero", np.array(0, np.float32)),
    ]
    return _model(nodes, ["n"], constants)


def _huge_alloc() -> bytes:
    nodes = [
        helper.make_node("Expand", ["x", "huge"], ["h"]),
        helper.make_node("ReduceMean", ["h"], ["y"], axes=[0], keepdims=1),
    ]
    return _model(nodes, [1], [_constant("huge", np.array([HUGE_ELEMENTS], np.int64))])


def _big_node() -> bytes:
    """Return one multiplication that takes seconds and cannot be stopped in the middle."""
    nodes = [
        helper.make_node("Expand", ["x", "square"], ["h"]),
        helper.make_node("MatMul", ["h", "h"], ["product"]),
        helper.make_node("ReduceMean", ["product"], ["mean"], axes=[0, 1], keepdims=0),
        helper.make_node("Reshape", ["mean", "one"], ["y"]),
    ]
    constants = [
        _constant("square", np.array([BIG_NODE_WIDTH, BIG_NODE_WIDTH], np.int64)),
        _constant("one", np.array([1], np.int64)),
    ]
    return _model(nodes, [1], constants)


_MODELS: Final[Mapping[str, tuple[Callable[[], bytes], tuple[int, ...], float]]] = {
    "noop": (_noop, (-1,), 0.02),
    "mlp5ms": (lambda: _layers(MLP_WIDTH, MLP_LAYERS), (1, MLP_WIDTH), 5.0),
    "chain": (lambda: _layers(CHAIN_WIDTH, CHAIN_NODES), (1, CHAIN_WIDTH), 60.0),
    "loop-forever": (_loop_forever, (-1,), 1.0),
    "loop-when-positive": (_loop_when_positive, (-1,), 0.02),
    "big-node": (_big_node, (1,), 5_000.0),
    "huge-alloc": (_huge_alloc, (1,), 1.0),
}

SYNTHETIC_NAMES: Final = tuple(_MODELS)


def write_synthetic(name: str, out: Path) -> Package:
    """Write the package `out/name`; `name` is one of `SYNTHETIC_NAMES`."""
    build, shape, reference_ms = _MODELS[name]
    batch_axis = 0 if shape == (-1,) else None
    spec = ModelSpec(
        name=name,
        version="1",
        task="tensor",
        licence="Apache-2.0",
        source="generated by edge-runtime",
        files={"model": "model.onnx"},
        reference_ms=reference_ms,
        memory_bytes=4 << 20,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=shape, batch_axis=batch_axis),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=shape, batch_axis=batch_axis),),
    )
    return write_package(spec, {"model.onnx": build()}, out / name)


def write_all(out: Path, say: Say) -> list[Package]:
    """Write every synthetic package under `out`."""
    packages = [write_synthetic(name, out) for name in SYNTHETIC_NAMES]
    for package in packages:
        say(f"package   {package.spec.name} {package.digest[:16]} (generated)")
    return packages
