"""Plant each mutation in a copy of the package and run seeds until an invariant notices.

`make planted` hunts all of them, or those that are named in ARGS, and writes their rows of
`docs/explanation/planted-bugs.md`. A mutation counts as caught where a seed fails on its copy and
passes on an unchanged one; one that breaks the import, or the simulation itself, does not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from planted.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[3]
TABLE = ROOT / "docs" / "explanation" / "planted-bugs.md"
SEEDS_END = 1_000
_LINE_CHARS = 110
_SEED_LONGEST_S = 60.0
_NOBODY = "-"
_SEED_COLUMN = 4
_ONE_HUNT = Path(__file__).with_name("one_hunt.py")


@dataclass(frozen=True)
class Catch:
    """What became of a hunt: `seed` caught it, or all were run in vain (or the copy broke)."""

    mutation: Mutation
    seed: int | None
    violation: str

    @property
    def invariant(self) -> str:
        """The number before the colon."""
        return self.violation.partition(":")[0] if self.seed is not None else ""


class HuntBroke(Exception):  # noqa: N818 - named for what happened
    """The copy cannot run its seeds at all."""


def copy_package(folder: Path) -> Path:
    """A copy of the package as it is now; the folder to put on the path."""
    shutil.copytree(
        ROOT / "edge_runtime",
        folder / "edge_runtime",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return folder


def plant(mutation: Mutation, tree: Path) -> None:
    """Apply a mutation to a copy."""
    file = tree / "edge_runtime" / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise HuntBroke(f"the old text occurs {text.count(mutation.old)} times in {mutation.file}")
    file.write_text(text.replace(mutation.old, mutation.new))


def run_seeds(
    tree: Path, first: int, end: int, needs: tuple[str, ...] = ()
) -> tuple[int, str] | None:
    """The first seed of the range that fails in `tree`, and how; None where none does."""
    argv = [sys.executable, str(_ONE_HUNT), "--tree", str(tree)]
    try:
        done = subprocess.run(
            [*argv, "--first", str(first), "--end", str(end), "--needs", *needs],
            env={
                **os.environ,
                "PYTHONPATH": str(tree),
                "PYTHONHASHSEED": "0",
                "PYTHONWARNINGS": "ignore",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=_SEED_LONGEST_S + (end - first) * 5.0,
        )
    except subprocess.TimeoutExpired:
        raise HuntBroke("a seed never ended") from None
    if done.returncode:
        raise HuntBroke((done.stderr.strip().splitlines() or ["no word"])[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    return None if found["seed"] is None else (found["seed"], found["violation"])


def hunt(mutation: Mutation, clean: Path, end: int, seed_before: int | None = None) -> Catch:
    """Run seeds on a mutated copy until one fails that `clean` passes.

    The seed that caught it before goes first: it mostly does again, and the hunt is over.
    """
    ranges = [(0, end)]
    if seed_before is not None and seed_before < end:
        ranges.insert(0, (seed_before, seed_before + 1))
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder)
        shutil.copytree(clean / "edge_runtime", tree / "edge_runtime")
        try:
            plant(mutation, tree)
            for first, last in ranges:
                catch = _hunt_in(mutation, tree, clean, first, last)
                if catch is not None:
                    return catch
        except HuntBroke as broke:
            return Catch(mutation, None, f"broke: {broke}")
    return Catch(mutation, None, f"not in {end} seeds")


def _hunt_in(mutation: Mutation, tree: Path, clean: Path, first: int, end: int) -> Catch | None:
    while first < end:
        found = run_seeds(tree, first, end, mutation.needs)
        if found is None:
            break
        seed, violation = found
        if run_seeds(clean, seed, seed + 1) is None:
            return Catch(mutation, seed, violation)
        first = seed + 1  # the unchanged code fails there too
    return None


def hunt_all(
    mutations: Iterable[Mutation], end: int, jobs: int, seeds_before: Mapping[str, int]
) -> Iterator[Catch]:
    """Hunt them, so many at a time, in order."""
    with (
        tempfile.TemporaryDirectory(prefix="planted-clean-") as folder,
        ThreadPoolExecutor(max_workers=jobs) as pool,
    ):
        clean = copy_package(Path(folder))
        yield from pool.map(
            lambda mutation: hunt(mutation, clean, end, seeds_before.get(mutation.name)), mutations
        )


def table(rows: Sequence[str], end: int) -> str:
    """The page that says which seed caught which mutation, on which commit."""
    caught = sum(f"| {_NOBODY} |" not in row for row in rows)
    return "\n".join(
        [
            "# Planted bugs",
            "",
            "Generated by `make planted`; do not edit. Each row is a mistake that was planted in a",
            "copy of that commit's package, and a seed of the simulation that noticed it: the one",
            "of the hunt before, where it still does, or else the first (of those with the faults",
            "that it needs). The same seed passes on the unchanged code.",
            "The mistakes are in `tests/sim/planted/mutations.py`, the invariants in",
            "`invariants.py` and, where they would break, elsewhere in `edge_runtime/sim`.",
            "",
            f"Seeds 0 to {end}: {caught} of {len(rows)} caught.",
            "",
            "| mutation | mistake | file | invariant | seed | violation | commit |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def row_of(catch: Catch, commit: str) -> str:
    """The row of one hunt."""
    mutation = catch.mutation
    cells = (
        f"`{mutation.name}`",
        mutation.mistake,
        f"`{mutation.file}`",
        catch.invariant or "-",
        _NOBODY if catch.seed is None else str(catch.seed),
        _cell(catch.violation),
        commit,
    )
    return f"| {' | '.join(cells)} |"


def rows_in(page: str) -> dict[str, str]:
    """The rows of a page by the names of their mutations."""
    rows = (line for line in page.splitlines() if line.startswith("| `"))
    return {row.split("`")[1]: row for row in rows}


def seeds_in(rows: Mapping[str, str]) -> dict[str, int]:
    """The seeds of rows that have one."""
    seeds = {name: row.split(" | ")[_SEED_COLUMN] for name, row in rows.items()}
    return {name: int(seed) for name, seed in seeds.items() if seed != _NOBODY}


def _cell(text: str) -> str:
    line = (text.splitlines() or [""])[0].replace("|", "/")
    return line if len(line) <= _LINE_CHARS else line[: _LINE_CHARS - 1] + "…"


def commit_of(root: Path) -> str:
    """The commit that is checked out, and whether anything was changed since."""
    return subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def main() -> int:
    """Hunt what is asked for; 1 where something got away."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutations (without: all)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seeds", type=int, default=SEEDS_END, help="seeds 0 to this")
    asked = parser.parse_args()
    chosen = [m for m in MUTATIONS if not asked.names or m.name in asked.names]
    commit = commit_of(ROOT)
    # Rows that are not hunted now stay as they are.
    rows = rows_in(TABLE.read_text()) if TABLE.exists() else {}
    catches = []
    for catch in hunt_all(chosen, asked.seeds, asked.jobs, seeds_in(rows)):
        catches.append(catch)
        where = "GOT AWAY" if catch.seed is None else f"seed {catch.seed}"
        sys.stdout.write(f"{catch.mutation.name:32} {where:10} {_cell(catch.violation)}\n")
        sys.stdout.flush()
    rows |= {catch.mutation.name: row_of(catch, commit) for catch in catches}
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table([rows[m.name] for m in MUTATIONS if m.name in rows], asked.seeds))
    return 0 if all(catch.seed is not None for catch in catches) else 1


if __name__ == "__main__":
    sys.exit(main())
