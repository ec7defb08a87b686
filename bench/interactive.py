"""Interactive inference through all of it: HTTP, dispatcher, MQTT, car, engine, and back.

Every process is real and all share the machine with the client. Figures: the usual client's latency
on a model that does nothing, one at a time; requests a second of a bare socket client with many
connections; the 5 ms model against ONNX Runtime alone in a process, which ran just before and just
after; and how long a car computes on after its client has hung up.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from _rig import (
    REPOSITORY,
    SYNTHETIC,
    Load,
    Process,
    Rig,
    ask,
    engine_of,
    figure,
    median,
    say,
    wait_for,
)

CLOSED_LOOP: Final = 2_000
CONNECTIONS: Final = 64
ROUNDS: Final = 5
ROUND_S: Final = 3.0
MLP_WIDTH: Final = 256
MLP_CONNECTIONS: Final = 8
BARE_RUNS: Final = 400
HANG_UPS: Final = 30
IDLE_NS: Final = 200_000
"""Processor time that is no computing: signals, and threads that look whether they must end."""
IDLE_LOOKS_S: Final = 0.3


def request_bytes(url: str, model: str, values: np.ndarray) -> bytes:
    """One `infer` with its tensor in binary, as the usual client sends it."""
    header = {
        "inputs": [
            {
                "name": "x",
                "shape": list(values.shape),
                "datatype": "FP32",
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(header).encode()
    body = text + values.tobytes()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection(asyncio.Protocol):
    """Asks again as soon as it is answered; answers of one model are all of one length."""

    def __init__(self, request: bytes, counts: list[int]) -> None:
        self._request = request
        self._counts = counts
        self._length = 0
        self._had = 0
        self._head = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count an answer that is whole, and ask again."""
        if not self._length:
            self._head += data
            head, found, _ = self._head.partition(b"\r\n\r\n")
            if not found:
                return
            assert head.startswith(b"HTTP/1.1 200"), self._head
            size = int(head.lower().rpartition(b"\r\ncontent-length:")[2].split(b"\r\n")[0])
            self._length = len(head) + 4 + size
            self._had = len(self._head)
        else:
            self._had += len(data)
        if self._had >= self._length:
            assert self._had == self._length, "an answer of another length"
            self._had = 0
            self._counts[0] += 1
            self.transport.write(self._request)


async def rate(
    url: str, request: bytes, connections: int, seconds: float, rounds: int
) -> list[float]:
    """Answers a second, of each round."""
    loop = asyncio.get_running_loop()
    host, _, port = url.removeprefix("http://").partition(":")
    counts = [0]
    made = [
        (await loop.create_connection(lambda: Connection(request, counts), host, int(port)))[0]
        for _ in range(connections)
    ]
    rates = []
    await asyncio.sleep(1)  # warm
    for number in range(rounds):
        before, started_s = counts[0], time.perf_counter()
        await asyncio.sleep(seconds)
        rates.append((counts[0] - before) / (time.perf_counter() - started_s))
        say(f"  round {number + 1}: {rates[-1]:.0f} requests/s")
    for transport in made:
        transport.abort()
    return rates


def closed_loop(url: str) -> list[float]:
    """Milliseconds of each request of the usual client, one after the other."""
    import tritonclient.http as triton  # noqa: PLC0415 - after the rig's logging

    values = np.array([1.0], np.float32)
    tensor = triton.InferInput("x", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    taken_ms = []
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        for number in range(CLOSED_LOOP + 200):
            started_s = time.perf_counter()
            client.infer("noop", [tensor])
            if number >= 200:
                taken_ms.append((time.perf_counter() - started_s) * 1e3)
    return sorted(taken_ms)


class Bare:
    """ONNX Runtime alone in a process, with the engine's options."""

    def __init__(self, model: str) -> None:
        path = next((SYNTHETIC / model).glob("*.onnx"))
        script = Path(__file__).parent / "_bare_session.py"
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(path), str(MLP_WIDTH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def rate(self) -> float:
        """Runs a second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{BARE_RUNS}\n")
        self._process.stdin.flush()
        return BARE_RUNS / float(self._process.stdout.readline())

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def against_bare(url: str) -> tuple[list[float], list[float]]:
    """(rates of the 5 ms model through everything over bare, and bare's)."""
    bare = Bare("mlp5ms")
    request = request_bytes(url, "mlp5ms", np.ones((1, MLP_WIDTH), np.float32))
    ratios, bares = [], []
    bare.rate()
    for _ in range(ROUNDS):
        before = bare.rate()
        (ours,) = asyncio.run(rate(url, request, MLP_CONNECTIONS, ROUND_S, 1))
        after = bare.rate()
        bares += [before, after]
        ratios.append(ours / ((before + after) / 2))
    bare.end()
    return ratios, bares


def _run_ns(process: psutil.Process) -> int:
    """Time that all threads of a process have run (kernel's account)."""
    total = 0
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total


def hang_up(rig: Rig, car: Process, request: bytes) -> float:
    """Milliseconds from closing the connection to the engine's last processor time."""
    host, _, port = rig.url.removeprefix("http://").partition(":")
    import socket  # noqa: PLC0415 - for this figure only

    with socket.create_connection((host, int(port))) as client:
        client.sendall(request)
        engine = wait_for("engine", lambda: engine_of(car))
        before = _run_ns(engine)
        wait_for("computing", lambda: _run_ns(engine) > before + 50_000_000)
        closed_s = time.perf_counter()
    last_s, ran = closed_s, _run_ns(engine)
    while time.perf_counter() - last_s < IDLE_LOOKS_S:
        now_ns = _run_ns(engine)
        if now_ns > ran + IDLE_NS:
            last_s, ran = time.perf_counter(), now_ns
        time.sleep(0.001)
    return (last_s - closed_s) * 1e3


def measure_latency(rig: Rig, shared: str) -> None:
    """The usual client, one request after the other."""
    with Load() as load:
        taken_ms = closed_loop(rig.url)
    figure(
        "interactive_p50_ms",
        median(taken_ms),
        "ms",
        "<= 3",
        shared=shared,
        digits=2,
        p90=round(taken_ms[int(len(taken_ms) * 0.9)], 2),
        p99=round(taken_ms[int(len(taken_ms) * 0.99)], 2),
        requests=len(taken_ms),
        **load.facts(),
    )


def measure_rate(rig: Rig, processes: tuple[Process, ...], shared: str) -> None:
    """Many bare connections, and what each process spends on a request."""

    def spent_s(process: Process) -> float:
        return sum(psutil.Process(process.pid).cpu_times()[:2])

    def answered() -> int:
        return int(ask(rig.url, "/v1/health")["counters"]["interactive_answered"])

    request = request_bytes(rig.url, "noop", np.array([1.0], np.float32))
    with Load() as load:
        before, count = {p.name: spent_s(p) for p in processes}, answered()
        rates = asyncio.run(rate(rig.url, request, CONNECTIONS, ROUND_S, ROUNDS))
        count = answered() - count
    figure(
        "interactive_requests_per_s",
        median(rates),
        "requests/s",
        ">= 2300",
        shared=shared,
        digits=0,
        best=round(max(rates)),
        worst=round(min(rates)),
        connections=CONNECTIONS,
        **{
            f"{p.name.partition('-')[0]}_us": round((spent_s(p) - before[p.name]) / count * 1e6)
            for p in processes
        },
        **load.facts(),
    )


def measure_against_bare(rig: Rig, shared: str) -> None:
    """The 5 ms model, beside ONNX Runtime alone."""
    with Load() as load:
        ratios, bares = against_bare(rig.url)
    figure(
        "interactive_against_bare",
        median(ratios),
        "ratio",
        ">= 0.85",
        shared=shared,
        digits=3,
        best=round(max(ratios), 3),
        worst=round(min(ratios), 3),
        bare_per_s=round(median(bares), 1),
        **load.facts(),
    )


def measure_hang_ups(rig: Rig, car: Process, shared: str) -> None:
    """A model that never ends, until its client hangs up."""
    endless = request_bytes(rig.url, "loop-forever", np.array([1.0], np.float32))
    with Load() as load:
        idle_ms = sorted(hang_up(rig, car, endless) for _ in range(HANG_UPS))
    figure(
        "hang_up_to_idle_ms",
        idle_ms[int(len(idle_ms) * 0.95)],
        "ms",
        "<= 100",
        shared=shared,
        p50=round(median(idle_ms), 1),
        worst=round(idle_ms[-1], 1),
        hang_ups=HANG_UPS,
        **load.facts(),
    )


def main() -> None:
    """Measure and print."""
    with Rig() as rig:
        broker = rig.start_broker()
        dispatcher = rig.start_dispatcher(SYNTHETIC)
        car = rig.start_car()
        rig.await_ready_car()
        shared = f"2 cores: {rig.broker_kind}, dispatcher, car, engine, and the client itself"
        measure_latency(rig, shared)
        measure_rate(rig, (broker, dispatcher, car), shared)
        measure_against_bare(rig, shared)
        measure_hang_ups(rig, car, shared)


if __name__ == "__main__":
    main()
