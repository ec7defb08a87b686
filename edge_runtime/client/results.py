"""Reading result streams: MessagePack values back to back, decoded typed, resumed by cursor.

Invariants
- `follow_results` gives each result once and in order of its cursor, whatever connections break;
  a repeat is skipped. Between two cursors of a stream nothing is missing: of a failed item that
  was run again the cursor is in use no more.
- A value that outgrows `CLIENT_STREAM_VALUE_MAX_BYTES` ends the stream: it is not a dispatcher's.
- An output that is no valid MessagePack fails its item, never the stream.
"""

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any, Final, Self

import aiohttp
import msgpack  # type: ignore[import-untyped]  # no stubs are published
import msgspec

from edge_runtime.client.errors import ContractBroken, DispatcherRefused
from edge_runtime.client.objects import download
from edge_runtime.client.transport import Interrupted, Transport
from edge_runtime.contract import limits
from edge_runtime.contract.http import FeedEntry, Problem
from edge_runtime.contract.messages import (
    JobStatus,
    OutputReference,
    ResultEntry,
    ResultError,
)
from edge_runtime.contract.reasons import ItemError, JobState

_NIL: Final = msgspec.Raw(b"\xc0")
_HEARTBEAT: Final = b"\xc0"
_SERVER_FAULT: Final = 500


class ItemResult(msgspec.Struct, frozen=True):
    """One item's end: `output` as Python values where `ok`, else `error`.

    `item` is its index in the job; `cursor` numbers the job's results from 1. An output that did
    not travel inline is what `ref` leads to: `output` is None until it was downloaded.
    """

    cursor: int
    item: int
    at_ms: int
    output: Any = None
    error: ResultError | None = None
    vehicle: str = ""
    ref: OutputReference | None = None

    @property
    def ok(self) -> bool:
        """Whether the item has an output."""
        return self.error is None


class FeedResult(msgspec.Struct, frozen=True):
    """One result in a tenant's feed; `position` is what to resume from."""

    position: int
    job: str
    result: ItemResult


class _Last(msgspec.Struct):
    """What is neither result nor heartbeat: the last element of a stream."""

    status: JobStatus | None = None
    problem: Problem | None = None


_result: Final = msgspec.msgpack.Decoder(ItemResult)
_raw_result: Final = msgspec.msgpack.Decoder(ResultEntry)
_feed_result: Final = msgspec.msgpack.Decoder(FeedResult)
_raw_feed_result: Final = msgspec.msgpack.Decoder(FeedEntry)
_last: Final = msgspec.msgpack.Decoder(_Last)
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError)


class ValueSplitter:
    """Cuts a byte stream into MessagePack values without building them."""

    def __init__(self) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=limits.CLIENT_STREAM_VALUE_MAX_BYTES)
        self._rest = b""
        self._rest_at = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The values that are complete now; `ContractBroken` for bytes that are none."""
        unpacker = self._unpacker
        try:
            unpacker.feed(data)
        except msgpack.BufferFull:
            raise ContractBroken("a value of the stream is too large") from None
        rest = self._rest + data if self._rest else data
        base = start = self._rest_at
        values: list[bytes] = []
        try:
            while True:
                unpacker.skip()
                end = unpacker.tell()
                values.append(rest[start - base : end - base])
                start = end
        except msgpack.OutOfData:
            self._rest = rest[start - base :]
            self._rest_at = start
            return values
        except ValueError as error:
            raise ContractBroken(f"the stream is not MessagePack: {error}") from None


class StreamReader:
    """The values of a stream as they come, without heartbeats: an async iterator of lists."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._content = response.content
        self._splitter = ValueSplitter()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[bytes]:
        data = await self._content.readany()
        if not data:
            raise StopAsyncIteration
        values = self._splitter.feed(data)
        if _HEARTBEAT in values:
            return [value for value in values if value != _HEARTBEAT]
        return values


def decode_result(value: bytes) -> ItemResult | JobStatus:
    """An element of a job's stream; raises what a `problem` element stands for."""
    try:
        return _result.decode(value)
    except _UNDECODABLE as error:
        try:
            entry = _raw_result.decode(value)
        except _UNDECODABLE:
            return _decode_last(value)
        # The output alone is at fault: a timestamp that no calendar has, say.
        return _without_output(entry, error)


def decode_feed_result(value: bytes) -> FeedResult:
    """An element of a tenant's feed; raises what a `problem` element stands for."""
    try:
        return _feed_result.decode(value)
    except _UNDECODABLE as error:
        try:
            raw = _raw_feed_result.decode(value)
        except _UNDECODABLE:
            raise ContractBroken(f"unexpected {_decode_last(value)}") from None
        result = _without_output(raw.result, error)
        return FeedResult(position=raw.position, job=raw.job, result=result)


def item_result(entry: ResultEntry) -> ItemResult:
    """A result as it is published: its output, too, is decoded; one that cannot be is an error."""
    try:
        output = msgspec.msgpack.decode(entry.output) if bytes(entry.output) else None
    except _UNDECODABLE as error:
        return _without_output(entry, error)
    return ItemResult(
        cursor=entry.cursor,
        item=entry.item,
        at_ms=entry.at_ms,
        output=output,
        error=entry.error,
        vehicle=entry.vehicle,
        ref=entry.ref,
    )


def _without_output(entry: ResultEntry, error: Exception) -> ItemResult:
    message = f"the output cannot be decoded: {type(error).__name__}"
    return _failed(item_result(msgspec.structs.replace(entry, output=_NIL)), message)


def _failed(result: ItemResult, message: str, code: ItemError = ItemError.UNKNOWN) -> ItemResult:
    error = ResultError(code=code, message=message, attempts=1)
    return msgspec.structs.replace(result, output=None, error=error)


async def with_output(transport: Transport, result: ItemResult) -> ItemResult:
    """The result with its output, downloaded where it did not travel inline.

    One that is gone, or cannot be decoded, is the item's error. Raises `DispatcherRefused`,
    `DispatcherUnreachable` and `ContractBroken` otherwise.
    """
    if result.ref is None or result.error is not None:
        return result
    try:
        data = await download(transport, result.ref)
    except DispatcherRefused as refused:
        if refused.problem.status != HTTPStatus.NOT_FOUND:
            raise
        return _failed(result, refused.problem.message, ItemError.OUTPUT_UNAVAILABLE)
    try:
        output = await asyncio.to_thread(msgspec.msgpack.decode, data)
    except _UNDECODABLE as error:
        return _failed(result, f"the output cannot be decoded: {type(error).__name__}")
    return msgspec.structs.replace(result, output=output)


def _decode_last(value: bytes) -> JobStatus:
    try:
        last = _last.decode(value)
    except _UNDECODABLE as error:
        raise ContractBroken(f"not an element of a stream: {error}") from None
    if last.status is not None:
        return last.status
    if last.problem is None:
        raise ContractBroken("a stream's element is neither result, status nor problem")
    if last.problem.status >= _SERVER_FAULT:
        raise Interrupted(last.problem.message, last.problem)
    raise DispatcherRefused(last.problem)


class _JobReader:
    """One job's stream: what follows the last cursor, each cursor once."""

    def __init__(self, cursor: int) -> None:
        self.cursor = cursor
        self.status: JobStatus | None = None

    def take(self, values: list[bytes]) -> list[ItemResult]:
        """The new results among the values."""
        page: list[ItemResult] = []
        for value in values:
            element = decode_result(value)
            if isinstance(element, JobStatus):
                self.status = element
            elif element.cursor > self.cursor:
                self.cursor = element.cursor
                page.append(element)
        return page


async def follow_results(
    transport: Transport, job: str, cursor: int, *, follow: bool = True
) -> AsyncGenerator[list[ItemResult] | JobStatus, None]:
    """Pages of a job's results after `cursor`, then its status.

    With `follow` the status is the terminal one. Survives restarts of the dispatcher.
    """
    path = f"/v1/jobs/{job}/results"
    patience = transport.patience()
    reader = _JobReader(cursor)
    while True:
        query = {"cursor": str(reader.cursor), "follow": "true" if follow else "false"}
        try:
            async with transport.stream(path, query) as response:
                async for values in StreamReader(response):
                    patience.reset()
                    page = reader.take(values)
                    if page:
                        yield page
                    if reader.status is not None and (not follow or _is_over(reader.status)):
                        yield reader.status
                        return
            cut = Interrupted("the stream ended early")
        except Interrupted as interrupted:
            cut = interrupted
        await patience.wait(cut)


def _is_over(status: JobStatus) -> bool:
    """Whether nothing follows: a dispatcher that stops ends its streams with open jobs too."""
    return status.state not in {JobState.ACCEPTED, JobState.RUNNING}


async def follow_feed(
    transport: Transport, position: int | None
) -> AsyncGenerator[list[FeedResult], None]:
    """Pages of a tenant's feed after `position` (None: from now on), for ever.

    A page may be empty; the first one says that the subscription stands: nothing that is
    committed after it is missed, whatever connections break.
    """
    patience = transport.patience()
    while True:
        query = {"follow": "true"}
        if position is not None:
            query["position"] = str(position)
        try:
            async with transport.stream("/v1/results", query) as response:
                if position is None:
                    position = _start_of(response)
                async for values in StreamReader(response):
                    patience.reset()
                    entries = [decode_feed_result(value) for value in values]
                    fresh = [entry for entry in entries if entry.position > position]
                    if fresh:
                        position = fresh[-1].position
                    yield fresh
            cut = Interrupted("the feed ended early")
        except Interrupted as interrupted:
            cut = interrupted
        await patience.wait(cut)


def _start_of(response: aiohttp.ClientResponse) -> int:
    text = response.headers.get("Feed-Position", "")
    if not (text.isascii() and text.isdigit()):
        raise ContractBroken(f"the feed says no position: {text!r}")
    return int(text)
