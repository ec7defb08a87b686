"""The only reader of clocks in the car: boot time and UTC."""

import time

from edge_runtime.contract.clock import Now


def boot_ns() -> int:
    """Nanoseconds since this computer started, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def read_clock() -> Now:
    """The present moment on both clocks."""
    return Now(boot_ns(), time.time_ns() // 1_000_000)
