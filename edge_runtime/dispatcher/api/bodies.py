"""Request bodies: read within bounds, decoded typed, checked against the limits.

Invariants
- No body is held beyond its limit: `Content-Length` is checked first, the bytes as they come.
- All bodies being read share one budget; one more is refused with 503, never queued.
- Memory stays in proportion to what is accepted: a list of ten million items is refused before
  its items are built. MessagePack says its length first; of a large JSON body the objects are
  counted. A small body cannot hold more than it is.
- A large body is decoded outside the event loop.
- A body that comes too slowly ends with 408, and gives its share of the budget back.

Deliberately absent: whether the model exists and what it takes; the dispatcher knows that.
"""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec
from litestar.connection import Request
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput, JobRequest, JobsRequest, Problem
from edge_runtime.dispatcher.api.pace import Pace
from edge_runtime.dispatcher.api.problems import (
    from_validation,
    malformed,
    named_limit,
    too_large,
    unprocessable,
)
from edge_runtime.dispatcher.api.wire import names_msgpack
from edge_runtime.dispatcher.front import Refusal, refusal

T = TypeVar("T")

_LIST_LIMITS: Final = {"items": "JOB_MAX_ITEMS", "jobs": "JOBS_PER_REQUEST_MAX"}
_SYNTAX_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_JSON_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_UTF8_BYTES_PER_CHAR: Final = 4
_OTHERS: Final = 2
"""Of the three ways to give an item, those that are not used."""


class BodyBudget:
    """The bytes of request bodies that may be in memory at once."""

    def __init__(
        self,
        bytes_max: int = limits.HTTP_BODIES_MAX_BYTES,
        limit_name: str = "HTTP_BODIES_MAX_BYTES",
    ) -> None:
        self._limit = named_limit(limit_name, bytes_max)
        self._bytes_max = self._free_bytes = bytes_max

    def reserve(self, count: int) -> None:
        """Take `count` bytes; `Refusal` 503 where they are not there."""
        if count > self._free_bytes:
            raise refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "busy",
                "too many large requests at once; try again",
                limit=self._limit,
            )
        self._free_bytes -= count

    @property
    def is_unused(self) -> bool:
        """Whether nobody holds anything of it."""
        return self._free_bytes == self._bytes_max

    def release(self, count: int) -> None:
        """Give them back."""
        self._free_bytes += count


class Body:
    """One request's body while it is in memory; holds its share of the budget until left."""

    def __init__(
        self, request: Request[Any, Any, Any], budget: BodyBudget, limit_name: str, limit: int
    ) -> None:
        self._request = request
        self._budget = budget
        self._limit_name = limit_name
        self._limit = limit
        self._reserved = 0
        self.data = b""
        self.is_msgpack = False

    async def __aenter__(self) -> Self:
        try:
            await self._read()
        except BaseException:
            self._budget.release(self._reserved)
            raise
        self.is_msgpack = self._is_msgpack()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._budget.release(self._reserved)

    def _is_msgpack(self) -> bool:
        content_type = self._request.headers.get("content-type", "application/json")
        if names_msgpack(content_type):
            return True
        if not self.data or "json" in content_type:
            return False
        raise refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "send application/json or application/x-msgpack",
            field="Content-Type",
        )

    def _take(self, total: int) -> None:
        if total > self._limit:
            raise refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                f"the body is larger than {self._limit} bytes",
                field="body",
                limit=named_limit(self._limit_name, self._limit),
            )
        if total > self._reserved:
            self._budget.reserve(total - self._reserved)
            self._reserved = total

    async def _read(self) -> None:
        announced = self._request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit():
            self._take(int(announced))
        pieces: list[bytes] = []
        pace = Pace(self._request.receive)
        more = True
        while more:
            piece, more = await pace.piece()
            self._take(pace.body_bytes)
            pieces.append(piece)
        self.data = pieces[0] if len(pieces) == 1 else b"".join(pieces)


class TypedBody:
    """Decodes one type of small body from either form; an absent body is `{}`."""

    def __init__(self, body_type: Any) -> None:
        self._json = msgspec.json.Decoder(body_type)
        self._msgpack = msgspec.msgpack.Decoder(body_type)

    def decode(self, body: Body) -> Any:
        """The struct, or `Refusal` 400, 413 or 422."""
        if body.is_msgpack:
            return _decode(self._msgpack.decode, body.data)
        return _decode(self._json.decode, body.data or b"{}")


def _decode(decode: Callable[[bytes], T], data: bytes | msgspec.Raw) -> T:
    try:
        return decode(data)
    except msgspec.ValidationError as error:
        raise Refusal(from_validation(error, _LIST_LIMITS)) from None
    except _SYNTAX_ERRORS as error:
        raise Refusal(malformed(error)) from None


# --- submissions --------------------------------------------------------------------------------

_Jobs = Annotated[list[msgspec.Raw], Meta(max_length=limits.JOBS_PER_REQUEST_MAX)]


class _RawJobs(msgspec.Struct):
    """A batch whose jobs are still bytes, so that a bad one spoils only itself."""

    jobs: _Jobs


_json_job: Final = msgspec.json.Decoder(JobRequest)
_json_jobs: Final = msgspec.json.Decoder(JobsRequest)
_json_raw_jobs: Final = msgspec.json.Decoder(_RawJobs)
_msgpack_job: Final = msgspec.msgpack.Decoder(JobRequest)
_msgpack_jobs: Final = msgspec.msgpack.Decoder(JobsRequest)
_msgpack_raw_jobs: Final = msgspec.msgpack.Decoder(_RawJobs)
_encode_parameters: Final = msgspec.msgpack.Encoder().encode


async def read_job(body: Body) -> JobRequest:
    """The one job of a body; `Refusal` 400, 413 or 422."""
    if len(body.data) <= limits.HTTP_LARGE_BODY_BYTES:
        return _one_job(body)
    return await asyncio.to_thread(_one_job, body)


async def read_jobs(body: Body) -> list[JobRequest | Problem]:
    """The jobs of a batch, each a job or what is wrong with it; `Refusal` for the whole."""
    if len(body.data) <= limits.HTTP_LARGE_BODY_BYTES:
        return _small_batch(body)
    return await asyncio.to_thread(_large_batch, body)


def _one_job(body: Body) -> JobRequest:
    if not body.is_msgpack:
        _refuse_too_many_objects(body.data)
    job = _decode(_msgpack_job.decode if body.is_msgpack else _json_job.decode, body.data)
    problem = problem_in(job)
    if problem is not None:
        raise Refusal(problem)
    return job


def _small_batch(body: Body) -> list[JobRequest | Problem]:
    decode = _msgpack_jobs.decode if body.is_msgpack else _json_jobs.decode
    try:
        jobs = decode(body.data).jobs
    except msgspec.ValidationError:
        return _each_by_itself(body)
    except _SYNTAX_ERRORS as error:
        raise Refusal(malformed(error)) from None
    if len(jobs) > limits.JOBS_PER_REQUEST_MAX:
        raise Refusal(_too_many_jobs())
    return [problem_in(job) or job for job in jobs]


def _large_batch(body: Body) -> list[JobRequest | Problem]:
    if body.is_msgpack:
        return _each_by_itself(body)
    # JSON says no length first, and a list of raw values would take 72 bytes for each comma:
    # a large JSON batch with one bad job is refused whole.
    _refuse_too_many_objects(body.data)
    jobs = _decode(_json_jobs.decode, body.data).jobs
    if len(jobs) > limits.JOBS_PER_REQUEST_MAX:
        raise Refusal(_too_many_jobs())
    return [problem_in(job) or job for job in jobs]


def _each_by_itself(body: Body) -> list[JobRequest | Problem]:
    outer = _msgpack_raw_jobs.decode if body.is_msgpack else _json_raw_jobs.decode
    decode = _msgpack_job.decode if body.is_msgpack else _json_job.decode
    raw_jobs = _decode(outer, body.data).jobs
    if not raw_jobs:
        raise Refusal(unprocessable("jobs", "the list of jobs is empty", "empty"))
    answers: list[JobRequest | Problem] = []
    items_total = 0
    for raw in raw_jobs:
        if items_total > limits.JOB_MAX_ITEMS:
            answers.append(_too_many_items())
            continue
        try:
            job = _decode(decode, raw)
        except Refusal as refused:
            answers.append(refused.problem)
            continue
        items_total += len(job.items)
        answers.append(problem_in(job) or job)
    return answers


def _too_many_jobs() -> Problem:
    most = limits.JOBS_PER_REQUEST_MAX
    return too_large("jobs", f"jobs holds more than {most} jobs", "JOBS_PER_REQUEST_MAX", most)


def _too_many_items() -> Problem:
    most = limits.JOB_MAX_ITEMS
    return too_large("items", f"items holds more than {most} elements", "JOB_MAX_ITEMS", most)


def _refuse_too_many_objects(data: bytes) -> None:
    """`Refusal` 413 where a JSON body holds more objects than the largest job has items.

    Braces bound the objects from above; only where they are too many (texts may hold some) are
    the strings taken out. Items that are no objects fail at the first one.
    """
    most = limits.JOB_MAX_ITEMS + limits.JOBS_PER_REQUEST_MAX
    braces = data.count(b"{")
    if braces <= most:
        return
    for string in _JSON_STRING.finditer(data):
        braces -= data.count(b"{", string.start(), string.end())
        if braces <= most:
            return
    raise Refusal(_too_many_items())


def problem_in(job: JobRequest) -> Problem | None:
    """What the types of a job do not say: None, or the first fault found."""
    if not job.model:
        return unprocessable("model", "model names no package")
    if not job.items:
        return unprocessable("items", "the list of items is empty", "empty")
    for index, item in enumerate(job.items):
        if (item.data is None) + (item.text is None) + (item.ref is None) != _OTHERS:
            message = "give exactly one of data, text and ref"
            return unprocessable(f"items[{index}]", message, "data_or_text")
        if _item_bytes(item) > limits.ITEM_MAX_BYTES:
            message = f"items[{index}] is larger than {limits.ITEM_MAX_BYTES} bytes"
            return too_large(f"items[{index}]", message, "ITEM_MAX_BYTES", limits.ITEM_MAX_BYTES)
    return _problem_in_parameters(job.parameters) if job.parameters else None


def _item_bytes(item: ItemInput) -> int:
    """The size of an item; of a text that is surely small enough, only a bound."""
    if item.data is not None:
        return len(item.data)
    # Of a reference nothing is here.
    text = item.text or ""
    bound = len(text) * _UTF8_BYTES_PER_CHAR
    return bound if bound <= limits.ITEM_MAX_BYTES else len(text.encode())


def _problem_in_parameters(parameters: dict[str, Any]) -> Problem | None:
    most = limits.PARAMETERS_MAX_BYTES
    try:
        size = len(_encode_parameters(parameters))
    except OverflowError:
        return unprocessable("parameters", "an integer does not fit in 64 bits")
    except (TypeError, RecursionError) as error:
        return unprocessable("parameters", f"not MessagePack: {type(error).__name__}")
    if size <= most:
        return None
    message = f"parameters are {size} bytes encoded, of at most {most}"
    return too_large("parameters", message, "PARAMETERS_MAX_BYTES", most)
