"""`edge-runtime version`: what runs here."""

import json
import platform
from importlib import metadata
from typing import Annotated, Final

from cyclopts import Parameter

_PARTS: Final = ("msgspec", "aiomqtt", "paho-mqtt", "onnxruntime", "numpy", "litestar", "iotcore")


def version(
    *, as_json: Annotated[bool, Parameter("--json", negative="", help="One JSON object.")] = False
) -> None:
    """Print the versions of this package, of Python and of the parts that are installed."""
    versions = {
        "edge-runtime": metadata.version("edge-runtime"),
        "python": platform.python_version(),
    }
    for part in _PARTS:
        try:
            versions[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue
    if as_json:
        print(json.dumps(versions))
    else:
        for name, number in versions.items():
            print(f"{name} {number}")
