"""A real HTTP server of packages, as the dispatcher serves them, with faults on request."""

import contextlib
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from edge_runtime.contract.package import Package


class PackageServer:
    """Serves packages; `replace` maps a path to other bytes, `status` to another answer."""

    def __init__(self, *packages: Package) -> None:
        self.requests: Counter[str] = Counter()
        self.replace: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.cut: set[str] = set()
        self.gate: threading.Event | None = None
        self._contents = {}
        for package in packages:
            base = f"/v1/models/{package.digest}"
            self._contents[f"{base}/manifest"] = package.manifest.canonical_bytes()
            for file in package.manifest.files:
                data = (package.folder / file.path).read_bytes()
                self._contents[f"{base}/files/{file.path}"] = data
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                """Keep the test's output for the test."""

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(request.path)
        self.requests[path] += 1
        if self.gate is not None:
            self.gate.wait(30)
        content = self.replace.get(path, self._contents.get(path))
        status = self.status.get(path, 200 if content is not None else 404)
        body = content if status == 200 and content is not None else b""
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if path in self.cut else body)

    @contextlib.contextmanager
    def running(self) -> Iterator["PackageServer"]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
