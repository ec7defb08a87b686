"""Tell systemd that the service is ready, alive or stopping (sd_notify), where systemd asked.

Absent systemd, or refused by it, nothing happens: nobody is there to be told.
"""

import os
import socket
from contextlib import suppress
from typing import Final

_US_PER_S: Final = 1_000_000


def notify(state: str) -> None:
    """Send `READY=1`, `WATCHDOG=1`, `STOPPING=1` or `STATUS=…` as one datagram."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        datagram.sendto(state.encode(), address)


def watchdog_period_s() -> float | None:
    """Half of the time within which systemd wants a sign of life; None where it wants none."""
    wanted_us = os.environ.get("WATCHDOG_USEC", "")
    watched_pid = os.environ.get("WATCHDOG_PID", "")
    if not wanted_us.isdigit() or (watched_pid and watched_pid != str(os.getpid())):
        return None
    return int(wanted_us) / _US_PER_S / 2
