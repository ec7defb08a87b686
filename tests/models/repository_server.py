"""A plain HTTP server of a folder, with ranges, and with the faults of a server that attacks."""

import contextlib
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TRICKLE_S = 0.05


@dataclass
class Evil:
    """What the server does to one path instead of serving it."""

    body: bytes | None = None
    endless: bool = False
    trickle: bool = False
    slow_head: bool = False
    length: int | None = None
    cut_after: int | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class FolderServer:
    """Serves `folder`, which may be changed meanwhile; `evil` maps a path to its fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.evil: dict[str, Evil] = {}
        self.knows_ranges = True
        self.requests: list[str] = []
        self.ranges: list[tuple[str, str]] = []
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(OSError):  # the car has gone
                    server.answer(self)

            def log_message(self, *args: object) -> None:
                """Keep the test's output for the test."""

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(request.path)
        with self._news:
            self.requests.append(path)
            self._news.notify_all()
        asked = request.headers.get("Range")
        if asked:
            self.ranges.append((path, asked))
        evil = self.evil.get(path, Evil())
        body = evil.body if evil.body is not None else self._content(path)
        if body is None or evil.status >= 300:
            request.send_response(evil.status if evil.status >= 300 else 404)
            for name, value in evil.headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.knows_ranges else 0
        if evil.slow_head:
            self._trickle(request, b"HTTP/1.0 200 OK\r\nX-Padding: " + b"x" * 10_000)
            return
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        for name, value in evil.headers.items():
            request.send_header(name, value)
        length = len(body) - first if evil.length is None else evil.length
        if not evil.endless:
            request.send_header("Content-Length", str(length))
        request.end_headers()
        self._send(request, body[first:], evil)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, evil: Evil) -> None:
        if evil.trickle:
            self._trickle(request, body)
        elif evil.endless:
            while not self._stopping.is_set():
                request.wfile.write(b" " * 65_536)
        else:
            request.wfile.write(body[: evil.cut_after])

    def _trickle(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Byte by byte: slow retrieval is what is tested, so time has to pass."""
        for byte in body:
            if self._stopping.is_set():
                return
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(TRICKLE_S)

    def await_request(self, path: str, timeout_s: float = 30.0) -> None:
        with self._news:
            assert self._news.wait_for(lambda: path in self.requests, timeout_s), path

    def _content(self, path: str) -> bytes | None:
        file = self.folder / path.lstrip("/")
        return file.read_bytes() if file.is_file() else None

    @contextlib.contextmanager
    def running(self) -> Iterator["FolderServer"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
