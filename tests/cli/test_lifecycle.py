"""Signals end services cleanly; logs are JSON or pretty, and always go to stderr."""

import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from edge_runtime.cli.exit_codes import ExitCode
from edge_runtime.cli.logging import configure_logging, structlog
from edge_runtime.contract.errors import ConfigError

SERVICE = """
import asyncio, sys
from edge_runtime.cli.lifecycle import run_service, run_command, stopped
async def main():
    try:
        print("up", flush=True)
        await stopped()
    finally:
        print("closed", flush=True)
sys.exit({run}(main))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("run", "code"), [("run_service", ExitCode.DONE), ("run_command", ExitCode.INTERRUPTED)]
)
def test_a_signal_closes_everything(number: signal.Signals, run: str, code: ExitCode) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVICE.format(run=run)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.stdout.read() == "closed\n"
        assert process.wait(10) == code


def test_a_vehicle_command_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['edge-runtime', 'vehicle', '--config', 'none.toml']\n"
        "from edge_runtime.cli.app import build_app\n"
        "app = build_app(); app['vehicle'].default_command\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"rich", "litestar", "numpy", "onnxruntime", "cv2", "aiohttp", "uvicorn"}


OPEN_FILES = """
import resource
from edge_runtime.cli.lifecycle import allow_open_files
for most in (200, 300, 10**9):
    allow_open_files(most)
    print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_service_may_open_more_files_than_its_shell() -> None:
    shell = ["sh", "-c", 'ulimit -Sn 256 && ulimit -Hn 400 && exec "$@"', "sh"]
    done = subprocess.run(
        [*shell, sys.executable, "-c", OPEN_FILES], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["256 400", "300 400", "400 400"]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    settings = structlog.get_config()
    yield io.StringIO()
    structlog.configure(**settings)
    root.handlers[:], root.level = before


def test_logs_are_one_json_object_a_line_where_nobody_watches(stream: io.StringIO) -> None:
    configure_logging("auto", "info", stream)
    log = structlog.get_logger("test")
    log.debug("hidden")
    log.info("unit_done", unit=7)
    logging.getLogger("some.library").warning("careful: %s", "x")
    try:
        int("broken")
    except ValueError:
        log.exception("failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["unit_done", "careful: x", "failed"]
    assert (lines[0]["unit"], lines[0]["level"]) == (7, "info")
    stamps = [datetime.fromisoformat(line["timestamp"]) for line in lines]
    assert stamps == sorted(stamps)
    assert abs(stamps[-1] - datetime.now(UTC)) < timedelta(seconds=30)
    assert lines[1]["logger"] == "some.library"
    assert "ValueError: invalid literal" in lines[2]["exception"]


def test_logs_are_for_people_where_asked(stream: io.StringIO) -> None:
    configure_logging("pretty", "debug", stream)
    structlog.get_logger("test").debug("unit_done", unit=7)
    assert "unit_done" in stream.getvalue()
    assert "unit=7" in stream.getvalue()


def test_an_unknown_level_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="log level"):
        configure_logging("json", "loud")  # type: ignore[arg-type] # a wrong value on purpose
