"""A child process that never outlives its parent, however the parent ends.

The kernel sends the signal when the thread that started the child ends (`prctl(2)`,
PR_SET_PDEATHSIG), so a child is started from a thread that lives as long as its process.
"""

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; leave if it already has.

    Raises `OSError` where the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(0)
