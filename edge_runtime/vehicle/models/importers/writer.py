"""Writes a model package folder from a spec and its files' bytes, the same bytes every time."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.contract.package import (
    SPEC_FILE,
    ModelSpec,
    Package,
    PackageRefused,
    check_path,
    read_package,
)


def render_spec(spec: ModelSpec) -> str:
    """Return the text of `model.toml`; reading it back gives an equal spec.

    Raises `TypeError` for parameters that TOML cannot say (null).
    """
    table = {key: value for key, value in msgspec.to_builtins(spec).items() if value is not None}
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if _is_plain(value)]
    for key in ("files", "parameters"):
        lines += ["", f"[{key}]"]
        lines += [f"{_key(name)} = {_value(value)}" for name, value in table[key].items()]
    for key in ("inputs", "outputs"):
        for tensor in table[key]:
            lines += ["", f"[[{key}]]"]
            lines += [f"{name} = {_value(v)}" for name, v in tensor.items() if v is not None]
    if not table["inputs"]:
        lines.insert(0, "inputs = []")
    if not table["outputs"]:
        lines.insert(0, "outputs = []")
    return "\n".join(lines) + "\n"


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else json.dumps(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
            return json.dumps(value).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
        case dict():
            pairs = ", ".join(f"{_key(name)} = {_value(item)}" for name, item in value.items())
            return f"{{{pairs}}}"
        case _:
            raise TypeError(f"TOML has no {type(value).__name__}")


def write_package(spec: ModelSpec, files: Mapping[str, bytes], folder: Path) -> Package:
    """Write the package to `folder`, replacing another that is there, and read it back.

    `files` maps each path in `spec.files` to its bytes. Raises `PackageRefused` when the result
    is not a package that a car would take.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".package-") as temporary:
        built = Path(temporary, "package")
        built.mkdir()
        for path, data in {SPEC_FILE: render_spec(spec).encode(), **files}.items():
            check_path(path)
            target = built / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        package = read_package(built)
        if not _is_already(package, folder):
            if folder.exists():
                shutil.rmtree(folder)
            built.rename(folder)
    return msgspec.structs.replace(package, folder=folder)


def _is_already(package: Package, folder: Path) -> bool:
    """Whether `folder` holds this very package: what is in use is then left alone."""
    try:
        return read_package(folder).digest == package.digest
    except (PackageRefused, OSError):
        return False
