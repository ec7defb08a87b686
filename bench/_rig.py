"""What the benches share: real processes on ephemeral ports, the load beside them, one JSON line.

Invariants
- Every process is started here and ended here, by its own id, whatever happens.
- A figure says what shared the processors while it was measured: our own processes and how much
  of the two cores anybody else used meanwhile (from the kernel's accounts, not a guess).
- A bench prints JSON lines on stdout and nothing else; a failed target is a figure, not an exit
  code. What could not be measured at all ends with a traceback.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import psutil

from edge_runtime.cli.logging import configure_logging
from edge_runtime.contract.tensors import Tensor

REPOSITORY: Final = Path(__file__).parent.parent
DATA: Final = REPOSITORY / ".data"
SYNTHETIC: Final = DATA / "synthetic"
MODELS: Final = DATA / "models"
TENANT: Final = "bench"
START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02
_HOST: Final = "127.0.0.1"
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_POLICY: Final = """\
dwell_s = 0
[consent]
given = true
version = 1
"""


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, is_so: Any, timeout_s: float = START_TIMEOUT_S) -> Any:
    """Poll `is_so` until it returns something true; that. Raises TimeoutError."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := is_so()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no {what} within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return found


def accepts(port: int) -> bool:
    """Whether something listens on this machine's port."""
    try:
        socket.create_connection((_HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


class Process:
    """A child process with a log; `cpus` pins it and all its children."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        cpus: Sequence[int] | None = None,
        takes_input: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        prefix = [] if cpus is None else ["taskset", "-c", ",".join(map(str, cpus))]
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*prefix, *argv],
                stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=REPOSITORY,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._popen.pid

    def check(self) -> bool:
        """True while it runs. Raises RuntimeError with the end of its log when it does not."""
        if self._popen.poll() is None:
            return True
        tail = self.log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} ended with code {self._popen.returncode}:\n{tail}")

    def tell(self, line: str) -> None:
        """Write one line to its stdin."""
        stdin = self._popen.stdin
        assert stdin is not None, "started with takes_input"
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    def end(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()

    def kill(self) -> None:
        """SIGKILL."""
        self._popen.kill()
        self._popen.wait()


class Rig:
    """A broker, a dispatcher and cars. A context manager; start what the bench needs.

    `service_cpus` pins everything but what names its own processors.
    """

    def __init__(self, *, service_cpus: Sequence[int] | None = None) -> None:
        self._stack = contextlib.ExitStack()
        self._service_cpus = service_cpus
        self.folder: Path
        self.broker_url = ""
        self.broker_kind = ""
        self.url = ""

    def __enter__(self) -> Self:
        configure_logging("json", "warning")  # of this process: stdout is for figures
        # Beside the models: the disk that the dispatcher's store would lie on, no memory file
        # system that makes fsync free.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=DATA))
        self.folder = Path(folder)
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        if kind is not None:
            for log in self.folder.glob("*.log"):
                say(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}")
        self._stack.close()

    def process(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cpus: Sequence[int] | None = None,
        takes_input: bool = False,
    ) -> Process:
        """Start a process that ends with this rig."""
        log = self.folder / f"{name}.log"
        process = Process(name, argv, log, cpus=cpus or self._service_cpus, takes_input=takes_input)
        self._stack.callback(process.end)
        return process

    def edge_runtime(self, name: str, *arguments: str, **how: Any) -> Process:
        """Start a command of the command line; `how` as for `process`."""
        return self.process(name, [sys.executable, "-m", "edge_runtime", *arguments], **how)

    def start_broker(self) -> Process:
        """Mosquitto with the limits of broker/mosquitto.conf, or else the embedded broker."""
        port = free_port()
        self.broker_url = f"mqtt://{_HOST}:{port}"
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        if mosquitto is None:
            self.broker_kind = "embedded (rumqttd)"
            broker = self.edge_runtime("broker", "broker", "--port", str(port))
        else:
            self.broker_kind = "Mosquitto"
            configuration = self.folder / "mosquitto.conf"
            configuration.write_text("\n".join(_mosquitto_lines(port)))
            broker = self.process("broker", [mosquitto, "-c", str(configuration)])
        wait_for("broker", lambda: broker.check() and accepts(port))
        return broker

    def start_dispatcher(self, models: Path = SYNTHETIC, *, options: Sequence[str] = ()) -> Process:
        """The dispatcher as an operator starts it: SQLite, synchronous=FULL."""
        port = free_port()
        self.url = f"http://{_HOST}:{port}"
        dispatcher = self.edge_runtime(
            "dispatcher",
            "dispatcher",
            f"--broker={self.broker_url}",
            f"--store={self.folder / 'dispatcher.db'}",
            f"--models={models}",
            f"--http={_HOST}:{port}",
            *options,
        )
        wait_for("dispatcher", lambda: dispatcher.check() and _is_ready(self.url))
        return dispatcher

    def start_car(
        self,
        name: str = "car-1",
        *,
        units_max: int = 64,
        options: Sequence[str] = (),
        cpus: Sequence[int] | None = None,
    ) -> Process:
        """A car whose owner allows everything, with simulated sensors that take commands."""
        policy = self.folder / "policy.toml"
        policy.write_text(_POLICY)
        return self.edge_runtime(
            name,
            "vehicle",
            f"--id={name}",
            f"--broker={self.broker_url}",
            f"--state-dir={self.folder / name}",
            f"--policy={policy}",
            f"--units-max={units_max}",
            "--sensors=simulated",
            "--sensor-commands",
            *options,
            cpus=cpus,
            takes_input=True,
        )

    def await_ready_car(self, count: int = 1) -> None:
        """Wait until the dispatcher sees so many cars that take work."""

        def is_ready() -> bool:
            fleet = ask(self.url, "/v1/fleet")
            return (
                sum(car["availability"] in {"ready", "working"} for car in fleet["cars"]) >= count
            )

        wait_for("car that takes work", is_ready)


def engine_of(car: Process) -> psutil.Process | None:
    """The car's inference process, once it runs."""
    car.check()
    for child in psutil.Process(car.pid).children():
        if "edge_runtime.vehicle.inference.worker" in child.cmdline():
            return child
    return None


def ask(url: str, path: str) -> Any:
    """A JSON answer of the dispatcher's HTTP API, as the operator."""
    request = urllib.request.Request(url + path, headers={"X-Tenant": "*"})  # noqa: S310 - http only
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http only
        return json.loads(answer.read())


def _is_ready(url: str) -> bool:
    try:
        return bool(ask(url, "/v1/health")["ready"])
    except OSError:
        return False


def _mosquitto_lines(port: int) -> list[str]:
    shipped = (REPOSITORY / "broker/mosquitto.conf").read_text().splitlines()
    kept = [line for line in shipped if line.startswith(("max_", "set_tcp_nodelay", "queue_qos0"))]
    return [f"listener {port} {_HOST}", "allow_anonymous true", *kept, ""]


def tensor_item(*values: float, shape: tuple[int, ...] | None = None) -> bytes:
    """An item of a synthetic model: its input `x`, FP32, of one axis unless `shape` says more."""
    import numpy as np  # noqa: PLC0415 - only benches that make items need it

    array = np.asarray(values, dtype="<f4")
    return msgspec.msgpack.encode([Tensor("x", "FP32", shape or array.shape, array.tobytes())])


# --- what else used the processors ---------------------------------------------------------------


class Load:
    """How busy the machine was between `__enter__` and `__exit__`, by us and by others."""

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        self._all = _busy_s()
        self._ours = _tree_s()
        return self

    def __exit__(self, *exc: object) -> None:
        elapsed_s = max(time.monotonic() - self._started_s, 1e-6)
        self.ours_cores = (_tree_s() - self._ours) / elapsed_s
        self.others_cores = max(0.0, (_busy_s() - self._all) / elapsed_s - self.ours_cores)

    def facts(self) -> dict[str, float]:
        """For a figure: cores used by this bench's processes and by everybody else."""
        return {
            "ours_cores": round(self.ours_cores, 2),
            "others_cores": round(self.others_cores, 2),
            "load_1min": round(os.getloadavg()[0], 2),
        }


def _busy_s() -> float:
    """Processor time used on this machine since it started."""
    first = Path("/proc/stat").read_text().splitlines()[0]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S


def _tree_s() -> float:
    """Processor time used by this process and its descendants, ended ones included."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def cpu_s(pid: int) -> float:
    """Processor time used by one process so far."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


# --- figures -------------------------------------------------------------------------------------


def figure(
    name: str, value: float, unit: str, target: str, *, shared: str, digits: int = 1, **facts: Any
) -> None:
    """Print one figure. `target` is a comparison and a number, such as ">= 10000"."""
    comparison, _, bound = target.partition(" ")
    met = value >= float(bound) if comparison == ">=" else value <= float(bound)
    line = {
        "name": name,
        "value": round(value, digits),
        "unit": unit,
        "target": target,
        "met": met,
        "shared": shared,
        **facts,
    }
    print(json.dumps(line), flush=True)


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


@contextlib.contextmanager
def stopwatch() -> Iterator[list[float]]:
    """A list that holds the seconds spent inside, once outside."""
    taken: list[float] = []
    started_s = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - started_s)
