"""`edge-runtime tap`: live bus traffic, decoded for people."""

import secrets
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from cyclopts import Parameter

from edge_runtime.cli.identity import TlsOptions
from edge_runtime.cli.lifecycle import run_service
from edge_runtime.cli.options import DEFAULT_BROKER, AsJson, BrokerUrl, check_broker_url
from edge_runtime.cli.reading import Reading, one_line, read_message

if TYPE_CHECKING:
    from edge_runtime.bus.port import TlsSettings

_TLS: Final = TlsOptions()


def tap(
    *,
    broker: BrokerUrl = DEFAULT_BROKER,
    topic: Annotated[str, Parameter(help="MQTT topic filter.")] = "#",
    count: Annotated[
        int, Parameter(help="End after this many messages; 0 means never.", show_default=True)
    ] = 0,
    as_json: AsJson = False,
    tls: TlsOptions = _TLS,
) -> int:
    """Print every message under a topic filter, one line each, until stopped."""
    check_broker_url("--broker", broker)
    certificates = tls.settings(broker)
    return run_service(lambda: _follow(broker, certificates, topic, count, as_json=as_json))


async def _follow(
    broker: str, tls: "TlsSettings", topic: str, count: int, *, as_json: bool
) -> None:
    """Print until cancelled; the bus itself logs when it is up, down or refused."""
    from edge_runtime.bus import open_bus
    from edge_runtime.bus.port import BusSettings, Message

    settings = BusSettings(
        url=broker,
        client_id=f"tap-{secrets.token_hex(4)}",
        session_expiry_s=0,
        subscriptions=((topic, 0),),
        tls=tls,
    )
    seen = 0
    async with open_bus(settings) as bus:
        async for event in bus.events():
            if isinstance(event, Message):
                reading = read_message(event.topic, event.payload)
                _print(reading, retained=event.retain, as_json=as_json)
                seen += 1
                if seen == count:
                    return


def _print(reading: Reading, *, retained: bool, as_json: bool) -> None:
    at_s = time.time()
    if as_json:
        line = {"at_ms": int(at_s * 1000), "retained": retained, **asdict(reading)}
        print(msgspec.json.encode(line).decode(), flush=True)
        return
    clock = time.strftime("%H:%M:%S", time.localtime(at_s)) + f".{int(at_s * 1000) % 1000:03}"
    problem = f"  ! {reading.problem}" if reading.problem else ""
    mark = " (retained)" if retained else ""
    print(
        f"{clock}  {reading.subject}{mark}  {reading.kind}  {one_line(reading.fields)}{problem}",
        flush=True,
    )
