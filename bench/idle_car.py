"""What a car costs its owner while it has nothing to do: processor time and memory.

An idle `edge-runtime vehicle`, connected and ready, with no model loaded, simulated sensors once
a second. Memory is PSS (its pages, shared ones divided by their users) over all its processes.
"""

import time
from pathlib import Path
from typing import Final

import psutil
from _rig import Load, Process, Rig, cpu_s, figure, say

SETTLE_S: Final = 5.0
WATCH_S: Final = 30.0


def pss_mb(pid: int) -> float:
    """PSS of one process in MB (10**6 bytes)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no Pss of {pid}")


def family(car: Process) -> list[int]:
    """The car's processes."""
    process = psutil.Process(car.pid)
    return [process.pid, *(child.pid for child in process.children(recursive=True))]


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        rig.start_broker()
        rig.start_dispatcher()
        car = rig.start_car()
        rig.await_ready_car()
        time.sleep(SETTLE_S)
        with Load() as load:
            before_s = sum(cpu_s(pid) for pid in family(car))
            started_s = time.monotonic()
            time.sleep(WATCH_S)
            used_s = sum(cpu_s(pid) for pid in family(car)) - before_s
            elapsed_s = time.monotonic() - started_s
        car.check()
        pids = family(car)
        memory_mb = sum(pss_mb(pid) for pid in pids)
        resident_mb = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6
        has_onnx = "onnxruntime" in Path(f"/proc/{car.pid}/maps").read_text()
    say(f"idle_car: {len(pids)} process(es), onnxruntime mapped: {has_onnx}")
    shared = f"2 cores: {rig.broker_kind}, dispatcher, one idle car"
    figure(
        "idle_car_cpu_percent",
        100 * used_s / elapsed_s,
        "% of one core",
        "<= 0.5",
        shared=shared,
        digits=2,
        watched_s=round(elapsed_s),
        **load.facts(),
    )
    figure(
        "idle_car_pss_mb",
        memory_mb,
        "MB",
        "<= 50",
        shared=shared,
        processes=len(pids),
        rss_mb=round(resident_mb, 1),
        onnxruntime_mapped=has_onnx,
        **load.facts(),
    )


if __name__ == "__main__":
    main()
