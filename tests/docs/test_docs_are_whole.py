"""Nothing on a page is out of reach of a test: blocks, commands, links, generated pages."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from doc_commands import GLOBAL, OPTIONS, faults_in
from doc_pages import (
    DATA_LANGUAGES,
    PAGES,
    ROOT,
    RUN_LANGUAGES,
    SHOWN_LANGUAGES,
    Block,
    blocks_of,
    headings_of,
    inline_code_of,
    links_of,
    marks_of,
    named,
)

from edge_runtime.cli.reference_page import cli_page
from edge_runtime.cli.settings import ENVIRONMENT_PREFIX
from edge_runtime.contract import limits

REPOSITORY_PATH = re.compile(
    r"(?<![\w./-])((?:bench|broker|deploy|docs|edge_runtime|examples|schemas|tests)/[\w./*-]+)"
)
"""A file or folder of this repository; Makefile's and pages' own are others."""

CONSTANT = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
OF_A_LIMIT = re.compile(r"_(MS|S|W|BYTES|MAX|MIN|ITEMS|ROWS|CHARS|MESSAGES)$")
OTHER_VARIABLES = {f"{ENVIRONMENT_PREFIX}{name}" for name in ("API_KEY", "REQUEST", "PASSPHRASE")}

each_page = pytest.mark.parametrize("page", PAGES, ids=named)


@each_page
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    faults = [f"{block.where}: {fault}" for block in blocks_of(page) for fault in _unreached(block)]
    assert not faults


def _unreached(block: Block) -> Iterator[str]:
    if not block.is_fenced:
        yield "is indented; use ``` with a language"
    elif block.language not in RUN_LANGUAGES | DATA_LANGUAGES | SHOWN_LANGUAGES:
        yield f"no rule for language {block.language!r}"
    match block.mark:
        case "not run" if len(block.reason) < 10:
            yield "is not run; why?"
        case "run by":
            runner = (ROOT / block.reason).resolve()
            if not runner.is_relative_to(ROOT / "tests") or not runner.is_file():
                yield f"{block.reason} is no test"
            elif block.page.name not in runner.read_text():
                yield f"{block.reason} does not name {block.page.name}"
        case "output" if block.language not in SHOWN_LANGUAGES:
            yield "an output is text"
        case "stays" if block.language != "sh":
            yield "what stays is sh"
        case _:
            pass


@each_page
def test_every_mark_stands_right_before_a_block(page: Path) -> None:
    assert len(marks_of(page)) == sum(bool(block.mark) for block in blocks_of(page))


@each_page
def test_a_block_is_what_its_language_says(page: Path) -> None:
    for block in blocks_of(page):
        _check_language(block)


def _check_language(block: Block) -> None:
    match block.language:
        case "sh":
            checked = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, f"{block.where}: {checked.stderr}"
            assert not list(faults_in(block.text)), block.where
            assert not _unknown_targets(block.text), block.where
        case "python":
            compile(block.text, block.where, "exec")
        case "json":
            json.loads(block.text)
        case "toml":
            _check_settings(tomllib.loads(block.text), block)
        case "yaml":
            assert yaml.safe_load(block.text), block.where
        case "conf":
            assert all(re.match(r"[a-z_]+ \S|#|$", line) for line in block.text.splitlines())
        case _:
            assert block.language in SHOWN_LANGUAGES, block.where


def _unknown_targets(text: str) -> set[str]:
    """Targets of `make` that the Makefile does not have."""
    calls = re.findall(r"^\s*make ([a-z -]+)", text, re.MULTILINE)
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    return {word for call in calls for word in call.split()} - known


def _check_settings(tables: dict[str, object], block: Block) -> None:
    """Every key of a command's table in a settings file is an option of that command."""
    for name, table in tables.items():
        if (name,) in OPTIONS and isinstance(table, dict):
            unknown = {f"--{key}" for key in table} - OPTIONS[(name,)]
            assert not unknown, f"{block.where}: [{name}] {unknown}"


@pytest.mark.parametrize("name", ["dispatcher", "vehicle"])
def test_the_settings_files_name_options(name: str) -> None:
    """Those that are commented out as well."""
    text = (ROOT / "deploy" / f"{name}.toml").read_text()
    tables = tomllib.loads(text)
    assert tables.keys() == {name}
    commented = re.findall(r"^# ([a-z-]+) = ", text, re.MULTILINE)
    assert {f"--{key}" for key in [*tables[name], *commented]} <= OPTIONS[(name,)]


def test_the_guide_to_mosquitto_quotes_the_configuration_that_is_shipped() -> None:
    page = ROOT / "docs/how-to/mosquitto-in-production.md"
    shipped = set((ROOT / "broker/mosquitto-tls.conf").read_text().splitlines())
    quoted = {
        line
        for block in blocks_of(page)
        if block.language == "conf"
        for line in block.text.splitlines()
    }
    names = {line.partition(" ")[0] for line in shipped}
    quoted |= {
        code for code in inline_code_of(page) if " " in code and code.partition(" ")[0] in names
    }
    assert len(quoted) > 8
    assert quoted <= shipped


@each_page
def test_commands_in_the_text_exist(page: Path) -> None:
    assert not [fault for code in inline_code_of(page) for fault in faults_in(code)]


@each_page
def test_limits_and_variables_that_the_text_names_exist(page: Path) -> None:
    words = [word for code in inline_code_of(page) for word in CONSTANT.findall(code)]
    variables = {word for word in words if word.startswith(ENVIRONMENT_PREFIX)}
    bounds = {word for word in words if word not in variables and OF_A_LIMIT.search(word)}
    assert not {word for word in bounds if not hasattr(limits, word)}
    assert variables <= OTHER_VARIABLES | {
        (ENVIRONMENT_PREFIX + "_".join([*path, option[2:]])).upper().replace("-", "_")
        for path, options in [*OPTIONS.items(), ((), GLOBAL)]
        for option in options
        if option.startswith("--")
    }


@each_page
def test_files_that_the_text_names_exist(page: Path) -> None:
    texts = [*inline_code_of(page), *(b.text for b in blocks_of(page) if b.language == "sh")]
    named_files = {path for text in texts for path in REPOSITORY_PATH.findall(text)}
    missing = {path for path in named_files if not any(ROOT.glob(path.rstrip("/.")))}
    assert not missing


@pytest.mark.parametrize(
    "text",
    [
        "edge-runtime fly",
        "edge-runtime jobs fly",
        ".venv/bin/edge-runtime submit --modell x",
        "x | edge-runtime tap --brokers y",
        "edge-runtime vehicle \\\n  --colour red",
    ],
)
def test_the_check_of_commands_sees(text: str) -> None:
    assert list(faults_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "edge-runtime owner status | why | pause",
        "edge-runtime submit --model=x file",
        "edge-runtime --config x vehicle",
        "pip install 'edge-runtime[pki]'",
        "edge-runtime jobs list",
        "edge-runtime vehicle --signal.charge_percent kuksa",
    ],
)
def test_the_check_of_commands_lets_pass(text: str) -> None:
    assert not list(faults_in(text))


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        ("    indented\n", "is indented"),
        ("```ruby\nputs 1\n```\n", "no rule"),
        ("<!-- not run: no -->\n```sh\ntrue\n```\n", "why?"),
        ("<!-- run by: tests/nothing.py -->\n```sh\ntrue\n```\n", "is no test"),
        ("<!-- run by: tests/conftest.py -->\n```sh\ntrue\n```\n", "does not name"),
        ("- in a list\n\n  ```ruby\n  puts 1\n  ```\n", "no rule"),
    ],
)
def test_the_check_of_blocks_sees(page: str, fault: str) -> None:
    (block,) = blocks_of(ROOT / "docs" / "planted-page.md", page)
    assert any(fault in found for found in _unreached(block))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in links_of(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        if anchor:
            assert anchor in {_anchor(heading) for heading in headings_of(target)}, link


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_index_leads_to_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in links_of(index) if "://" not in link}
    assert set((ROOT / "docs").rglob("*.md")) <= linked | {index}


def test_the_page_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == cli_page(), (
        "run: python -m edge_runtime.cli.reference_page > docs/reference/cli.md"
    )
