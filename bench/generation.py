"""Text generation in one car's engine: against a bare loop, eight against one, the first token.

SmolLM2 on core 0, in the engine's worker or in the bare loop, in turns; this process (the car's
half of the engine, which takes the tokens) on core 1. Greedy, answers of a fixed length. Beside
rates by the clock is the ratio of processor time, prompt included, which other load hardly moves.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
from _rig import MODELS, Load, cpu_s, figure, median, say

from edge_runtime.cli.logging import configure_logging
from edge_runtime.contract.messages import Item
from edge_runtime.contract.package import Package, read_package
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import RunEnded, RunOutcome, TokensProduced
from edge_runtime.vehicle.inference.engine import EngineEvent, SupervisedEngine
from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions

ENGINE_CPU: Final = 0
OWN_CPU: Final = 1
ROUNDS: Final = 5
PROMPT_TOKENS: Final = 40
"""A question with the words around it that the model's chat template adds."""
LONGER_PROMPT_TOKENS: Final = 64
NEW_TOKENS: Final = 128
TOGETHER: Final = 8
TIMEOUT_S: Final = 300.0
SHARED: Final = "core 0: the engine, or the bare loop, in turns; core 1: who takes the tokens"


@contextmanager
def bare_loop(model: Path) -> Iterator["subprocess.Popen[str]"]:
    """The bare loop, on the engine's processor."""
    script = Path(__file__).parent / "_bare_generation.py"
    argv = ["taskset", "-c", str(ENGINE_CPU), sys.executable, str(script), str(model)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.communicate(timeout=10)


def bare(process: "subprocess.Popen[str]") -> float:
    """Tokens per second of the bare loop, after the first."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{PROMPT_TOKENS} {NEW_TOKENS}\n")
    process.stdin.flush()
    return (NEW_TOKENS - 1) / float(process.stdout.readline())


class Asker:
    """Asks an engine, and notes when tokens came."""

    def __init__(self, package: Package) -> None:
        worker = WorkerOptions(cpus=(ENGINE_CPU,))
        self.engine = SupervisedEngine(
            EngineOptions(worker=worker, idle_exit_ms=600_000), self._heard
        )
        self._package = package
        self._next_run = 1
        self._ended: dict[int, asyncio.Future[RunEnded]] = {}
        self.tokens: list[tuple[float, int, int]] = []
        """When (seconds), of which run, how many."""

    def _heard(self, event: EngineEvent) -> None:
        match event:
            case TokensProduced():
                self.tokens.append((time.perf_counter(), event.run_id, len(event.ids)))
            case RunEnded(run_id=run_id):
                self._ended[run_id].set_result(event)
            case _:
                pass

    async def ask(
        self, count: int, prompt_tokens: int = PROMPT_TOKENS, new_tokens: int = NEW_TOKENS
    ) -> float:
        """Ask so many requests at once; return the seconds until all were answered."""
        self.tokens.clear()
        started_s = time.perf_counter()
        runs = [self._submit(place, prompt_tokens, new_tokens) for place in range(count)]
        async with asyncio.timeout(TIMEOUT_S):
            for ended in await asyncio.gather(*runs):
                assert ended.outcome is RunOutcome.COMPLETED, ended
        return time.perf_counter() - started_s

    def _submit(
        self, place: int, prompt_tokens: int, new_tokens: int
    ) -> "asyncio.Future[RunEnded]":
        run_id, self._next_run = self._next_run, self._next_run + 1
        prompt = [100 + (place * 7 + token) % 4_000 for token in range(prompt_tokens)]
        asked = {"prompt": prompt, "max_tokens": new_tokens, "ignore_eos": True}
        item = Item(index=0, media_type="application/json", data=json.dumps(asked).encode())
        ended = self._ended[run_id] = asyncio.get_running_loop().create_future()
        digest = self._package.digest
        run = SubmitRun(run_id, run_id, digest, (item,), b"", streams=True, urgent=True)
        self.engine.submit(run, self._package)
        return ended


async def measure(asker: Asker, loop: "subprocess.Popen[str]") -> dict[str, list[float]]:
    """Figures of each round."""
    found: dict[str, list[float]] = {
        name: []
        for name in (
            *("bare", "one", "bare_cpu_ms", "one_cpu_ms"),
            *("one_whole", "eight_whole", "eight_cpu_ms", "first_ms"),
        )
    }
    await asker.ask(1)
    bare(loop)
    worker = asker.engine.pid
    assert worker is not None
    for _ in range(ROUNDS):
        bare_cpu_s, worker_cpu_s = cpu_s(loop.pid), cpu_s(worker)
        found["bare"].append(await asyncio.to_thread(bare, loop))
        found["one_whole"].append(NEW_TOKENS / await asker.ask(1))
        found["bare_cpu_ms"].append((cpu_s(loop.pid) - bare_cpu_s) / NEW_TOKENS * 1e3)
        found["one_cpu_ms"].append((cpu_s(worker) - worker_cpu_s) / NEW_TOKENS * 1e3)
        (first_s, _, first), *_ = asker.tokens
        told = sum(count for _, _, count in asker.tokens)
        assert told == NEW_TOKENS, told
        found["one"].append((told - first) / (asker.tokens[-1][0] - first_s))
        worker_cpu_s = cpu_s(worker)
        found["eight_whole"].append(TOGETHER * NEW_TOKENS / await asker.ask(TOGETHER))
        together_cpu_s = cpu_s(worker) - worker_cpu_s
        found["eight_cpu_ms"].append(together_cpu_s / NEW_TOKENS / TOGETHER * 1e3)
        started_s = time.perf_counter()
        await asker.ask(1, LONGER_PROMPT_TOKENS, 2)
        found["first_ms"].append((asker.tokens[0][0] - started_s) * 1e3)
        say("; ".join(f"{name} {values[-1]:.1f}" for name, values in found.items()))
    return found


async def run(package: Package) -> tuple[dict[str, list[float]], float]:
    """Measure; also return the worker's resident memory in MB."""
    asker = Asker(package)
    try:
        with bare_loop(package.path_of("model")) as loop:
            found = await measure(asker, loop)
        assert asker.engine.pid is not None
        return found, psutil.Process(asker.engine.pid).memory_info().rss / 1e6
    finally:
        await asker.engine.close()


def main() -> None:
    """Measure and print."""
    configure_logging("json", "warning")
    os.sched_setaffinity(0, {OWN_CPU})
    package = read_package(MODELS / "smollm2")
    with Load() as load:
        found, rss_mb = asyncio.run(run(package))
    middle = {name: median(values) for name, values in found.items()}
    facts = load.facts()
    efficiency = [one / each for one, each in zip(found["one"], found["bare"], strict=True)]
    gains = [all_ / one for all_, one in zip(found["eight_whole"], found["one_whole"], strict=True)]
    figure(
        "generation_efficiency",
        median(efficiency),
        "ratio",
        ">= 0.95",
        shared=SHARED,
        digits=4,
        streamed_tokens_per_s=round(middle["one"], 1),
        bare_tokens_per_s=round(middle["bare"], 1),
        by_processor_time=round(middle["bare_cpu_ms"] / middle["one_cpu_ms"], 3),
        rounds=[round(each, 3) for each in efficiency],
        **facts,
    )
    figure(
        "generation_eight_against_one",
        median(gains),
        "ratio",
        ">= 4",
        shared=SHARED,
        digits=2,
        one_tokens_per_s=round(middle["one_whole"], 1),
        eight_tokens_per_s=round(middle["eight_whole"], 1),
        by_processor_time=round(middle["one_cpu_ms"] / middle["eight_cpu_ms"], 2),
        rounds=[round(each, 2) for each in gains],
        prompt_tokens=PROMPT_TOKENS,
        new_tokens=NEW_TOKENS,
    )
    figure(
        "generation_first_token",
        middle["first_ms"],
        "ms",
        "<= 400",
        shared=SHARED,
        prompt_tokens=LONGER_PROMPT_TOKENS,
    )
    figure("generation_worker_rss", rss_mb, "MB", "<= 1300", shared=SHARED, rows=TOGETHER)


if __name__ == "__main__":
    main()
