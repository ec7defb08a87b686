"""structlog, set up in one place: JSON under systemd, pretty on a terminal, always to stderr.

Logs of libraries go the same way from WARNING up. structlog is imported here, first, with rich
out of its sight: rich costs an idle car 4 MB, and its tracebacks print local variables, which
are payloads.
"""

import asyncio
import atexit
import json
import logging
import sys
import time
from collections import deque
from types import ModuleType
from typing import Any, Literal, TextIO

import msgspec

from edge_runtime.contract.errors import ConfigError

LogFormat = Literal["auto", "json", "pretty"]
LogLevel = Literal["debug", "info", "warning", "error"]

_HIDDEN = "rich"


def _structlog_without_rich() -> ModuleType:
    if "structlog" not in sys.modules and _HIDDEN not in sys.modules:
        sys.modules[_HIDDEN] = None  # type: ignore[assignment]  # None is how Python spells "not importable"
        try:
            import structlog
        finally:
            del sys.modules[_HIDDEN]
        return structlog
    import structlog

    return structlog


structlog: Any = _structlog_without_rich()


def configure_logging(
    log_format: LogFormat = "auto", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Send every log line of this process to `stream` (stderr) from `level` up.

    "auto" is pretty on a terminal and JSON, one object a line, anywhere else.
    """
    out = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log level must be debug, info, warning or error, not {level!r}")
    pretty = log_format == "pretty" or (log_format == "auto" and out.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _Stamp(),
        structlog.processors.StackInfoRenderer(),
    ]
    if pretty:
        plain = structlog.dev.plain_traceback
        last: list[Any] = [
            structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)
        ]
    else:
        last = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_OneLogger(_Lines(out)),
        cache_logger_on_first_use=False,
    )
    _route_library_logs(out, shared, last)


class _Lines:
    """Writes log lines; those of one turn of the event loop with one flush.

    Every flush is a system call, for which the interpreter is given away: a busy dispatcher's
    lines, one a unit and one a job, took a twelfth of its time. From WARNING up, and outside an
    event loop, a line is out when the call returns.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: deque[str] = deque()
        self._flushed_by: asyncio.AbstractEventLoop | None = None
        atexit.register(self._flush)

    def info(self, line: str) -> None:
        self._lines.append(line)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
            return
        if loop is not self._flushed_by:
            self._flushed_by = loop
            loop.call_soon(self._flush)

    debug = msg = info

    def error(self, line: str) -> None:
        self._lines.append(line)
        self._flush()

    warning = warn = critical = fatal = exception = failure = err = error

    def _flush(self) -> None:
        self._flushed_by = None
        text = []
        while self._lines:  # a thread's own lines may come meanwhile
            text.append(self._lines.popleft())
        if text:
            self._out.write("\n".join(text) + "\n")
            self._out.flush()


class _OneLogger:
    """A structlog factory: every logger of the process writes through the same lines."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines

    def __call__(self, *_: Any) -> _Lines:
        return self._lines


class _Stamp:
    """Adds `timestamp`, UTC in ISO 8601 to the microsecond; a second is formatted once."""

    def __init__(self) -> None:
        self._second = (-1, "")

    def __call__(self, _logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
        second, rest_ns = divmod(time.time_ns(), 1_000_000_000)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        event["timestamp"] = f"{text}.{rest_ns // 1000:06d}Z"
        return event


_json = msgspec.json.Encoder(enc_hook=repr)


def _to_json(event: Any, **how: Any) -> str:
    """One line of JSON. Most of a log line's cost was here: a busy dispatcher writes thousands."""
    try:
        return _json.encode(event).decode()
    except (TypeError, ValueError, OverflowError, RecursionError):
        # A lone surrogate, an odd key, an endless number: the slow way takes nearly anything.
        return json.dumps(event, **how)


def _route_library_logs(out: TextIO, shared: list[Any], last: list[Any]) -> None:
    handler = logging.StreamHandler(out)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[remove_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
