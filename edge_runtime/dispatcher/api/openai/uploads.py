"""An upload (`multipart/form-data`) as it comes: the file goes to disk, its fields are small.

Invariants
- What is held of an upload is one piece of the network and one write; a field or a form beyond
  its bound ends it with 413, silence or a trickle with 408, a caller that leaves with nothing kept.
"""

from http import HTTPStatus
from typing import Any, Final

from litestar.connection import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from edge_runtime.contract import limits
from edge_runtime.dispatcher.api.openai.files import Writing
from edge_runtime.dispatcher.api.pace import Pace
from edge_runtime.dispatcher.api.problems import named_limit
from edge_runtime.dispatcher.front import refusal

_FORM: Final = "multipart/form-data"


class Upload:
    """Reads one upload into `writing`; afterwards `fields` and `filename` are known."""

    def __init__(self, request: Request[Any, Any, Any], writing: Writing) -> None:
        self._request = request
        self._writing = writing
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._segment: MultipartSegment | None = None
        self._field = bytearray()
        self._form_bytes = 0

    async def read(self) -> None:
        """Read all of it. Raises `Refusal` 400, 408, 413 or 415."""
        kind, options = parse_options_header(self._request.headers.get("content-type", ""))
        boundary = options.get("boundary", "")
        if kind != _FORM or not boundary:
            raise refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                f"send {_FORM} with the parts purpose and file",
                field="Content-Type",
            )
        try:
            with PushMultipartParser(boundary, max_segment_count=64, strict=True) as parser:
                pace = Pace(self._request.receive)
                more = True
                while more:
                    piece, more = await pace.piece()
                    if piece:
                        for event in parser.parse(piece):
                            await self._event(event)
        except MultipartError as error:
            raise refusal(
                HTTPStatus.BAD_REQUEST, "malformed", f"not {_FORM}: {error}"[:200]
            ) from None
        if self.filename is None:
            raise refusal(
                HTTPStatus.BAD_REQUEST, "missing_field", "the part file is missing", field="file"
            )

    async def _event(self, event: MultipartSegment | bytearray | None) -> None:
        match event:
            case MultipartSegment():
                self._begin(event)
            case None:
                self._end()
            case _:
                await self._data(event)

    def _begin(self, segment: MultipartSegment) -> None:
        self._segment = segment
        self._field.clear()
        if segment.name == "file":
            if self.filename is not None:
                raise refusal(HTTPStatus.BAD_REQUEST, "invalid_field", "one file", field="file")
            self.filename = (segment.filename or "file")[: limits.FILE_NAME_MAX_CHARS]

    async def _data(self, data: bytearray | bytes) -> None:
        assert self._segment is not None, "data outside a part"  # noqa: S101 - the parser's order
        if self._segment.name == "file":
            if self._writing.size + len(data) > limits.FILE_MAX_BYTES:
                raise refusal(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    "too_large",
                    f"the file is larger than {limits.FILE_MAX_BYTES} bytes",
                    field="file",
                    limit=named_limit("FILE_MAX_BYTES", limits.FILE_MAX_BYTES),
                )
            await self._writing.write(data)
            return
        self._form_bytes += len(data)
        if self._form_bytes > limits.FILE_FORM_MAX_BYTES:
            raise refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                "the form's fields are too large",
                limit=named_limit("FILE_FORM_MAX_BYTES", limits.FILE_FORM_MAX_BYTES),
            )
        self._field += data

    def _end(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None and segment.name != "file":
            self.fields[segment.name] = self._field.decode("utf-8", "replace")
