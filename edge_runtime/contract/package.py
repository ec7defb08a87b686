"""Model packages: a folder with `model.toml`, ONNX files and assets, named by a digest.

The digest is the SHA-256 of the canonical manifest, which lists every file of the folder with
its length and SHA-256. Whoever has the digest can check a package from any source.

Invariants
- The manifest's bytes are canonical: files sorted by path, one encoding. Bytes that differ from
  their own re-encoding are refused, so one package has exactly one digest.
- No path leaves the folder; links and special files are refused.
- A package that is read without an error has a known task, readable tensors, files for its
  roles, and no ONNX file that keeps weights elsewhere.

Shared by the dispatcher, which serves packages, and the car, which runs them. Deliberately
absent: onnxruntime, onnx, numpy; signatures, which `edge_runtime.registry` puts on manifests.
"""

import hashlib
import os
import stat
import tomllib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.errors import RemoteError
from edge_runtime.contract.onnx_file import NotOnnx, has_external_data

SPEC_FILE: Final = "model.toml"

KNOWN_TASKS: Final = frozenset(
    {
        "tensor",
        "object-detection",
        "image-to-text",
        "feature-extraction",
        "voice-activity-detection",
        "text-generation",
    }
)

_HASH_BLOCK_BYTES: Final = 1 << 20


class PackageFault(Enum):
    """What is wrong with a package (each is a counter label)."""

    WRONG_DIGEST = "wrong_digest"
    BAD_MANIFEST = "bad_manifest"
    MISSING_FILE = "missing_file"
    EXTRA_FILE = "extra_file"
    WRONG_FILE = "wrong_file"
    PATH_OUTSIDE = "path_outside"
    TOO_LARGE = "too_large"
    BAD_TOML = "bad_toml"
    BAD_SPEC = "bad_spec"
    UNKNOWN_TASK = "unknown_task"
    EXTERNAL_DATA = "external_data"
    BAD_MODEL = "bad_model"
    NOT_PUBLISHED = "not_published"
    BAD_REPOSITORY = "bad_repository"


class PackageRefused(RemoteError):  # noqa: N818 - a refusal, as `Rejected`
    """A package was not accepted; `reason` says why, `detail` names file and limit."""

    def __init__(self, reason: PackageFault, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


Sha256Hex = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=limits.ID_MAX_CHARS)]
RelativePath = Annotated[str, Meta(min_length=1, max_length=limits.PACKAGE_PATH_MAX_CHARS)]
Dimension = Annotated[int, Meta(ge=-1, le=limits.TENSOR_MAX_ELEMENTS)]
Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
]  # fmt: skip


class PackageFile(msgspec.Struct, frozen=True):
    """One file of a package: POSIX path inside the folder, length in bytes, SHA-256."""

    path: RelativePath
    length: Annotated[int, Meta(ge=0, le=limits.PACKAGE_MAX_BYTES)]
    sha256: Sha256Hex


class Manifest(msgspec.Struct, frozen=True):
    """Every file of a package, sorted by path."""

    files: tuple[PackageFile, ...]

    def canonical_bytes(self) -> bytes:
        """Return the one encoding whose SHA-256 is the digest."""
        return msgspec.json.encode(self)

    @property
    def digest(self) -> str:
        """The name of the package: 64 hex digits."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()

    @property
    def total_bytes(self) -> int:
        """The sum of the files' lengths."""
        return sum(file.length for file in self.files)


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a model.

    `datatype` is an Open Inference Protocol name. A dimension of -1 is variable. `batch_axis`
    is the axis along which items may be stacked, or None when there is none.
    """

    name: Name
    datatype: Datatype
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=limits.TENSOR_MAX_RANK)]
    batch_axis: Annotated[int, Meta(ge=0, lt=limits.TENSOR_MAX_RANK)] | None = None


_Tensors = Annotated[tuple[TensorSpec, ...], Meta(max_length=limits.PACKAGE_TENSORS_MAX)]


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `model.toml` says.

    `files` maps a role ("model", "tokenizer" …; the task knows which it needs) to a path.
    `reference_ms` is one typical item on one reference core; `memory_bytes` what the loaded
    model adds to the engine. `inputs` and `outputs` are those of the role "model".
    `parameters` are the task's constants for this model (labels, thresholds).
    """

    name: Name
    version: Name
    task: Name
    licence: Name
    source: Annotated[str, Meta(max_length=limits.TEXT_MAX_CHARS)]
    files: Annotated[dict[str, RelativePath], Meta(max_length=limits.PACKAGE_MAX_FILES)]
    reference_ms: Annotated[float, Meta(gt=0)]
    memory_bytes: Annotated[int, Meta(ge=0)]
    inputs: _Tensors
    outputs: _Tensors
    parameters: dict[str, Any] = {}

    def path_of(self, role: str, folder: Path) -> Path:
        """Return the file with this role in the package's folder.

        Raises `PackageRefused` (bad_spec) when the package has none.
        """
        try:
            return folder / self.files[role]
        except KeyError:
            raise PackageRefused(
                PackageFault.BAD_SPEC, f"{SPEC_FILE}: files.{role} is needed by this task"
            ) from None


class Package(msgspec.Struct, frozen=True):
    """A package that was read and found whole: its folder, manifest, spec and digest."""

    folder: Path
    manifest: Manifest
    spec: ModelSpec
    digest: str

    def path_of(self, role: str) -> Path:
        """Return the file with this role; raises as `ModelSpec.path_of`."""
        return self.spec.path_of(role, self.folder)


def check_path(path: str) -> None:
    """Raise `PackageRefused` (path_outside) unless `path` is plain, relative and inside."""
    parts = path.split("/")
    plain = all(part not in {"", ".", ".."} for part in parts)
    if not plain or "\\" in path or not path.isprintable():
        raise PackageRefused(
            PackageFault.PATH_OUTSIDE, f"{path[:64]!r} is not a plain relative path"
        )
    if len(path) > limits.PACKAGE_PATH_MAX_CHARS:
        raise PackageRefused(
            PackageFault.TOO_LARGE,
            f"a path has {len(path)} characters; the limit is {limits.PACKAGE_PATH_MAX_CHARS}",
        )


def parse_manifest(data: bytes, digest: str) -> Manifest:
    """Decode the manifest whose SHA-256 must be `digest`.

    Raises `PackageRefused`: wrong_digest, bad_manifest, path_outside, missing_file, too_large.
    """
    if len(data) > limits.PACKAGE_MANIFEST_MAX_BYTES:
        raise PackageRefused(
            PackageFault.TOO_LARGE,
            f"the manifest is over {limits.PACKAGE_MANIFEST_MAX_BYTES} bytes",
        )
    if hashlib.sha256(data).hexdigest() != digest:
        raise PackageRefused(PackageFault.WRONG_DIGEST, f"the manifest is not that of {digest}")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageRefused(PackageFault.BAD_MANIFEST, str(error)) from error
    _check_manifest(manifest)
    if manifest.canonical_bytes() != data:
        raise PackageRefused(PackageFault.BAD_MANIFEST, "the manifest is not in canonical form")
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    paths = [file.path for file in manifest.files]
    for path in paths:
        check_path(path)
    if len(paths) > limits.PACKAGE_MAX_FILES:
        raise PackageRefused(
            PackageFault.TOO_LARGE,
            f"{len(paths)} files; the limit is {limits.PACKAGE_MAX_FILES}",
        )
    if paths != sorted(set(paths)):
        raise PackageRefused(PackageFault.BAD_MANIFEST, "paths must be sorted and unique")
    if SPEC_FILE not in paths:
        raise PackageRefused(PackageFault.MISSING_FILE, SPEC_FILE)
    if manifest.total_bytes > limits.PACKAGE_MAX_BYTES:
        raise PackageRefused(
            PackageFault.TOO_LARGE,
            f"{manifest.total_bytes} bytes; the limit is {limits.PACKAGE_MAX_BYTES}",
        )


def read_spec(folder: Path) -> ModelSpec:
    """Read and check `model.toml` only.

    Raises `PackageRefused`: missing_file, too_large, bad_toml, bad_spec, unknown_task,
    path_outside.
    """
    path = folder / SPEC_FILE
    if path.is_symlink() or not path.is_file():
        raise PackageRefused(PackageFault.MISSING_FILE, SPEC_FILE)
    if path.stat().st_size > limits.PACKAGE_SPEC_MAX_BYTES:
        raise PackageRefused(
            PackageFault.TOO_LARGE, f"{SPEC_FILE} is over {limits.PACKAGE_SPEC_MAX_BYTES} bytes"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageRefused(PackageFault.BAD_TOML, f"{SPEC_FILE}: {error}") from error
    return _check_spec(table)


def _check_spec(table: dict[str, Any]) -> ModelSpec:
    task = table.get("task")
    if isinstance(task, str) and task not in KNOWN_TASKS:
        known = ", ".join(sorted(KNOWN_TASKS))
        raise PackageRefused(PackageFault.UNKNOWN_TASK, f"{task[:64]!r}; known are {known}")
    try:
        spec = msgspec.convert(table, ModelSpec)
    except msgspec.ValidationError as error:
        raise PackageRefused(PackageFault.BAD_SPEC, f"{SPEC_FILE}: {error}") from error
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.batch_axis is not None and tensor.batch_axis >= len(tensor.shape):
            raise PackageRefused(
                PackageFault.BAD_SPEC,
                f"{SPEC_FILE}: batch_axis {tensor.batch_axis} of {tensor.name!r} is not one of "
                f"its {len(tensor.shape)} dimensions",
            )
    for path in spec.files.values():
        check_path(path)
    return spec


def read_package(folder: Path) -> Package:
    """Read, hash and check the package in `folder` (blocking; reads every byte).

    Raises `PackageRefused` with any reason but wrong_digest and wrong_file; `OSError` when the
    folder cannot be read.
    """
    spec = read_spec(folder)
    manifest = Manifest(files=tuple(_hash_file(folder, path) for path in _list_files(folder)))
    _check_manifest(manifest)
    package = Package(folder=folder, manifest=manifest, spec=spec, digest=manifest.digest)
    _check_contents(package)
    return package


def verify_package(folder: Path, manifest: Manifest) -> Package:
    """Check that `folder` holds exactly the files of `manifest` and that they are usable.

    Raises `PackageRefused`: as `read_package`, and missing_file, extra_file or wrong_file where
    the folder differs from the manifest.
    """
    found = _list_files(folder)
    expected = {file.path: file for file in manifest.files}
    for path in expected.keys() - set(found):
        raise PackageRefused(PackageFault.MISSING_FILE, path)
    for path in found:
        if path not in expected:
            raise PackageRefused(PackageFault.EXTRA_FILE, path)
        if _hash_file(folder, path) != expected[path]:
            raise PackageRefused(
                PackageFault.WRONG_FILE, f"{path} differs from the manifest in length or SHA-256"
            )
    spec = read_spec(folder)
    package = Package(folder=folder, manifest=manifest, spec=spec, digest=manifest.digest)
    _check_contents(package)
    return package


def _list_files(folder: Path) -> list[str]:
    """Every file under `folder` as sorted POSIX paths; links and special files are refused."""
    paths: list[str] = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        for name in (*folders, *names):
            entry = Path(parent, name)
            relative = entry.relative_to(folder).as_posix()
            mode = entry.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise PackageRefused(
                    PackageFault.PATH_OUTSIDE, f"{relative[:64]!r} is a link or no plain file"
                )
            check_path(relative)
            paths.append(relative)
        if len(paths) > limits.PACKAGE_MAX_FILES:
            raise PackageRefused(
                PackageFault.TOO_LARGE, f"more than {limits.PACKAGE_MAX_FILES} files"
            )
    return sorted(paths)


def _hash_file(folder: Path, path: str) -> PackageFile:
    sha256 = hashlib.sha256()
    length = 0
    with (folder / path).open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            sha256.update(block)
            length += len(block)
            if length > limits.PACKAGE_MAX_BYTES:
                raise PackageRefused(
                    PackageFault.TOO_LARGE,
                    f"{path} is over {limits.PACKAGE_MAX_BYTES} bytes",
                )
    return PackageFile(path=path, length=length, sha256=sha256.hexdigest())


def _check_contents(package: Package) -> None:
    """Refuse roles without a file and ONNX files with weights elsewhere, whatever their name."""
    paths = {file.path for file in package.manifest.files}
    for role, path in package.spec.files.items():
        if path not in paths:
            raise PackageRefused(PackageFault.MISSING_FILE, f"{path} (files.{role})")
    package.path_of("model")
    for role, path in package.spec.files.items():
        if not path.endswith(".onnx"):
            continue
        try:
            outside = has_external_data(package.folder / path)
        except NotOnnx as error:
            raise PackageRefused(
                PackageFault.BAD_MODEL, f"{path} (files.{role}): {error}"
            ) from error
        if outside:
            raise PackageRefused(
                PackageFault.EXTERNAL_DATA, f"{path} (files.{role}) keeps weights in another file"
            )
