"""schemathesis makes requests from the dispatcher's own OpenAPI document, right and wrong ones.

A real broker, dispatcher and car. Every answer has a status, a media type and a body that the
document has; nothing is answered with 500, and nothing is logged with a traceback. The same
requests each time; `make openapi` makes more.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from services import FourProcesses, four_processes

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic
from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

HERE = Path(__file__).parent
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "5"))
TIMEOUT_S = 240 + 30 * EXAMPLES
"""On a machine that does other things; alone it is some 20 s for 5 examples."""
READY_S = 60.0
KNOWN = {
    "model": ["noop", "tiny-text", "nobody"],
    "name": ["tiny-text", "file-1", "timestamp.json"],
    "version": ["1", "9"],
}
"""Parameters of paths whose right values nobody would guess."""


def asked(url: str, key: str = "", body: Any = None) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        return json.loads(answer.read())


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FourProcesses]:
    write_synthetic("noop", tmp_path / "models")
    write_tiny_text(tmp_path / "models")
    with four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four:
        yield four


def operators_key(url: str) -> str:
    """Of a dispatcher with a car that could take work."""
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            if asked(f"{url}/v1/fleet")["by_availability"].get("ready"):
                break
        except OSError:
            pass
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    made = asked(f"{url}/v1/accounts/keys", body={"tenant": "ops", "is_operator": True})
    return str(made["key"])


def narrowed(document: dict[str, Any]) -> dict[str, Any]:
    """The document, of which some requests are made that mean something, and none without end."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "follow":
                    parameter["schema"] = {"enum": [False]}
                elif parameter["in"] == "path" and parameter["name"] in KNOWN:
                    parameter["schema"] = {"type": "string", "enum": KNOWN[parameter["name"]]}
    return document


@pytest.mark.timeout(TIMEOUT_S + READY_S)
def test_no_request_has_an_answer_that_the_document_does_not_know(
    house: FourProcesses, tmp_path: Path
) -> None:
    key = operators_key(house.url)
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(narrowed(asked(f"{house.url}/openapi.json"))))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli"),
            f"--config-file={HERE / 'schemathesis.toml'}",
            *("run", str(document), f"--url={house.url}"),
            *("--header", f"Authorization: Bearer {key}"),
            *("--phases", "coverage,fuzzing", f"--max-examples={EXAMPLES}"),
            *("--request-timeout", "30", "--continue-on-failure", "--no-color"),
        ],
        env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(HERE)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    sys.stdout.write(done.stdout[-3_000:])
    assert done.returncode == 0, done.stdout + done.stderr
    log = house.dispatcher.log.read_text()
    assert "Traceback" not in log
    assert "request_failed" not in log
    assert house.dispatcher.is_running
    assert asked(f"{house.url}/v1/health", key)["ready"]
