"""The house rules that a program can check. A failure names the file, the line and the rule."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edge_runtime"
CODE_FOLDERS = ("edge_runtime", "tests", "bench", "examples")
TEXT_FOLDERS = (*CODE_FOLDERS, "broker", "deploy", "docs", "schemas", ".ci")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".conf", ".sh", ".json", ".yaml", ".yml", ".service", ""}
FUNCTION_MAX_LINES = 70

MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = sorted(path for folder in CODE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
CORES = [path for path in MODULES if "core" in path.relative_to(PACKAGE).parts]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


each_module = pytest.mark.parametrize("path", MODULES, ids=named)
each_code_file = pytest.mark.parametrize("path", CODE, ids=named)


@each_code_file
def test_functions_are_short(path: Path) -> None:
    long = [
        f"{named(path)}:{node.lineno} {node.name} has {lines} lines"
        for node in ast.walk(tree_of(path))
        if isinstance(node, Function)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_MAX_LINES
    ]
    assert not long, f"at most {FUNCTION_MAX_LINES} lines a function: {long}"


@each_code_file
def test_no_file_is_named_for_nothing(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "misc", "common"}


@each_module
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path)) or ""
    assert re.search(r"\w{3}", docstring), f"{named(path)} needs a docstring that says something"


# --- pure cores --------------------------------------------------------------------------------

IMPURE_MODULES = {
    *("asyncio", "datetime", "io", "os", "pathlib", "random", "secrets", "select", "selectors"),
    *("shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading"),
    *("time", "uuid", "multiprocessing", "concurrent", "queue", "urllib", "http"),
}
PURE_NAMES = {"datetime": {"timedelta", "timezone", "UTC"}}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "__import__"}
IMPURE_METHODS = {"now", "utcnow", "today"}


def impurities(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for name in names:
                    if name.name.split(".")[0] in IMPURE_MODULES:
                        yield node.lineno, f"import {name.name}"
            case ast.ImportFrom(module=str(module), names=names):
                top = module.split(".")[0]
                allowed = PURE_NAMES.get(top, set())
                if top in IMPURE_MODULES and not {name.name for name in names} <= allowed:
                    yield node.lineno, f"from {module} import …"
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                yield node.lineno, f"{name}()"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=method)):
                if owner in {"datetime", "date"} and method in IMPURE_METHODS:
                    yield node.lineno, f"{owner}.{method}()"
            case ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="random"):
                yield node.lineno, "numpy.random"
            case _:
                pass


@pytest.mark.parametrize("path", CORES, ids=named)
def test_cores_are_pure(path: Path) -> None:
    found = [f"{named(path)}:{line} {what}" for line, what in impurities(tree_of(path))]
    assert not found, f"cores read no clock, random source, file or socket: {found}"


@pytest.mark.parametrize(
    "source",
    [
        "import time",
        "import os.path",
        "from asyncio import Queue",
        "from datetime import datetime",
        "def f():\n    import random",
        "open('x')",
        "import numpy as np\nnp.random.random()",
        "date.today()",
    ],
)
def test_the_purity_check_sees(source: str) -> None:
    assert list(impurities(ast.parse(source)))


def test_the_purity_check_lets_pass() -> None:
    source = "from datetime import timedelta\nfrom edge_runtime.contract.clock import Now"
    assert not list(impurities(ast.parse(source)))


# --- no dead files -----------------------------------------------------------------------------


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(path: Path, level: int) -> str:
    own = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(own[: len(own) - level])


def mentioned_in(path: Path) -> Iterator[str]:
    """Modules that a file imports, starts by name (`python -m`) or names as a lazy command."""
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package_of(path, level) if level else ""
                source = ".".join(part for part in (base, module) if part)
                yield source
                yield from (f"{source}.{name.name}" for name in names)
            case ast.Constant(value=str(text)) if "\n" not in text:
                yield text.split(":")[0]
                if lazy := re.fullmatch(r"\.?(\w+):\w+", text):
                    yield f"edge_runtime.cli.commands.{lazy[1]}"
            case _:
                pass


def is_entry_point(path: Path) -> bool:
    return path.name in {"__init__.py", "__main__.py"}


def test_no_module_is_dead() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    used = {target.split(":")[0] for target in scripts.values()}
    for path in CODE:
        used.update(name for name in mentioned_in(path) if name != module_name(path))
    makefile = (ROOT / "Makefile").read_text()
    dead = [
        named(path)
        for path in MODULES
        if not is_entry_point(path)
        and module_name(path) not in used
        and module_name(path) not in makefile
    ]
    assert not dead, f"nothing imports, starts or tests these: {dead}"


# --- words -------------------------------------------------------------------------------------

UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.$}-])/(?:work|root|tmp|home/\w+|Users/\w+)(?:/|\b)")


def texts() -> list[Path]:
    files = [path for folder in TEXT_FOLDERS for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.name not in {".git", "LICENSE"}]
    return sorted(
        path
        for path in files
        if path.is_file()
        and path.suffix in TEXT_SUFFIXES
        and "__pycache__" not in path.parts
        and path != Path(__file__)
    )


@pytest.mark.parametrize("path", texts(), ids=named)
def test_nothing_is_left_for_later_or_tied_to_a_machine(path: Path) -> None:
    found = [
        f"{named(path)}:{number} {line.strip()[:80]}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line) or MACHINE_PATHS.search(line)
    ]
    assert not found, found


def test_the_word_check_sees() -> None:
    assert UNFINISHED.search("# TODO: later")
    assert MACHINE_PATHS.search("open('/home/anna/file')")
    assert MACHINE_PATHS.search("cd /root")
    assert not MACHINE_PATHS.search("https://example.org/work/x")
    assert not MACHINE_PATHS.search("er/1/work")


# --- bounds ------------------------------------------------------------------------------------


def bounds_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Constants of a module or class that are named as a bound and are a number."""
    bodies = [tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef))]
    for statement in (statement for body in bodies for statement in body):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        is_number = all(
            isinstance(node, ast.Constant | ast.BinOp | ast.UnaryOp | ast.operator | ast.unaryop)
            and not (isinstance(node, ast.Constant) and not isinstance(node.value, int | float))
            for node in ast.walk(value)
        )
        if is_number and name.isupper() and "MAX" in name.split("_"):
            yield statement.lineno, name


@each_module
def test_bounds_live_in_one_place(path: Path) -> None:
    if path == PACKAGE / "contract" / "limits.py":
        return
    found = [f"{named(path)}:{line} {name}" for line, name in bounds_in(tree_of(path))]
    assert not found, f"bounds live in contract/limits.py: {found}"


@pytest.mark.parametrize(
    "source", ["SIZE_MAX: Final = 8 * 1024", "_MAX_ROWS = 3", "class A:\n    B_MAX = -1.5"]
)
def test_the_bounds_check_sees(source: str) -> None:
    assert list(bounds_in(ast.parse(source)))


@pytest.mark.parametrize("source", ["SIZE_MAX = limits.SIZE_MAX", "MAXIMUM = 3", "A_MAX = 'x'"])
def test_the_bounds_check_lets_pass(source: str) -> None:
    assert not list(bounds_in(ast.parse(source)))
