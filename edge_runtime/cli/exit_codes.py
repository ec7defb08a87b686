"""What the exit codes of every command mean; `edge-runtime --help` prints the same table."""

from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """How a command ended, for scripts and for systemd's `RestartPreventExitStatus=`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REMOTE = 3
    INTERRUPTED = 130


MEANINGS: Final = {
    ExitCode.DONE: "done, or stopped by SIGTERM or SIGINT as a service should be",
    ExitCode.FAILED: "it ran, and what it says is bad: a failed item, a broken package or store",
    ExitCode.USAGE: "wrong flag, environment variable or file; one line says what to change",
    ExitCode.REMOTE: "the dispatcher or the broker could not be reached, or refused",
    ExitCode.INTERRUPTED: "a command that is no service was interrupted by Ctrl-C",
}
