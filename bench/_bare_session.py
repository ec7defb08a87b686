"""The bare half of `ort_efficiency`: `session.run` in a loop, in a process of its own.

Reads a number of runs a line on stdin, prints the seconds that they took. Same session options,
scheduling class and kind of feed as the engine's worker.
"""

import os
import sys
import time

import numpy as np
import onnxruntime as ort


def main(path: str, width: int) -> None:
    """Answer until the end of stdin."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
    feed = {"x": np.ones((1, width), np.float32)}
    for line in sys.stdin:
        started_s = time.perf_counter()
        for _ in range(int(line)):
            session.run(None, feed)
        print(time.perf_counter() - started_s, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
