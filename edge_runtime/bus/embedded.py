"""The broker that comes with the demo: rumqttd from the `iotcore` wheel, in a child process.

Invariants
- The broker is a process of its own, so it can be killed and started again on the same ports as
  a broker on another machine would be; it dies with the process that started it.
- rumqttd speaks MQTT 5 and MQTT 3.1.1 on different ports: `url` is the first, `url_311` the
  second. Clients of both see each other's messages.
- Nagle's algorithm is off on its side too, which rumqttd has no setting for: on Linux a
  connection inherits that from the listening socket, so it is switched off there. Without it
  every round trip takes 44 ms.
- It forgets everything when it ends: retained messages, sessions, queues (design rule 2 does
  not need them).
- rumqttd 0.20 can go on accepting connections that it never serves: its router panics when a
  client that lags leaves, and a listener does when a client vanishes in its handshake and returns.
  So this process greets itself on every port, and when that fails twice running it starts itself
  again in its place, as empty as after a crash.

Deliberately absent: passwords, ACLs, TLS, persistence, message expiry in queues. This broker is
for one machine and for tests; `broker/mosquitto.conf` is for the rest.

`python -m edge_runtime.bus.embedded --port N` runs it in the foreground.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import structlog

from edge_runtime.bus.port import MQTT_5
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.limits import BUS_INFLIGHT_MAX_MESSAGES, BUS_PACKET_MAX_BYTES
from edge_runtime.lifeline import die_with

log = structlog.get_logger(__name__)

_START_TIMEOUT_S: Final = 20.0
_STOP_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.02
_GREET_EVERY_S: Final = 1.0
_GREET_AGAIN_S: Final = 0.25
_GREET_TIMEOUT_S: Final = 3.0
# rumqttd remembers every client id; these come round again.
_GREET_CLIENT_IDS: Final = 64
_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"
_READY: Final = "ready"
_NOT_INSTALLED: Final = "the embedded broker needs the demo extra: pip install 'edge-runtime[demo]'"

# rumqttd keeps a log per filter and sends from it; a subscriber that lags by more than segment
# size times count loses the oldest messages. 64 MiB hold a burst of 256 messages of 256 KiB.
_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_SEGMENTS: Final = 16
_OUTGOING_PACKETS: Final = 2_000
_CONNECTIONS: Final = 10_000

_CONFIGURATION: Final = """\
id = 0
[router]
id = 0
max_connections = {connections}
max_outgoing_packet_count = {outgoing_packets}
max_segment_size = {segment_bytes}
max_segment_count = {segments}
"""
_LISTENER: Final = """\
[{version}.1]
name = "{version}"
listen = "{host}:{port}"
next_connection_delay_ms = 1
[{version}.1.connections]
connection_timeout_ms = 10000
max_payload_size = {packet_bytes}
max_inflight_count = {inflight}
dynamic_filters = true
"""


class EmbeddedBroker:
    """A broker in a child process; `port` 0 picks free ports and keeps them over restarts.

    Use as an async context manager, or `start` and `stop`. Raises LocalError from `start` when
    the broker does not come up.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, port_311: int = 0) -> None:
        self._host = host
        self._port = port
        self._port_311 = port_311
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where MQTT 5 clients connect."""
        return f"mqtt://{self._host}:{self._port}"

    @property
    def url_311(self) -> str:
        """Where MQTT 3.1.1 clients connect."""
        return f"mqtt://{self._host}:{self._port_311}"

    @property
    def pid(self) -> int:
        """The broker's process id. Raises LocalError when it is not running."""
        if self._process is None:
            raise LocalError("the embedded broker is not running")
        return self._process.pid

    async def start(self) -> None:
        """Start the process and wait until both ports accept connections. Raises LocalError."""
        if self._process is not None and self._process.returncode is None:
            raise LocalError("the embedded broker is running already")
        if importlib.util.find_spec("iotcore") is None:
            raise LocalError(_NOT_INSTALLED)
        self._port = self._port or _free_port(self._host)
        self._port_311 = self._port_311 or _free_port(self._host)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "edge_runtime.bus.embedded",
            f"--host={self._host}",
            f"--port={self._port}",
            f"--port-311={self._port_311}",
            f"--parent={os.getpid()}",
            stdin=DEVNULL,
            stdout=PIPE,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._ready(self._process)
        except TimeoutError:
            await self.stop()
            raise LocalError(
                f"the embedded broker did not start within {_START_TIMEOUT_S:g} s"
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the process, by force if it must be; does nothing when it is not running."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
        await process.wait()

    async def kill(self) -> None:
        """End the process as a crash would (SIGKILL) and wait until it is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        await self.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def _ready(self, process: Process) -> None:
        """Wait for the child's one line, which it writes when it listens."""
        output = process.stdout
        if output is None or await output.readline() != f"{_READY}\n".encode():
            code = await process.wait()
            ports = f"{self._port} or {self._port_311}"
            raise LocalError(f"the embedded broker ended with code {code}; is port {ports} taken?")


def serve(host: str, port: int, port_311: int) -> None:
    """Run the broker in this process until it is killed; port 0 leaves that protocol out.

    When rumqttd breaks down, the program is executed again with the same arguments.

    Raises LocalError when `iotcore` is not installed.
    """
    try:
        from iotcore.iotcore import IotCoreBroker  # noqa: PLC0415 - only here is it needed
    except ImportError as error:
        raise LocalError(_NOT_INSTALLED) from error
    # rumqttd logs every packet as an error span; formatting them would be most of its work.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rumqttd.toml"
        path.write_text(_configuration(host, port, port_311))
        broker = IotCoreBroker(config_path=str(path))
    broker.start()
    _switch_nagle_off({listen_port for listen_port in (port, port_311) if listen_port})
    sys.stdout.write(f"{_READY}\n")
    sys.stdout.flush()
    _wait_until_it_fails(host, {5: port, 4: port_311})
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very program once more


def _wait_until_it_fails(host: str, ports: dict[int, int]) -> None:
    """Greet rumqttd, which works in its own threads, until one port fails twice running.

    `ports` by protocol; 0 for one that is left out.
    """
    for number in itertools.count():
        time.sleep(_GREET_EVERY_S)
        client_id = f"greeting-{number % _GREET_CLIENT_IDS}"
        for protocol, port in ports.items():
            if port and not _is_greeted(host, port, protocol, client_id):
                time.sleep(_GREET_AGAIN_S)
                # Another id: the first one's handshake may be what rumqttd fails over.
                if not _is_greeted(host, port, protocol, f"{client_id}-again"):
                    log.error("embedded_broker_restarts", reason="rumqttd is stuck", port=port)
                    return


def _is_greeted(host: str, port: int, protocol: int, client_id: str) -> bool:
    """Whether a CONNECT is answered with a CONNACK (MQTT 3.1.1 and 5, section 3.1 and 3.2)."""
    no_properties = b"\x00" if protocol == MQTT_5 else b""
    keepalive_s = struct.pack(">H", 60)
    name = client_id.encode()
    body = b"\x00\x04MQTT" + bytes([protocol, 0x02]) + keepalive_s + no_properties
    body += struct.pack(">H", len(name)) + name
    try:
        with socket.create_connection((host, port), timeout=_GREET_TIMEOUT_S) as client:
            client.sendall(bytes([0x10, len(body)]) + body)
            answer = client.recv(1)
            client.sendall(_DISCONNECT)
    except OSError:
        return False
    return answer == bytes([_CONNACK])


def _switch_nagle_off(ports: set[int]) -> None:
    """Set TCP_NODELAY on the listening sockets of this process. Raises LocalError."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    waiting_for = set(ports)
    while waiting_for:
        if time.monotonic() > deadline_s:
            raise LocalError(f"the broker does not listen on {sorted(waiting_for)}")
        time.sleep(_POLL_S)
        for listener in _listening_sockets():
            with listener:
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                waiting_for.discard(listener.getsockname()[1])


def _listening_sockets() -> Iterator[socket.socket]:
    """Duplicates of this process's listening TCP sockets."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            candidate = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:
            # Not a socket, or closed meanwhile.
            continue
        is_tcp = candidate.family in (socket.AF_INET, socket.AF_INET6)
        if is_tcp and candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            yield candidate
        else:
            candidate.close()


def _configuration(host: str, port: int, port_311: int) -> str:
    parts = [
        _CONFIGURATION.format(
            connections=_CONNECTIONS,
            outgoing_packets=_OUTGOING_PACKETS,
            segment_bytes=_SEGMENT_BYTES,
            segments=_SEGMENTS,
        )
    ]
    parts += [
        _LISTENER.format(
            version=version,
            host=host,
            port=listen_port,
            packet_bytes=BUS_PACKET_MAX_BYTES,
            inflight=BUS_INFLIGHT_MAX_MESSAGES,
        )
        for version, listen_port in (("v5", port), ("v4", port_311))
        if listen_port
    ]
    return "".join(parts)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _main() -> None:
    parser = argparse.ArgumentParser(prog="edge_runtime.bus.embedded", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883, help="MQTT 5")
    parser.add_argument("--port-311", type=int, default=0, help="MQTT 3.1.1; 0: none")
    parser.add_argument("--parent", type=int, default=0, help="die with this parent process")
    arguments = parser.parse_args()
    if arguments.parent:
        die_with(arguments.parent)
    # Ctrl-C ends the broker at once; rumqttd does not look at Python's signals.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(arguments.host, arguments.port, arguments.port_311)


if __name__ == "__main__":
    _main()
