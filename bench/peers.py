"""The no-op model behind this system, beside MLServer and LitServe in the same run.

Optional: with `--compare` (`make bench-peers`) it makes an environment of the peers' own in
`.data/peers`, whose packages never enter ours; without, it says so in one line.

The same ONNX file, the same keep-alive socket client with 64 connections, in turns of a few
seconds, so that a machine that slows down slows all of them. Unlike here, a peer has no fleet, no
broker and no second process to reach; MLServer runs its model in the process that answers
(`parallel_workers: 0`), LitServe in one worker, as by its defaults, and so this system may use more
of the two cores. No peer batches: they do so only when told to, and a model that does nothing gains
nothing by it. MLServer has no binary tensors: it is asked in JSON, this system in both ways.
"""

import argparse
import asyncio
import contextlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from _rig import (
    DATA,
    SYNTHETIC,
    Load,
    Process,
    Rig,
    accepts,
    figure,
    free_port,
    median,
    say,
    wait_for,
)
from interactive import CONNECTIONS, ROUND_S, ROUNDS, rate, request_bytes

PEERS: Final = ("mlserver==1.7.1", "litserve==0.2.19")
ENVIRONMENT: Final = DATA / "peers"
MODEL: Final = SYNTHETIC / "noop" / "model.onnx"
HERE: Final = Path(__file__).parent
START_S: Final = 60.0


def make_environment() -> Path:
    """The Python of an environment with the peers, made when it is missing or another one.

    Raises `subprocess.CalledProcessError` where they cannot be installed: MLServer 1.7.1 needs a
    Python below 3.13.
    """
    wanted = [*PEERS, f"onnxruntime=={importlib.metadata.version('onnxruntime')}"]
    python, stamp = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "made-of.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != wanted:
        say(f"  making {ENVIRONMENT} (about 400 MB)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        quiet = ("--quiet", "--disable-pip-version-check")
        subprocess.run([python, "-m", "pip", "install", *quiet, *wanted], check=True, stdout=2)
        stamp.write_text(json.dumps(wanted))
    return python


@contextlib.contextmanager
def with_its_children(process: Process) -> Iterator[None]:
    """End a process that leaves its own ones behind, and these, by their ids."""
    try:
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.end()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, 10)


def start_mlserver(rig: Rig, python: Path, stack: contextlib.ExitStack) -> str:
    """MLServer with one model; its address."""
    folder = rig.folder / "mlserver"
    folder.mkdir()
    port = free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "debug": False,
        "parallel_workers": 0,
    }
    model = {
        "name": "noop",
        "implementation": "_peer_mlserver.OnnxRuntime",
        "parameters": {"uri": str(MODEL)},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    begin = "import sys; sys.path.insert(0, sys.argv.pop(1)); from mlserver.cli import main; main()"
    process = rig.process("mlserver", [str(python), "-c", begin, str(HERE), "start", str(folder)])
    stack.enter_context(with_its_children(process))
    wait_for("MLServer", lambda: process.check() and accepts(port), START_S)
    return f"http://127.0.0.1:{port}"


def start_litserve(rig: Rig, python: Path, stack: contextlib.ExitStack) -> str:
    """LitServe with one model; its address."""
    port = free_port()
    argv = [str(python), str(HERE / "_peer_litserve.py"), str(MODEL), str(port)]
    process = rig.process("litserve", argv)
    stack.enter_context(with_its_children(process))
    wait_for("LitServe", lambda: process.check() and accepts(port), START_S)
    return f"http://127.0.0.1:{port}"


def json_request(url: str, path: str, body: object) -> bytes:
    """One POST of a client that stays."""
    text = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {url.removeprefix('http://')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    return head.encode() + text


def in_turns(asked: dict[str, tuple[str, bytes]]) -> dict[str, list[float]]:
    """Answers a second of each, a round of all before the next."""
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(ROUNDS):
        for name, (url, request) in asked.items():
            say(f"  {name}")
            rates[name] += asyncio.run(rate(url, request, CONNECTIONS, ROUND_S, 1))
    return rates


def print_figures(rates: dict[str, list[float]], load: Load, shared: str) -> None:
    """Ours over each peer's, round by round; the rates beside."""
    facts = {
        "connections": CONNECTIONS,
        **{f"{name}_per_s": round(median(each)) for name, each in rates.items()},
        **load.facts(),
    }
    for ours, peer, target in (
        ("edge_runtime_json", "mlserver", ">= 1"),
        ("edge_runtime_binary", "mlserver", ">= 1"),
        ("edge_runtime_binary", "litserve", ">= 1"),
    ):
        ratios = [own / other for own, other in zip(rates[ours], rates[peer], strict=True)]
        figure(
            f"{ours}_over_{peer}",
            median(ratios),
            "ratio",
            target,
            shared=shared,
            digits=2,
            best=round(max(ratios), 2),
            worst=round(min(ratios), 2),
            **facts,
        )


def compare() -> None:
    """Measure and print."""
    python = make_environment()
    with Rig() as rig, contextlib.ExitStack() as stack:
        rig.start_broker()
        rig.start_dispatcher(SYNTHETIC)
        rig.start_car()
        rig.await_ready_car()
        mlserver = start_mlserver(rig, python, stack)
        litserve = start_litserve(rig, python, stack)
        binary = request_bytes(rig.url, "noop", np.array([1.0], np.float32))
        tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}
        infer = ("/v2/models/noop/infer", {"inputs": [tensor]})
        predict = ("/predict", {"x": [1.0]})
        with Load() as load:
            rates = in_turns(
                {
                    "edge_runtime_binary": (rig.url, binary),
                    "edge_runtime_json": (rig.url, json_request(rig.url, *infer)),
                    "mlserver": (mlserver, json_request(mlserver, *infer)),
                    "litserve": (litserve, json_request(litserve, *predict)),
                }
            )
        shared = (
            f"2 cores: each in its turn, with the client; ours with {rig.broker_kind} and a car"
        )
        print_figures(rates, load, shared)


def main(arguments: Sequence[str]) -> None:
    """Compare when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true", help="fetch the peers, and measure")
    if parser.parse_known_args(arguments)[0].compare:
        compare()
    else:
        say(f"skipped: `make bench-peers` compares with {' and '.join(PEERS)}")


if __name__ == "__main__":
    main(sys.argv[1:])
