"""Packages: one digest each, and every refusal by its reason."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from edge_runtime.contract import limits
from edge_runtime.contract.onnx_file import NotOnnx, has_external_data
from edge_runtime.contract.package import (
    SPEC_FILE,
    Manifest,
    Package,
    PackageFault,
    PackageFile,
    PackageRefused,
    check_path,
    parse_manifest,
    read_package,
    read_spec,
    verify_package,
)
from edge_runtime.vehicle.models.importers.real import MODEL_NAMES
from edge_runtime.vehicle.models.importers.synthetic import SYNTHETIC_NAMES, write_synthetic
from edge_runtime.vehicle.models.importers.writer import render_spec, write_package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return write_synthetic("noop", tmp_path)


def refusal(act: Callable[[], object]) -> PackageRefused:
    with pytest.raises(PackageRefused) as caught:
        act()
    return caught.value


def test_the_digest_is_that_of_the_manifest_bytes(package: Package) -> None:
    data = package.manifest.canonical_bytes()
    assert package.digest == hashlib.sha256(data).hexdigest()
    assert parse_manifest(data, package.digest) == package.manifest
    assert [file.path for file in package.manifest.files] == ["model.onnx", SPEC_FILE]


def test_the_same_files_have_the_same_digest_anywhere(package: Package, tmp_path: Path) -> None:
    assert write_synthetic("noop", tmp_path / "elsewhere").digest == package.digest


def test_one_byte_more_is_another_package(package: Package) -> None:
    before = package.digest
    with (package.folder / SPEC_FILE).open("a") as spec:
        spec.write("\n")
    assert read_package(package.folder).digest != before


@pytest.mark.parametrize("name", SYNTHETIC_NAMES)
def test_a_rendered_spec_reads_back_equal(name: str, tmp_path: Path) -> None:
    package = write_synthetic(name, tmp_path)
    assert read_spec(package.folder) == package.spec
    assert render_spec(package.spec) == (package.folder / SPEC_FILE).read_text()


def test_a_spec_may_hold_what_toml_can_say(package: Package, tmp_path: Path) -> None:
    parameters = {
        "labels": ['a "quoted" one', "tab\tand \x7f", "ü"],
        "nested": {"on": True, "odd key": 1.5},
        "empty": [],
    }
    spec = msgspec.structs.replace(package.spec, parameters=parameters, inputs=(), outputs=())
    model = (package.folder / "model.onnx").read_bytes()
    assert write_package(spec, {"model.onnx": model}, tmp_path / "odd").spec == spec
    assert read_spec(tmp_path / "odd") == spec


# --- the folder --------------------------------------------------------------------------


def test_a_folder_without_a_spec(tmp_path: Path) -> None:
    assert refusal(lambda: read_package(tmp_path)).reason is PackageFault.MISSING_FILE


def test_a_spec_that_names_a_file_that_is_not_there(package: Package) -> None:
    (package.folder / "model.onnx").unlink()
    refused = refusal(lambda: read_package(package.folder))
    assert refused.reason is PackageFault.MISSING_FILE
    assert "model.onnx" in refused.detail


def test_a_link_is_no_file(package: Package) -> None:
    (package.folder / "more.txt").symlink_to("/etc/hostname")
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.PATH_OUTSIDE


def test_a_linked_folder_is_no_folder(package: Package) -> None:
    (package.folder / "more").symlink_to("/etc", target_is_directory=True)
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.PATH_OUTSIDE


def test_a_pipe_is_no_file(package: Package) -> None:
    os.mkfifo(package.folder / "pipe")
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.PATH_OUTSIDE


def test_too_many_files(package: Package) -> None:
    for number in range(limits.PACKAGE_MAX_FILES):
        (package.folder / f"{number}.txt").touch()
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.TOO_LARGE


def test_too_long_a_spec(package: Package) -> None:
    (package.folder / SPEC_FILE).write_text("#" * (limits.PACKAGE_SPEC_MAX_BYTES + 1))
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.TOO_LARGE


def test_a_package_over_the_limit(package: Package) -> None:
    with (package.folder / "huge.bin").open("wb") as file:
        file.truncate(limits.PACKAGE_MAX_BYTES + 1)  # a hole: no disk is used
    refused = refusal(lambda: read_package(package.folder))
    assert refused.reason is PackageFault.TOO_LARGE
    assert str(limits.PACKAGE_MAX_BYTES) in refused.detail


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb", "a\0b"]
)
def test_paths_that_are_not_plain(path: str) -> None:
    assert refusal(lambda: check_path(path)).reason is PackageFault.PATH_OUTSIDE


# --- the spec ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "reason", "says"),
    [
        ('task = "tensor"', 'task = "mind-reading"', PackageFault.UNKNOWN_TASK, "mind-reading"),
        ('name = "noop"', "name = ", PackageFault.BAD_TOML, "line 1"),
        ('version = "1"', "version = 1", PackageFault.BAD_SPEC, "version"),
        ("reference_ms = 0.02", "", PackageFault.BAD_SPEC, "reference_ms"),
        ("reference_ms = 0.02", "reference_ms = -1", PackageFault.BAD_SPEC, "reference_ms"),
        ('task = "tensor"', 'task = "tensor"\nshell = "x"', PackageFault.BAD_SPEC, "shell"),
        ('datatype = "FP32"', 'datatype = "BF16"', PackageFault.BAD_SPEC, "datatype"),
        ("batch_axis = 0", "batch_axis = 1", PackageFault.BAD_SPEC, "batch_axis 1"),
        ("shape = [-1]", "shape = [-2]", PackageFault.BAD_SPEC, "shape"),
        ('"model.onnx"', '"../model.onnx"', PackageFault.PATH_OUTSIDE, "../model.onnx"),
        ("model = ", "weights = ", PackageFault.BAD_SPEC, "files.model"),
    ],
)
def test_bad_specs(package: Package, old: str, new: str, reason: PackageFault, says: str) -> None:
    path = package.folder / SPEC_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    refused = refusal(lambda: read_package(package.folder))
    assert refused.reason is reason
    assert says in refused.detail


# --- the manifest ------------------------------------------------------------------------


def file_named(path: str) -> PackageFile:
    return PackageFile(path=path, length=1, sha256="0" * 64)


def manifest_of(*paths: str) -> bytes:
    return Manifest(files=tuple(file_named(path) for path in paths)).canonical_bytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", PackageFault.BAD_MANIFEST),
        (b"{}", PackageFault.BAD_MANIFEST),
        (b"[" * 100_000, PackageFault.BAD_MANIFEST),
        (manifest_of("a"), PackageFault.MISSING_FILE),
        (manifest_of(SPEC_FILE, "a"), PackageFault.BAD_MANIFEST),
        (manifest_of(SPEC_FILE, SPEC_FILE), PackageFault.BAD_MANIFEST),
        (manifest_of("../a", SPEC_FILE), PackageFault.PATH_OUTSIDE),
        (manifest_of("/a", SPEC_FILE), PackageFault.PATH_OUTSIDE),
        (manifest_of("a", SPEC_FILE).replace(b":", b": "), PackageFault.BAD_MANIFEST),
        (b" " * (limits.PACKAGE_MANIFEST_MAX_BYTES + 1), PackageFault.TOO_LARGE),
        (manifest_of("a", SPEC_FILE).replace(b"000", b"xyz"), PackageFault.BAD_MANIFEST),
    ],
)
def test_bad_manifests(data: bytes, reason: PackageFault) -> None:
    digest = hashlib.sha256(data).hexdigest()
    assert refusal(lambda: parse_manifest(data, digest)).reason is reason


def test_a_manifest_under_another_digest(package: Package) -> None:
    data = package.manifest.canonical_bytes()
    assert refusal(lambda: parse_manifest(data, "0" * 64)).reason is PackageFault.WRONG_DIGEST


def test_a_folder_that_differs_from_its_manifest(package: Package) -> None:
    assert verify_package(package.folder, package.manifest) == package
    extra = package.folder / "extra.txt"
    extra.touch()
    refused = refusal(lambda: verify_package(package.folder, package.manifest))
    assert refused.reason is PackageFault.EXTRA_FILE
    extra.unlink()
    model = package.folder / "model.onnx"
    data = model.read_bytes()
    model.write_bytes(data[:-1] + b"\0")
    refused = refusal(lambda: verify_package(package.folder, package.manifest))
    assert refused.reason is PackageFault.WRONG_FILE
    model.unlink()
    refused = refusal(lambda: verify_package(package.folder, package.manifest))
    assert refused.reason is PackageFault.MISSING_FILE


# --- ONNX files --------------------------------------------------------------------------


def outside(tensor: TensorProto) -> TensorProto:
    external_data_helper.set_external_data(tensor, location="weights.bin")
    tensor.ClearField("raw_data")
    return tensor


def weight(name: str = "w") -> TensorProto:
    return numpy_helper.from_array(np.array([1, 2], np.float32), name)


def model_with(graph: onnx.GraphProto) -> bytes:
    return bytes(helper.make_model(graph).SerializeToString())


def graph_of(nodes: list[onnx.NodeProto], initializers: list[TensorProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "g", [], [], initializers)


def in_initializer() -> bytes:
    return model_with(graph_of([], [weight("a"), outside(weight())]))


def in_constant() -> bytes:
    constant = helper.make_node("Constant", [], ["c"], value=outside(weight()))
    return model_with(graph_of([constant], []))


def in_subgraph() -> bytes:
    inner = graph_of([], [outside(weight())])
    return model_with(graph_of([helper.make_node("If", ["c"], ["y"], then_branch=inner)], []))


def in_sparse() -> bytes:
    graph = graph_of([], [])
    graph.sparse_initializer.add().values.CopyFrom(outside(weight()))
    return model_with(graph)


def in_function() -> bytes:
    model = helper.make_model(graph_of([], []))
    node = helper.make_node("Constant", [], ["c"], value=outside(weight()))
    model.functions.add(name="f", domain="d").node.append(node)
    return bytes(model.SerializeToString())


def by_location_only() -> bytes:
    tensor = weight()
    tensor.data_location = TensorProto.EXTERNAL
    return model_with(graph_of([], [tensor]))


def hidden_in_a_second_graph() -> bytes:
    # protobuf merges a field that comes twice: readers see both graphs as one.
    return model_with(graph_of([], [weight("a")])) + in_initializer()


@pytest.mark.parametrize(
    "make",
    [
        in_initializer,
        in_constant,
        in_subgraph,
        in_sparse,
        in_function,
        by_location_only,
        hidden_in_a_second_graph,
    ],
)
def test_external_data_is_found_and_refused(package: Package, make: Callable[[], bytes]) -> None:
    (package.folder / "model.onnx").write_bytes(make())
    assert has_external_data(package.folder / "model.onnx")
    refused = refusal(lambda: read_package(package.folder))
    assert refused.reason is PackageFault.EXTERNAL_DATA
    assert "files.model" in refused.detail


def test_data_inside_is_not_external(package: Package) -> None:
    inner = graph_of([], [weight()])
    nodes = [
        helper.make_node("Constant", [], ["c"], value=weight()),
        helper.make_node("If", ["c"], ["y"], then_branch=inner),
    ]
    (package.folder / "model.onnx").write_bytes(model_with(graph_of(nodes, [weight()])))
    assert not has_external_data(package.folder / "model.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain text, no model",
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph that reaches past the end
        b"\x3a" + b"\xff" * 11,  # a length of over 64 bits
        b"\x0b",  # a group: not used by ONNX
        b"\x09\x00",  # a fixed64 that is cut
    ],
)
def test_what_is_no_protobuf_is_refused(package: Package, data: bytes) -> None:
    path = package.folder / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(NotOnnx):
        has_external_data(path)
    assert refusal(lambda: read_package(package.folder)).reason is PackageFault.BAD_MODEL


def test_graphs_nested_without_end_are_refused(tmp_path: Path) -> None:
    def prefixed(key: int, body: bytes) -> bytes:
        length, packed = len(body), bytearray()
        while length > 0x7F:
            packed.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes([key, *packed, length]) + body

    graph = b""
    for _ in range(limits.ONNX_NESTING_MAX):
        graph = prefixed(0x0A, prefixed(0x2A, prefixed(0x32, graph)))  # node, attribute, graph
    path = tmp_path / "deep.onnx"
    path.write_bytes(prefixed(0x3A, graph))
    with pytest.raises(NotOnnx, match="nest deeper"):
        has_external_data(path)


@pytest.mark.models
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_real_packages_are_whole(model: Callable[[str], Package], name: str) -> None:
    package = model(name)
    assert package.spec.name == name
    assert verify_package(package.folder, package.manifest).digest == package.digest
