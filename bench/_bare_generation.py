"""The bare half of `generation`: a greedy loop on the same graph, in a process of its own.

Reads lines of `prompt-tokens new-tokens` on stdin; prints the seconds from the first new token to
the last. Same session options and scheduling class as the engine's worker; the cache is written
in place, and nothing is made of the tokens.
"""

import os
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort

CONTEXT_TOKENS = 1_024


def session_of(path: str) -> Any:
    """The model, as the worker loads it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])


class Bound:
    """Inputs and outputs of one row and so many tokens."""

    def __init__(self, session: Any, caches: dict[str, Any], logits: Any, tokens: int) -> None:
        self.ids = np.zeros((1, tokens), np.int64)
        self.last = np.zeros(1, np.int32)
        self.total = np.zeros((), np.int32)
        self.io = session.io_binding()
        arrays = {"input_ids": self.ids, "seqlens_k": self.last, "total_length": self.total}
        for name, array in (arrays | caches).items():
            self.io.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        outputs = {name.replace("past", "present"): array for name, array in caches.items()}
        for name, array in (outputs | {"logits": logits}).items():
            self.io.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def run(self, session: Any, length: int) -> None:
        """Compute with so many tokens in the cache afterwards."""
        self.last[0] = length - 1
        self.total[...] = length
        session.run_with_iobinding(self.io)


def main(path: str) -> None:
    """Answer until the end of stdin."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    session = session_of(path)
    caches = {
        value.name: np.zeros((1, value.shape[1], CONTEXT_TOKENS, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    vocabulary = session.get_outputs()[0].shape[1]
    logits = np.zeros((1, vocabulary), np.float32)
    step = Bound(session, caches, logits, 1)
    for line in sys.stdin:
        prompt_tokens, new_tokens = map(int, line.split())
        prompt = Bound(session, caches, logits, prompt_tokens)
        prompt.ids[0] = np.arange(prompt_tokens) + 100
        prompt.run(session, prompt_tokens)
        started_s = time.perf_counter()
        for length in range(prompt_tokens + 1, prompt_tokens + new_tokens):
            step.ids[0, 0] = logits[0].argmax()
            step.run(session, length)
        logits[0].argmax()
        print(time.perf_counter() - started_s, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
