"""Planted bugs: each still fits the code, each was caught, and three are hunted here and now."""

import re
from pathlib import Path

import pytest
from planted.hunt import (
    ROOT,
    TABLE,
    Catch,
    copy_package,
    hunt,
    plant,
    row_of,
    rows_in,
    seeds_in,
    table,
)
from planted.mutations import MUTATIONS, Mutation

PACKAGE = ROOT / "edge_runtime"
MUTATIONS_MIN = 30
EASY = ("results-before-commit", "taken-before-journal", "publish-before-commit")
EASY_SEEDS = 20
_ROW = re.compile(r"^\| `(?P<name>[\w-]+)` \|.*\| (?P<invariant>\S+) \| (?P<seed>\d+|-) \|.*\|$")


def by_name(name: str) -> Mutation:
    (found,) = [mutation for mutation in MUTATIONS if mutation.name == name]
    return found


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_fits_the_code_of_today(mutation: Mutation) -> None:
    text = (PACKAGE / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"move {mutation.name} with the code that it damages"
    compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTATIONS) >= MUTATIONS_MIN
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert len({(m.file, m.old, m.new) for m in MUTATIONS}) == len(MUTATIONS)


def test_the_table_names_all_of_them_and_all_are_caught() -> None:
    rows = [match for line in TABLE.read_text().splitlines() if (match := _ROW.match(line))]
    assert [row["name"] for row in rows] == [m.name for m in MUTATIONS], "run: make planted"
    away = [row["name"] for row in rows if row["seed"] == "-"]
    assert not away, f"no seed catches {away}"


def test_the_table_tells_what_got_away() -> None:
    mutation = by_name(EASY[0])
    text = table([row_of(Catch(mutation, None, "not in 5 seeds"), "abc")], 5)
    (row,) = [match for line in text.splitlines() if (match := _ROW.match(line))]
    assert (row["name"], row["seed"]) == (mutation.name, "-")
    assert "0 of 1 caught" in text


def test_the_seeds_of_a_table_are_read_back() -> None:
    caught, away = by_name(EASY[0]), by_name(EASY[1])
    page = table(
        [row_of(Catch(caught, 17, "L1: x | y"), "a"), row_of(Catch(away, None, ""), "a")], 5
    )
    assert seeds_in(rows_in(page)) == {caught.name: 17}
    assert len(seeds_in(rows_in(TABLE.read_text()))) == len(MUTATIONS)


@pytest.mark.parametrize("seed_before", [None, 4, EASY_SEEDS + 5])
def test_whatever_caught_it_before_it_is_caught(seed_before: int | None, tmp_path: Path) -> None:
    catch = hunt(by_name(EASY[0]), copy_package(tmp_path), EASY_SEEDS, seed_before)
    assert catch.seed is not None, catch.violation
    assert catch.seed < EASY_SEEDS


@pytest.mark.parametrize("name", EASY[1:])
def test_an_easy_one_is_caught_within_a_few_seeds(name: str, tmp_path: Path) -> None:
    clean = copy_package(tmp_path)
    catch = hunt(by_name(name), clean, EASY_SEEDS)
    assert catch.seed is not None, catch.violation


def test_what_breaks_the_import_is_not_caught(tmp_path: Path) -> None:
    broken = Mutation("x", "", "", "sim/runner.py", "import asyncio\n", "import asyncioo\n")
    catch = hunt(broken, copy_package(tmp_path), 1)
    assert catch.seed is None
    assert "broke" in catch.violation


def test_a_mutation_changes_its_copy_and_nothing_else(tmp_path: Path) -> None:
    mutation = by_name(EASY[0])
    tree = copy_package(tmp_path)
    plant(mutation, tree)
    changed = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.read_bytes() != (tree / "edge_runtime" / path.relative_to(PACKAGE)).read_bytes()
    ]
    assert changed == [mutation.file]
