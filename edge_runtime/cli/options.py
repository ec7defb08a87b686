"""Settings that several commands share, each documented once, and the checks they share."""

from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from cyclopts import Parameter

from edge_runtime.contract.errors import ConfigError

DEFAULT_BROKER: Final = "mqtt://127.0.0.1:1883"
DEFAULT_HTTP: Final = "127.0.0.1:8080"
DEFAULT_URL: Final = f"http://{DEFAULT_HTTP}"
DEFAULT_TENANT: Final = "default"
DEFAULT_MODELS: Final = Path(".data/models")
DEFAULT_STATE: Final = Path("vehicle-state")
DEFAULT_POLICY: Final = Path("policy.toml")
_PORT_LAST: Final = 65_535

BrokerUrl = Annotated[
    str, Parameter(help="MQTT broker, mqtt[s]://[user:password@]host:port.", name="--broker")
]
DispatcherUrl = Annotated[str, Parameter(help="HTTP address of the dispatcher.", name="--url")]
Tenant = Annotated[str, Parameter(help="Whose jobs.", name="--tenant")]
Namespace = Annotated[str, Parameter(help="First part of every topic.", name="--namespace")]
Protocol = Annotated[
    Literal[5, 4], Parameter(help="MQTT version: 5, or 4 for MQTT 3.1.1.", name="--protocol")
]
AsJson = Annotated[
    bool, Parameter("--json", negative="", help="JSON lines on stdout, nothing else there.")
]
ModelsFolder = Annotated[
    Path, Parameter(help="Folder of model packages, one folder each.", name="--models")
]


def parse_address(option: str, value: str) -> tuple[str, int]:
    """`HOST:PORT` as (host, port); port 0 means any free one. Raises `ConfigError`."""
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit():
        raise ConfigError(f"{option} must be HOST:PORT, such as {DEFAULT_HTTP}, not {value!r}")
    if int(port) > _PORT_LAST:
        raise ConfigError(f"{option} {value!r}: a port is at most {_PORT_LAST}")
    return host.strip("[]"), int(port)


def check_port(option: str, value: int) -> int:
    """`value` where it is a port, or 0 for any free one; `ConfigError` otherwise."""
    if not 0 <= value <= _PORT_LAST:
        raise ConfigError(f"{option} must be 0 to {_PORT_LAST}, not {value}")
    return value


def check_broker_url(option: str, value: str) -> str:
    """`value` where it is an MQTT URL with a host; `ConfigError` otherwise."""
    parts = urlsplit(value)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or port == -1:
        raise ConfigError(
            f"{option} must be mqtt://host:port, such as {DEFAULT_BROKER}, not {value!r}"
        )
    return value


def check_http_url(option: str, value: str) -> str:
    """`value` where it is an HTTP URL with a host; `ConfigError` otherwise."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(
            f"{option} must be http://host:port, such as {DEFAULT_URL}, not {value!r}"
        )
    return value


def readable_file(option: str, path: Path) -> Path:
    """`path` where it is a file that can be opened; `ConfigError` otherwise."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}") from None


def readable_folder(option: str, path: Path) -> Path:
    """`path` where it is a folder; `ConfigError` otherwise."""
    if not path.is_dir():
        raise ConfigError(f"{option} {path}: no such folder")
    return path
