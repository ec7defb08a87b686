"""A fuzzing campaign: `make fuzz ARGS="--seconds 60"`, or run this file.

Two engines, each in processes of its own: damage to valid inputs at full speed (msgspec is C, so
there throughput counts), and, where atheris is installed, coverage-guided inputs for decoders
written in Python. The first crash, input over 5 ms or over 32 MiB ends the campaign: it is cut
down, kept under `corpus/<target>/`, and every test run repeats it from then on.

The last line of stdout is one JSON object: inputs, inputs per target, seconds, faults,
slowest_ms (coverage instrumentation slows Python, so of the other engine), largest_mib.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import logging
import mmap
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from targets import Target

FOLDER: Final = Path(__file__).parent
COVERAGE_SHARE: Final = 0.15
SLICE_S: Final = 0.05
BATCH: Final = 16
SUSPICIOUS_MS: Final = 2.0
SUSPICIOUS_BYTES: Final = 2**20
SHRINK_S: Final = 15.0
HANG_S: Final = 60.0
INSTRUMENTED_TIMES_SLOWER: Final = 10
COVERAGE_INPUT_BYTES: Final = 4_096
MEMORY_BYTES: Final = 8 * 2**30
"""Address space of a worker: an allocation beyond it is a crash, not the end of the machine."""
NOTE_BYTES: Final = 2**20
NOTE_NAME: Final = slice(0, 32)
NOTE_LENGTH: Final = slice(32, 36)
NOTE_DATA: Final = 36
_MIB: Final = 2**20


@dataclass(slots=True)
class Tally:
    """What one worker did. `faults` are kind, target, detail and the file that keeps the input."""

    inputs: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    largest_mib: float = 0.0
    faults: list[dict[str, str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {**values, "inputs": dict(self.inputs)}

    def add(self, other: "Tally") -> None:
        """Another worker's counts."""
        self.inputs.update(other.inputs)
        self.slowest_ms = max(self.slowest_ms, other.slowest_ms)
        self.largest_mib = max(self.largest_mib, other.largest_mib)
        self.faults += other.faults


# --- in a worker -------------------------------------------------------------------------------


class Watch:
    """Gives inputs to targets and sees what they do; each is noted first, should it be the last."""

    def __init__(self, note: Path, *, is_instrumented: bool) -> None:
        from fuzz_guard import INPUT_MAX_BYTES, INPUT_MAX_S  # noqa: PLC0415 - instrumented first

        self.tally = Tally()
        self._limit_s = INPUT_MAX_S * (INSTRUMENTED_TIMES_SLOWER if is_instrumented else 1)
        self._limit_bytes = INPUT_MAX_BYTES
        self._is_instrumented = is_instrumented
        with note.open("r+b") as file:
            self._note = mmap.mmap(file.fileno(), NOTE_BYTES)
        self._resident_bytes = _resident_peak_bytes()

    def give(self, target: "Target", data: bytes) -> bool:
        """Whether the target stayed within bounds; what did not is cut down and kept."""
        size = len(data)
        self._note[NOTE_NAME] = target.name.encode().ljust(NOTE_LENGTH.start)
        self._note[NOTE_LENGTH.start : NOTE_DATA + size] = size.to_bytes(4) + data
        self.tally.inputs[target.name] += 1
        before = time.thread_time()
        try:
            target(data)
        except Exception as error:  # noqa: BLE001 - whatever comes out is what is looked for
            return self._keep(target, data, "crash", f"{type(error).__name__}: {error}"[:300])
        took = time.thread_time() - before
        resident_bytes = _resident_peak_bytes()
        grown = resident_bytes - self._resident_bytes
        if grown > 0:
            self._resident_bytes = resident_bytes
            self.tally.largest_mib = max(self.tally.largest_mib, grown / _MIB)
            if grown > self._limit_bytes:
                return self._keep(target, data, "large", f"{grown / _MIB:.0f} MiB")
        if took * 1e3 > self.tally.slowest_ms and size <= target.input_max_bytes:
            return self._is_quick(target, data)
        return True

    def give_all(self, target: "Target", batch: Sequence[bytes]) -> bool:
        """Many at once, measured together; one by one only where that shows something."""
        note = self._note
        note[NOTE_NAME] = target.name.encode().ljust(NOTE_LENGTH.start)
        data = b""
        before = time.thread_time()
        try:
            for data in batch:
                size = len(data)
                note[NOTE_LENGTH.start : NOTE_DATA + size] = size.to_bytes(4) + data
                target(data)
        except Exception as error:  # noqa: BLE001 - as in `give`
            return self._keep(target, data, "crash", f"{type(error).__name__}: {error}"[:300])
        took = time.thread_time() - before
        grown = _resident_peak_bytes() - self._resident_bytes
        if took * 1e3 > max(self.tally.slowest_ms, SUSPICIOUS_MS) or grown > SUSPICIOUS_BYTES:
            self.forget_memory()
            return all(self.give(target, data) for data in batch)
        self.tally.inputs[target.name] += len(batch)
        return True

    def forget_memory(self) -> None:
        """Measure the next peak from here; without the right to, only the highest is seen."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._resident_bytes = _resident_peak_bytes()

    def _is_quick(self, target: "Target", data: bytes) -> bool:
        from fuzz_guard import seconds_of  # noqa: PLC0415 - as above

        seconds = seconds_of(target, data)
        if seconds > self._limit_s:
            return self._keep(target, data, "slow", f"{seconds * 1e3:.1f} ms for {len(data)} bytes")
        if not self._is_instrumented:
            self.tally.slowest_ms = max(self.tally.slowest_ms, seconds * 1e3)
        return True

    def _keep(self, target: "Target", data: bytes, kind: str, detail: str) -> bool:
        small = shrunk(target, data, kind)
        file = keep(target.name, kind, small)
        self.tally.faults.append(
            {"kind": kind, "target": target.name, "detail": detail, "file": file}
        )
        return False


def _resident_peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024


def shrunk(target: "Target", data: bytes, kind: str) -> bytes:
    """A shorter input with the same kind of fault, as far as a few seconds allow."""
    from fuzz_guard import fault_of  # noqa: PLC0415 - as above

    def still(candidate: bytes) -> bool:
        fault = fault_of(target, candidate)
        return fault is not None and fault.kind == kind

    deadline_s = time.monotonic() + SHRINK_S
    step = len(data) // 2
    while step and time.monotonic() < deadline_s:
        at = 0
        while at < len(data) and time.monotonic() < deadline_s:
            candidate = data[:at] + data[at + step :]
            if still(candidate):
                data = candidate
            else:
                at += step
        step //= 2
    return data


def keep(target: str, kind: str, data: bytes) -> str:
    """Write an input to the corpus; its path there."""
    path = FOLDER / "corpus" / target / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path.relative_to(FOLDER).as_posix()


def damage(names: Sequence[str], seconds: float, seed: int, note: Path) -> Tally:
    """Damaged inputs for every target in turn, processor time by weight."""
    from fuzz_mutation import bombs, mutated  # noqa: PLC0415 - as above
    from targets import TARGETS  # noqa: PLC0415 - as above

    chance = random.Random(seed)
    watch = Watch(note, is_instrumented=False)
    targets = [TARGETS[name] for name in names]
    for target in targets:
        for data in (*target.seeds, *bombs(target.input_max_bytes).values()):
            if not watch.give(target, data):
                return watch.tally
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        for target in targets:
            watch.forget_memory()
            seeds = target.seeds
            slice_end_s = time.thread_time() + SLICE_S * target.weight
            while time.thread_time() < slice_end_s:
                batch = [mutated(seeds, chance) for _ in range(BATCH)]
                if not watch.give_all(target, batch):
                    return watch.tally
    return watch.tally


def cover(name: str, seconds: float, seed: int, note: Path, done: Callable[[Tally], None]) -> None:
    """Coverage-guided inputs for one target; libFuzzer never returns, so `done` ends it."""
    import atheris  # type: ignore[import-not-found]  # noqa: PLC0415 - optional, has no stubs

    with atheris.instrument_imports(include=["edge_runtime"]):
        from targets import TARGETS  # noqa: PLC0415 - instrumented on import

    target = TARGETS[name]
    watch = Watch(note, is_instrumented=True)
    end_s = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if not watch.give(target, data) or time.monotonic() >= end_s:
            done(watch.tally)

    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(target.seeds):
            Path(folder, str(number)).write_bytes(data)
        length = min(target.input_max_bytes, COVERAGE_INPUT_BYTES)
        options = [f"-max_len={length}", f"-seed={seed}", f"-artifact_prefix={folder}/"]
        options += ["-rss_limit_mb=0", "-verbosity=0"]
        atheris.Setup([__file__, *options, folder], one)
        atheris.Fuzz()


def work(job: dict[str, Any]) -> None:
    """A worker's whole life: one job, one JSON line."""
    import structlog  # noqa: PLC0415 - the parent needs none of it

    quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
    structlog.configure(wrapper_class=quiet)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    note = Path(job["note"])

    def done(tally: Tally) -> None:
        print(json.dumps(tally.plain()), flush=True)  # noqa: T201 - the worker's answer
        os._exit(0)

    if job["engine"] == "coverage":
        cover(job["names"][0], job["seconds"], job["seed"], note, done)
    done(damage(job["names"], job["seconds"], job["seed"], note))


# --- the campaign ------------------------------------------------------------------------------


class Campaign:
    """Runs jobs in processes of their own, until all are done or one has found something."""

    def __init__(self, folder: Path) -> None:
        self.total = Tally()
        self._folder = folder
        self._running: dict[int, subprocess.Popen[bytes]] = {}

    def run(self, jobs: Sequence[dict[str, Any]], processes: int) -> None:
        """Every job, `processes` at a time."""
        with ThreadPoolExecutor(processes) as pool:
            for tally in pool.map(self._run_one, range(len(jobs)), jobs):
                self.total.add(tally)
                if tally.faults:
                    for process in list(self._running.values()):
                        process.kill()

    def _run_one(self, number: int, job: dict[str, Any]) -> Tally:
        if self.total.faults:
            return Tally()
        note = self._folder / str(number)
        note.write_bytes(bytes(NOTE_BYTES))
        command = [sys.executable, __file__, "--job", json.dumps({**job, "note": str(note)})]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            self._running[number] = process
            try:
                output, _ = process.communicate(timeout=2 * job["seconds"] + HANG_S)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            finally:
                del self._running[number]
        if output.strip():
            answer = json.loads(output.splitlines()[-1])
            return Tally(**{**answer, "inputs": Counter(answer["inputs"])})
        if self.total.faults:
            return Tally()
        return _epitaph(note.read_bytes(), process.returncode)


def _epitaph(note: bytes, returncode: int) -> Tally:
    """Of a worker that died or hung without an answer; its note says on what."""
    target = note[NOTE_NAME].decode().strip("\0 ")
    detail = f"the worker ended with {returncode}"
    fault = {"kind": "died", "target": target, "detail": detail, "file": ""}
    if target:  # otherwise it died before its first input
        data = note[NOTE_DATA : NOTE_DATA + int.from_bytes(note[NOTE_LENGTH])]
        fault["file"] = keep(target, "died", data)
    return Tally(faults=[fault])


def jobs_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What there is to do, and for how long each."""
    from targets import TARGETS  # noqa: PLC0415 - a worker imports them under instrumentation

    names = options.targets or list(TARGETS)
    guided = [name for name in names if TARGETS[name].is_python]
    has_atheris = importlib.util.find_spec("atheris") is not None
    coverage_s = options.seconds * COVERAGE_SHARE if guided and has_atheris else 0.0
    each_s = coverage_s * options.processes / max(1, len(guided))
    jobs = [
        {"engine": "coverage", "names": [name], "seconds": each_s, "seed": options.seed + number}
        for number, name in enumerate(guided if has_atheris else [])
    ]
    rest_s = options.seconds - coverage_s
    return jobs + [
        {"engine": "damage", "names": names, "seconds": rest_s, "seed": options.seed + number}
        for number in range(options.processes)
    ]


def main() -> int:
    """Run; 1 where something was found."""
    parser = argparse.ArgumentParser(description="Fuzz every decoder of bytes from outside.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--targets", nargs="*", metavar="NAME")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(json.loads(options.job))
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(2**31)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        campaign.run(jobs_of(options), options.processes)
    total = campaign.total
    answer = {
        "bench": "fuzz",
        "inputs": total.inputs.total(),
        "seconds": round(time.monotonic() - started_s, 1),
        "seed": options.seed,
        "faults": total.faults,
        "slowest_ms": round(total.slowest_ms, 3),
        "largest_mib": round(total.largest_mib, 2),
        "per_target": dict(sorted(total.inputs.items())),
    }
    print(json.dumps(answer))  # noqa: T201 - what the campaign is for
    return 1 if total.faults else 0


if __name__ == "__main__":
    sys.exit(main())
