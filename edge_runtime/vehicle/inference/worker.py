"""The inference process. Started by the engine only, with its descriptors by number.

Invariants
- It never outlives the engine's process: the kernel kills it when that process ends, and an end
  of the stream ends it too.
- It gives way: idle scheduling class, lowest nice value, first choice of the OOM killer, bounded
  address space; all of it before the first byte of a model or of ONNX Runtime is loaded.
- Events of items faster than `ENGINE_EVENT_BATCH_MS` are gathered into one write; until then they
  lie in memory that outlives this process, so that a stop costs the item in hand and no other.

Deliberately absent: asyncio, logging, any network, any file but those of the packages and, in a
folder of its own and for a moment, ONNX Runtime's profile of a model that is new here.
"""

import os
import resource
import signal
import socket
import sys
from pathlib import Path

from edge_runtime.contract import limits
from edge_runtime.lifeline import die_with
from edge_runtime.vehicle.inference import protocol
from edge_runtime.vehicle.inference.options import WorkerOptions
from edge_runtime.vehicle.inference.protocol import Progress
from edge_runtime.vehicle.inference.streams import Inbox, Outbox


def _give_way(options: WorkerOptions) -> None:
    """Take the last place in every queue of the kernel."""
    if options.cpus is not None:
        os.sched_setaffinity(0, options.cpus)
    if options.is_idle_class:
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    resource.setrlimit(resource.RLIMIT_AS, (options.memory_max_bytes, options.memory_max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The agent may ask for a real-time class; who runs other people's models may not.
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    # Python ignores SIGXFSZ: a file that grows too large is an error of whoever writes it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.PROFILE_FILE_MAX_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.ENGINE_OPEN_FILES_MAX,) * 2)


def main(argv: list[str]) -> None:
    """Run with the descriptors of stream, stop channel and page, and the engine's pid."""
    stream_fd, stops_fd, page_fd, parent = map(int, argv)
    die_with(parent)
    # A Ctrl-C in the terminal is for the engine's process, which then ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = socket.socket(fileno=stream_fd)
    inbox = Inbox(stream)
    try:
        configure = inbox.next()
        if not isinstance(configure, protocol.Configure):
            raise protocol.BadFrame("the first frame must be Configure")
        options = configure.options
        # Before any thread starts: the kernel keeps class and nice value per thread.
        _give_way(options)
        outbox = Outbox(stream, protocol.Unsent(page_fd))
        # The heavy import comes after the limits, so that they bind it too.
        from edge_runtime.vehicle.inference import computing  # noqa: PLC0415

        stop_channel = socket.socket(fileno=stops_fd)
        progress = Progress(page_fd)
        computing.serve(configure, inbox, outbox, stop_channel, progress)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # Nothing of this process is worth tidying: its end is the tidying.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
