"""One worker process: started, talked to, frozen, thawed, killed, and known to be gone.

Invariants
- Signals go through a pidfd, so they can never hit another process that got the number.
- `freeze` and `kill` send their signal before they return; nothing waits for anything.
- The process gets no descriptor but its own, no environment but what Python needs, an empty
  folder to stand in, another one for profiles, and nothing on its standard input.
- `on_exit` is called exactly once, after every event that the process had to tell, sent or not.
- No event is handed over twice, whether it came by the stream or was found in shared memory.

Everything is called on one event loop. Deliberately absent: any policy; see `engine`.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.options import WorkerOptions
from edge_runtime.vehicle.inference.protocol import Progress, Unsent
from edge_runtime.vehicle.inference.worker_log import WorkerLog

_READ_BYTES: Final = 1 << 18
_LOG_READ_BYTES: Final = 16 * 1024
_NS_PER_MS: Final = 1_000_000
_MEASURE_EVERY_S: Final = 0.0005
_ENVIRONMENT: Final = (
    "PATH",
    "PYTHONPATH",
    "PYTHONHOME",
    "LD_LIBRARY_PATH",
    "LANG",
    "LC_ALL",
    "TZ",
)
_URGENT_CLASSES: Final = ((os.SCHED_FIFO, 1), (os.SCHED_OTHER, 0))
_STOPPED_STATES: Final = frozenset("TtZX")
_MS_PER_TICK: Final = 1000 / os.sysconf("SC_CLK_TCK")

OnEvents = Callable[["WorkerProcess", list[protocol.FromWorker]], None]
OnExit = Callable[["WorkerProcess"], None]


class WorkerProcess:
    """A running worker. Raises `OSError` when the process cannot be started."""

    def __init__(self, options: WorkerOptions, on_events: OnEvents, on_exit: OnExit) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_events = on_events
        self._on_exit = on_exit
        self._decoder = msgspec.msgpack.Decoder(list[protocol.FromWorker])
        self._encoder = msgspec.msgpack.Encoder()
        self._splitter = protocol.FrameSplitter()
        self._outgoing: deque[bytes] = deque()
        self._own_class = (os.SCHED_IDLE if options.is_idle_class else os.SCHED_OTHER, 0)
        self._is_flush_due = False
        self._is_deaf = False
        self._spoke_nonsense = False
        self._batch = 0
        self._batch_taken = 0
        self.frozen_at_ns: int | None = None
        """When it was frozen (CLOCK_MONOTONIC); None while it is not."""
        self.frozen_total_ns = 0
        """How long the worker was frozen up to the last thaw."""
        self.exit_status: int | None = None
        """As of `subprocess`: negative for a signal; None while it runs."""
        self._gone = asyncio.Event()
        self._folder = tempfile.mkdtemp(prefix="edge-runtime-worker-")
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self._scratch = tempfile.mkdtemp(prefix="edge-runtime-profile-")
            undo.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._start(undo)
            undo.pop_all()
        self.log = WorkerLog(self.pid)
        self._loop.add_reader(self._stream, self._read)
        self._loop.add_reader(self._log_fd, self._read_log)
        self._loop.add_reader(self._pidfd, self._exited)
        self.send(protocol.Configure(options, self._scratch))

    def _start(self, undo: contextlib.ExitStack) -> None:
        """Make the ways to talk and start the process; `undo` takes back what was made."""
        Path(self._folder).chmod(0o555)
        self._stream, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._stops, their_stops = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(self._stream.close)
        undo.callback(self._stops.close)
        page = os.memfd_create("edge-runtime-progress")
        self._log_fd, their_log = os.pipe()
        undo.callback(os.close, self._log_fd)
        try:
            os.ftruncate(page, Progress.BYTES + Unsent.BYTES)
            self.progress = Progress(page)
            undo.callback(self.progress.close)
            self._unsent = Unsent(page)
            undo.callback(self._unsent.close)
            numbers = (theirs.fileno(), their_stops.fileno(), page)
            self._popen = subprocess.Popen(
                # -P: nothing is imported from the folder it stands in.
                [sys.executable, "-P", "-m", "edge_runtime.vehicle.inference.worker"]
                + [str(number) for number in (*numbers, os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=their_log,
                stderr=their_log,
                pass_fds=numbers,
                cwd=self._folder,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._popen.pid)
        finally:
            os.close(page)
            os.close(their_log)
            theirs.close()
            their_stops.close()
        for end in (self._stream, self._stops):
            end.setblocking(False)
        os.set_blocking(self._log_fd, False)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.pid} frozen={self.is_frozen} exit={self.exit_status}>"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def is_frozen(self) -> bool:
        """Whether it was frozen and not thawed since."""
        return self.frozen_at_ns is not None

    # --- talking -------------------------------------------------------------------------

    def send(self, message: protocol.ToWorker) -> None:
        """Queue a frame; all that one step of the loop queues goes out in one write."""
        self._outgoing.append(protocol.frame(self._encoder.encode(message)))
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def stop(self, stop: protocol.Stop) -> None:
        """Tell the worker to end a run or an item. Lost when it does not listen: a hint."""
        with contextlib.suppress(OSError):
            self._stops.send(self._encoder.encode(stop))

    def leave(self) -> None:
        """Ask it to exit when it has read and done everything that was sent."""
        self._flush()
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)

    def _flush(self) -> None:
        self._is_flush_due = False
        if self.exit_status is not None:
            return
        self._loop.remove_writer(self._stream)
        while self._outgoing:
            data = b"".join(self._outgoing)
            self._outgoing.clear()
            try:
                sent = self._stream.send(data)
            except BlockingIOError:
                sent = 0
            except (BrokenPipeError, ConnectionResetError):
                return  # it is going; `on_exit` tells
            if sent < len(data):
                self._outgoing.append(data[sent:])
                self._is_flush_due = True
                self._loop.add_writer(self._stream, self._flush)
                return

    def _read(self) -> None:
        """Hand over what has come; one read, so that the loop's other work has its turn."""
        self._read_once()

    def salvage(self) -> None:
        """Hand over every event that it has written, sent or not (it stands still or is gone)."""
        while self._read_once():
            pass
        number, body = self._unsent.read()
        if not body or number < self._batch or self._spoke_nonsense:
            return
        try:
            self._hand_over(self._batch_in(body))
        except (protocol.BadFrame, msgspec.DecodeError) as error:
            self.log.feed(f"left nonsense: {error}\n".encode(), time.monotonic_ns())

    def _batch_in(self, body: bytes) -> tuple[int, list[protocol.FromWorker]]:
        """Return a batch's number and its events. Raises `BadFrame` or `msgspec.DecodeError`."""
        match self._decoder.decode(body):
            case [protocol.Batch(number=number), *events]:
                return number, events
            case _:
                raise protocol.BadFrame("events without the number of their batch")

    def _hand_over(self, batch: tuple[int, list[protocol.FromWorker]]) -> None:
        """Tell of a batch, except what was told of it before."""
        number, events = batch
        taken = self._batch_taken if number == self._batch else 0
        self._batch, self._batch_taken = number, len(events)
        if fresh := events[taken:]:
            self._on_events(self, fresh)

    def _read_once(self) -> bool:
        """Return whether there may be more."""
        if self._is_deaf:
            return False
        try:
            data = self._stream.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            self._hear_no_more()
            return False
        try:
            batches = [self._batch_in(body) for body in self._splitter.feed(data)]
        except (protocol.BadFrame, msgspec.DecodeError) as error:
            # A model that has taken over its process must not take over this one.
            self.log.feed(f"spoke nonsense: {error}\n".encode(), time.monotonic_ns())
            self._spoke_nonsense = True
            self._hear_no_more()
            self.kill()
            return False
        for events in batches:
            self._hand_over(events)
        return True

    def _hear_no_more(self) -> None:
        self._is_deaf = True
        self._loop.remove_reader(self._stream)

    def _read_log(self) -> None:
        try:
            data = os.read(self._log_fd, _LOG_READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.log.feed(data, time.monotonic_ns())
        else:
            self._loop.remove_reader(self._log_fd)

    # --- stopping ------------------------------------------------------------------------

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def freeze(self) -> None:
        """SIGSTOP, now, and out of the way of whoever else wants the processor.

        Freezing a frozen process does nothing.
        """
        if self.exit_status is None and self.frozen_at_ns is None:
            self.frozen_at_ns = time.monotonic_ns()
            self._signal(signal.SIGSTOP)
            set_class(self.pid, *_URGENT_CLASSES)

    def thaw(self) -> None:
        """SIGCONT. Thawing a running process does nothing."""
        if self.exit_status is None and self.frozen_at_ns is not None:
            duration_ns = time.monotonic_ns() - self.frozen_at_ns
            self.frozen_at_ns = None
            self.frozen_total_ns += duration_ns
            self.progress.add_frozen(duration_ns)
            set_class(self.pid, self._own_class)
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, now; `on_exit` follows."""
        if self.exit_status is None:
            self._signal(signal.SIGKILL)

    async def stop_latency_ms(self) -> float:
        """Wait until no thread can run, and return how long after `freeze` that was seen.

        It is an upper bound: a thread counts as running until the kernel says that it is
        stopped. A process that was not frozen, or is gone, gives 0.
        """
        frozen_at_ns = self.frozen_at_ns
        if frozen_at_ns is None:
            return 0.0
        while True:
            is_stopped = self.exit_status is not None or is_at_rest(self.pid)
            latency_ms = (time.monotonic_ns() - frozen_at_ns) / _NS_PER_MS
            is_hopeless = latency_ms > limits.ENGINE_STOP_MEASURE_MAX_MS
            if is_stopped or is_hopeless or self.frozen_at_ns != frozen_at_ns:
                return latency_ms
            await asyncio.sleep(_MEASURE_EVERY_S)

    async def wait_gone(self) -> None:
        """Wait until the process is gone and everything of it is tidied away."""
        await self._gone.wait()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.salvage()
        self._read_log()
        self.exit_status = self._popen.wait()
        for descriptor in (self._stream, self._log_fd):
            self._loop.remove_reader(descriptor)
        self._loop.remove_writer(self._stream)
        self.log.close(time.monotonic_ns())
        self._stream.close()
        self._stops.close()
        os.close(self._log_fd)
        os.close(self._pidfd)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._gone.set()
        self._on_exit(self)
        self.progress.close()
        self._unsent.close()


def cpu_ms(pid: int) -> float:
    """Return the processor time of all threads of a process so far, to a clock tick (10 ms).

    0 for a process that is gone.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = line[line.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) * _MS_PER_TICK


def set_class(pid: int, *classes: tuple[int, int]) -> None:
    """Give every thread the first (scheduling class, priority) that the kernel lets us give.

    A stop takes effect when a thread next runs, and one of the idle class may wait for that as
    long as others want the core. So who is to stop is first made urgent, where the service may
    (root, CAP_SYS_NICE, or the limits RTPRIO or NICE); it runs for microseconds, to stop.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            for policy, priority in classes:
                try:
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))
                except PermissionError:
                    continue
                except ProcessLookupError:
                    pass
                break


def is_at_rest(pid: int) -> bool:
    """Whether every thread of the process is stopped or gone, by the kernel's own word."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except FileNotFoundError:
        return True
    for thread in threads:
        try:
            line = (thread / "stat").read_text(encoding="ascii")
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ESRCH}:
                continue
            raise
        if line[line.rindex(")") + 2] not in _STOPPED_STATES:
            return False
    return True


def describe_exit(status: int | None) -> str:
    """Return an exit status as people say it."""
    if status is None:
        return "still running"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
