"""`edge-runtime broker`: the embedded MQTT broker, in this process.

rumqttd does not look at Python's signals and cannot be asked to stop. It runs in a thread of its
own, keeps nothing, and ends with the process.
"""

import os
import signal
import socket
import sys
import threading
from typing import Annotated, Final

from cyclopts import Parameter

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.logging import structlog
from edge_runtime.contract.errors import ConfigError, EdgeError

_PORT_LAST: Final = 65_535
_log = structlog.get_logger(__name__)


def broker(
    *,
    host: Annotated[str, Parameter(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port of MQTT 5.")] = 1883,
    port_311: Annotated[
        int, Parameter(name="--port-311", help="Port of MQTT 3.1.1; 0 is none.")
    ] = 0,
) -> int:
    """Run the embedded MQTT broker until SIGTERM or SIGINT.

    For one machine: it has no passwords, no ACL, no TLS and forgets everything when it ends.
    """
    for option, number in (("--port", port), ("--port-311", port_311)):
        if not 0 <= number <= _PORT_LAST:
            raise ConfigError(f"{option} must be 0 to {_PORT_LAST}, not {number}")
    if not port and not port_311:
        raise ConfigError("--port and --port-311 are both 0: the broker would listen nowhere")
    for option, number in (("--port", port), ("--port-311", port_311)):
        if number:
            _require_free(option, host, number)
    return _serve(host, port, port_311)


def _require_free(option: str, host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"{option} {host}:{port}: {error.strerror}") from None


def _serve(host: str, port: int, port_311: int) -> int:
    from edge_runtime.bus.embedded import serve

    # Blocked before the thread starts, so that only `sigwait` below ever sees them.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    failure: list[str] = []

    def run() -> None:
        try:
            serve(host, port, port_311)
        except (EdgeError, OSError) as error:
            failure.append(str(error))
        finally:
            os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=run, name="broker", daemon=True).start()
    _log.info("broker_started", url=f"mqtt://{host}:{port}", port_311=port_311 or None)
    number = signal.sigwait(awaited)
    if number == signal.SIGUSR1:
        print(f"edge-runtime: the broker ended: {' '.join(failure)}", file=sys.stderr)
    else:
        _log.info("broker_stopped", signal=signal.Signals(number).name)
    sys.stderr.flush()
    # The broker's thread cannot be joined, and must not run on into a closing interpreter.
    os._exit(ExitCode.FAILED if number == signal.SIGUSR1 else ExitCode.DONE)
