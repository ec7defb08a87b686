"""Text generation as a durable job, from the command line: a real broker, dispatcher and car."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from services import four_processes

from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models"))


def submit(url: str, *arguments: str) -> list[dict[str, Any]]:
    """The results of a job, in the order of its items."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "submit", f"--url={url}", "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(results, key=lambda result: int(result["item"]))


def test_a_job_of_prompts_ends_in_one_answer_each(tmp_path: Path) -> None:
    write_tiny_text(tmp_path / "models")
    lines = tmp_path / "prompts.txt"
    lines.write_text("the inn\nthe end\nan answer\n")
    with four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four:
        asked = '--parameters={"max_tokens": 8, "ignore_eos": true, "temperature": 1, "seed": 3}'
        first, again = (
            submit(four.url, "--model=tiny-text", f"--text-lines={lines}", asked) for _ in range(2)
        )
    outputs = [result["output"] for result in first]
    assert [len(output["ids"]) for output in outputs] == [8, 8, 8]
    assert [output["finish"] for output in outputs] == ["length"] * 3
    assert [result["output"]["ids"] for result in again] == [output["ids"] for output in outputs]


@pytest.mark.models
def test_the_capital_of_france_is_known_in_a_parked_car(tmp_path: Path) -> None:
    if not (MODELS / "smollm2").exists():
        message = f"{MODELS / 'smollm2'} is missing; run `make models`"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2").symlink_to(MODELS / "smollm2")
    question = ROOT / "examples" / "question.json"
    with four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four:
        (result,) = submit(four.url, "--model=smollm2", str(question))
    assert result["output"]["text"] == "The capital of France is Paris."
    assert result["output"]["usage"] == {"prompt_tokens": 37, "completion_tokens": 7}
