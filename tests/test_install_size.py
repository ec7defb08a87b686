"""What a car's installation takes on its disk, distribution by distribution, and the bound on it.

The closure of the extra `vehicle` is read from `pyproject.toml` and from what is installed here.
This project itself counts as its wheel installs it: every file of the package, compiled too.
"""

import importlib.util
import marshal
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = ROOT / "edge_runtime"
BOUND_BYTES: Final = 60_000_000
COUNTED_APART: Final = {"onnxruntime", "numpy"}
BLOCK_BYTES: Final = 4_096
PYC_HEADER_BYTES: Final = 16


class Size(NamedTuple):
    """Bytes of files, and of the blocks that hold them on an ordinary disk."""

    files: int
    blocks: int


def size_of(lengths: list[int]) -> Size:
    return Size(sum(lengths), sum(-(-length // BLOCK_BYTES) * BLOCK_BYTES for length in lengths))


def wanted(extra: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return [Requirement(name) for name in names]


def closure(extra: str) -> dict[str, Distribution]:
    """Everything that pip would install for this project with an extra, by name."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()  # distributions, each with an extra or none
    ahead = wanted(extra)
    while ahead:
        requirement = ahead.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, distribution(name))
        for option in {"", *requirement.extras} - {option for at, option in done if at == name}:
            done.add((name, option))
            ahead += [
                needed
                for needed in map(Requirement, found[name].requires or [])
                if needed.marker is None or needed.marker.evaluate({"extra": option})
            ]
    return found


def installed_size(installed: Distribution) -> Size:
    files = {Path(str(installed.locate_file(file))).resolve() for file in installed.files or []}
    assert files, f"{installed.name} does not list its files"
    files |= {
        Path(importlib.util.cache_from_source(str(file))) for file in files if file.suffix == ".py"
    }
    return size_of([file.stat().st_size for file in files if file.is_file()])


def own_size() -> Size:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    compiled = [
        PYC_HEADER_BYTES + len(marshal.dumps(compile(path.read_bytes(), str(path), "exec")))
        for path in files
        if path.suffix == ".py"
    ]
    return size_of([*(path.stat().st_size for path in files), *compiled])


def table(sizes: dict[str, Size]) -> str:
    rows = sorted(sizes.items(), key=lambda row: -row[1].files)
    return "\n".join(
        f"{size.files / 1e6:7.2f} MB {size.blocks / 1e6:7.2f} MB in blocks  {name}"
        for name, size in rows
    )


def test_a_car_takes_at_most_60_mb_besides_its_runtime() -> None:
    names = closure("vehicle").items()
    sizes = {name: installed_size(each) for name, each in names if name not in COUNTED_APART}
    sizes["edge-runtime"] = own_size()
    sizes["all"] = Size(*map(sum, zip(*sizes.values(), strict=True)))
    told = f"what the extra `vehicle` takes, besides onnxruntime and numpy:\n{table(sizes)}"
    print(told)  # noqa: T201 - the table is what one runs this test for, with -s
    assert sizes["all"].files <= BOUND_BYTES, told


def test_what_is_counted_is_everything() -> None:
    names = closure("vehicle").keys()
    assert names >= COUNTED_APART
    # Directly wanted, and what those want in their turn.
    assert {"tuf", "securesystemslib", "cryptography", "cffi", "cyclopts", "rich"} <= names
    for name in ("cryptography", "cyclopts"):
        assert installed_size(distribution(name)).files > 1_000_000


def test_opencv_and_the_hubs_client_are_no_part_of_a_car() -> None:
    heavy = {"opencv-python-headless", "tokenizers", "huggingface-hub", "pillow", "pynacl"}
    assert not heavy & closure("vehicle").keys()
    assert closure("ocr").keys() >= {"opencv-python-headless"}
