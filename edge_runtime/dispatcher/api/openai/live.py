"""Chat and completions that somebody waits for: one answer, or its tokens as they come (SSE).

Invariants
- A text that is streamed is what one undisturbed car would have written, however many cars wrote
  it: a car that goes on is given the tokens so far, and with a temperature the seed, which is
  chosen here where the requester names none.
- Nothing is answered before the first token: until then whatever is wrong has its own status.
- A client that goes away takes its request with it.

The form of the events is OpenAI's: `data: {...}` for each piece, `data: [DONE]` at the end, and
`data: {"error": {...}}` where a text breaks off.
"""

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from edge_runtime.contract import limits
from edge_runtime.contract.http import Problem
from edge_runtime.contract.messages import Tokens
from edge_runtime.contract.reasons import FinishReason
from edge_runtime.dispatcher.api.door import tenant_in
from edge_runtime.dispatcher.api.forms import openai_error, refusal_headers
from edge_runtime.dispatcher.api.oip.bodies import read_body
from edge_runtime.dispatcher.api.openai.lines import (
    CHAT,
    COMPLETIONS,
    TASK_OF_URL,
    Bad,
    answer_body,
    read_request,
)
from edge_runtime.dispatcher.api.openai.refusals import openai_problem
from edge_runtime.dispatcher.api.presence import ClientLeft, Receive, while_client_stays
from edge_runtime.dispatcher.core.interactive_parts import Answered, Resume
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import refusal
from edge_runtime.dispatcher.service import DispatcherService

PATHS: Final = (CHAT[1:], COMPLETIONS[1:])
"""Without their first slash, as they are mounted."""
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"
_DONE: Final = b"data: [DONE]\n\n"
_ITEM_TYPE: Final = "application/json"
_NAME_BYTES: Final = 12
_SEED_BYTES: Final = 6
_encode = msgspec.json.Encoder().encode

_log = structlog.get_logger(__name__)


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Manner(msgspec.Struct, frozen=True):
    """How the requester wants to be answered; what is asked is `lines`'."""

    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class Asked(NamedTuple):
    """A request for a text that is understood."""

    url: str
    model: str
    name: str
    made_s: int
    is_streamed: bool
    has_usage: bool
    resume: Resume
    requirement: Requirement
    reference_ms: float


class LiveTexts:
    """`POST` on `PATHS`, over one running dispatcher."""

    def __init__(
        self,
        service: DispatcherService,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._service = service
        self._random_bytes = random_bytes

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Any) -> None:
        """Answer one request."""
        try:
            _require_post(scope)
            tenant = tenant_in(scope)
            asked = self._read(scope, await read_body(scope["headers"], receive))
            async with while_client_stays(receive):
                await self._answer(asked, tenant, send)
        except ClientLeft:
            return
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            await _refuse(send, openai_problem(error, scope["path"]))

    # --- the question ---

    def _read(self, scope: Mapping[str, Any], body: bytes) -> Asked:
        url = scope["path"]
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
            manner = msgspec.json.decode(body, type=_Manner)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Bad("invalid_request", f"the body is no request: {error}"[:200]) from None
        fields.pop("stream", None)
        fields.pop("stream_options", None)
        model = _text(fields.get("model"))
        package = self._service.shelf.find(model)
        tasks = {} if package is None else {model: package.spec.task}
        line = read_request("", url, _encode(fields), tasks)
        if package is None:  # `read_request` has refused it
            raise Bad("model_not_found", f"no model {model[:80]!r}", "model")
        asked = msgspec.json.decode(line.items[0].data or b"{}")
        if asked.get("temperature") and "seed" not in asked:
            asked["seed"] = int.from_bytes(self._random_bytes(_SEED_BYTES))

        def resume(generated: tuple[int, ...]) -> bytes:
            return _encode(asked | {"generated": generated} if generated else asked)

        options = manner.stream_options
        return Asked(
            url=url,
            model=model,
            name=self._random_bytes(_NAME_BYTES).hex(),
            made_s=self._service.clock().utc_ms // 1000,
            is_streamed=bool(manner.stream),
            has_usage=options is not None and options.include_usage,
            resume=resume,
            requirement=Requirement(model=package.digest, task=TASK_OF_URL[url]),
            reference_ms=package.spec.reference_ms,
        )

    # --- the answer ---

    async def _answer(self, asked: Asked, tenant: str, send: Any) -> None:
        pieces = self._service.interactive.stream(
            tenant=tenant,
            requirement=asked.requirement,
            resume=asked.resume,
            media_type=_ITEM_TYPE,
            reference_ms=asked.reference_ms,
            timeout_ms=limits.GENERATION_TIMEOUT_MS,
        )
        async with contextlib.aclosing(pieces):
            if asked.is_streamed:
                await _send_events(asked, pieces, send)
                return
            async for piece in pieces:
                if isinstance(piece, Answered):
                    body = _encode(_whole(asked, piece))
                    await _start(send, HTTPStatus.OK, _JSON, [_length(body)])
                    await send({"type": "http.response.body", "body": body})


async def _send_events(asked: Asked, pieces: AsyncIterator[Tokens | Answered], send: Any) -> None:
    first = await anext(pieces)
    await _start(send, HTTPStatus.OK, _EVENTS, [(b"cache-control", b"no-cache")])
    if asked.url == CHAT:
        await _event(send, _chunk(asked, None, None))
    try:
        finish = await _send_piece(asked, first, None, send)
        async for piece in pieces:
            finish = await _send_piece(asked, piece, finish, send)
    except Exception as error:  # noqa: BLE001 - it has begun: the reader is told in its stream
        await _event(send, openai_error(openai_problem(error, asked.url)))
    await send({"type": "http.response.body", "body": _DONE})


async def _send_piece(
    asked: Asked, piece: Tokens | Answered, finish: str | None, send: Any
) -> str | None:
    """Send what a piece adds; why the text ended, once it is known."""
    match piece:
        case Tokens():
            if piece.text:
                await _event(send, _chunk(asked, piece.text, None))
            return piece.finish.value if piece.finish is not None else finish
        case Answered():
            whole = _whole(asked, piece)
            reason = whole["choices"][0]["finish_reason"] or finish or FinishReason.STOP.value
            await _event(send, _chunk(asked, "", reason))
            if asked.has_usage:
                last = _chunk(asked, "", None)
                await _event(send, last | {"choices": [], "usage": whole["usage"]})
            return str(reason)


def _whole(asked: Asked, answered: Answered) -> dict[str, Any]:
    outputs = [answered.output]
    return answer_body(asked.url, asked.model, outputs, asked.made_s, asked.name, is_base64=False)


def _chunk(asked: Asked, text: str | None, finish: str | None) -> dict[str, Any]:
    """One event; without a `text` the one that says who speaks."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
    is_chat = asked.url == CHAT
    if is_chat:
        opening = {"role": "assistant", "content": ""}
        choice["delta"] = opening if text is None else {"content": text} if text else {}
    else:
        choice["text"] = text or ""
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{asked.name}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": asked.made_s,
        "model": asked.model,
        "choices": [choice],
    }


# --- errors --------------------------------------------------------------------------------------


def _require_post(scope: Mapping[str, Any]) -> None:
    if scope["method"] != "POST":
        message = f"{scope['path']} takes POST"
        raise refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", message)


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw or b'""', type=str)
    except msgspec.DecodeError:
        raise Bad("invalid_request", "model is a name", "model") from None


# --- on the wire ---------------------------------------------------------------------------------


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(body)).encode()


async def _start(
    send: Any, status: HTTPStatus, media_type: bytes, more: list[tuple[bytes, bytes]]
) -> None:
    headers = [(b"content-type", media_type), *more]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})


async def _event(send: Any, event: Mapping[str, Any]) -> None:
    body = b"data: " + _encode(event) + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _refuse(send: Any, problem: Problem) -> None:
    body = _encode(openai_error(problem))
    said = refusal_headers(problem).items()
    more = [_length(body), *((name.lower().encode(), value.encode()) for name, value in said)]
    if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
        more.append((b"allow", b"POST"))
    if problem.retry_after_s:
        # Its clients read this one first.
        more.append((b"retry-after-ms", str(round(problem.retry_after_s * 1000)).encode()))
    await _start(send, HTTPStatus(problem.status), _JSON, more)
    await send({"type": "http.response.body", "body": body})
