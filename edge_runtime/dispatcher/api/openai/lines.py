"""A request in OpenAI's words as a model's items, and a model's outputs as its answer.

One line of a batch file is the same request that a client could have posted by itself: `url` says
which route, `body` is its body. Everything that is wrong with a line is wrong with that line alone.

Deliberately absent: token ids as inputs (whose tokenizer?), several choices (`n`), log
probabilities. Embeddings count no tokens: the task reports none, and zeros say so.
"""

import array
import base64
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.http import ItemInput

EMBEDDINGS: Final = "/v1/embeddings"
CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
TASK_OF_URL: Final = {
    EMBEDDINGS: "feature-extraction",
    CHAT: "text-generation",
    COMPLETIONS: "text-generation",
}
_FLOAT_BYTES: Final = 4
_JSON: Final = "application/json"
_TEXT: Final = "text/plain"

Text = Annotated[str, Meta(max_length=limits.INPUT_TEXT_MAX_BYTES)]


class Bad(Exception):  # noqa: N818 - named for what the request is
    """What is wrong with one request: `code` for programs, `param` the field."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class EmbeddingsBody(msgspec.Struct, frozen=True):
    """The body of an embeddings request; unknown fields are passed over, as OpenAI does."""

    model: str
    input: Text | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class _ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: Text | None = None


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: Text | list[_ContentPart]


class _Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """What a generation may be asked; the car knows the bounds.

    `top_k` and `ignore_eos` are not OpenAI's, but other servers' of its API have them too.
    """

    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    stream: bool | None = None

    def parameters(self) -> dict[str, Any]:
        """As the task takes them. Raises `Bad`."""
        if self.n not in (None, 1):
            raise Bad("unsupported_value", "n is 1: one answer a request", "n")
        if self.stream:
            raise Bad("unsupported_value", "a batch does not stream", "stream")
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        named = {
            "max_tokens": most,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": self.stop,
            "top_k": self.top_k,
            "ignore_eos": self.ignore_eos,
        }
        return {name: value for name, value in named.items() if value is not None}


class ChatBody(_Sampling, frozen=True, kw_only=True):
    """The body of a chat; fields that are not known are passed over."""

    model: str
    messages: Annotated[list[_Message], Meta(min_length=1)]


class CompletionBody(_Sampling, frozen=True, kw_only=True):
    """The body of a completion; fields that are not known are passed over."""

    model: str
    prompt: Text


class _LineBody(msgspec.Struct, frozen=True):
    custom_id: Annotated[str, Meta(min_length=1, max_length=limits.BATCH_CUSTOM_ID_MAX_CHARS)]
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _OnlyId(msgspec.Struct, frozen=True):
    custom_id: str | None = None


class Line(NamedTuple):
    """A good line: its items, and how their outputs are to be written."""

    custom_id: str
    url: str
    model: str
    items: tuple[ItemInput, ...]
    is_base64: bool = False


class BadLine(NamedTuple):
    """A line that is no request; `custom_id` where it could be read."""

    number: int
    custom_id: str | None
    code: str
    message: str
    param: str | None = None


_encode = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(_LineBody).decode
_decode_id = msgspec.json.Decoder(_OnlyId).decode
_decode_embeddings = msgspec.json.Decoder(EmbeddingsBody).decode
_decode_chat = msgspec.json.Decoder(ChatBody).decode
_decode_completion = msgspec.json.Decoder(CompletionBody).decode
_decode_output = msgspec.msgpack.Decoder().decode
_SYNTAX: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_line(raw: bytes, number: int, endpoint: str, tasks: Mapping[str, str]) -> Line | BadLine:
    """One line of a batch file; `tasks` has the task of each model that may be named."""
    try:
        return _read_line(raw, endpoint, tasks)
    except Bad as bad:
        custom_id = _id_of(raw) if len(raw) <= limits.BATCH_LINE_MAX_BYTES else None
        return BadLine(number, custom_id, bad.code, bad.message, bad.param)


def _read_line(raw: bytes, endpoint: str, tasks: Mapping[str, str]) -> Line:
    if len(raw) > limits.BATCH_LINE_MAX_BYTES:
        message = f"the line has {len(raw)} bytes, of at most {limits.BATCH_LINE_MAX_BYTES}"
        raise Bad("line_too_large", message)
    try:
        line = _decode_line(raw)
    except _SYNTAX as error:
        raise _bad_body(error, "invalid_json_line") from None
    if line.method != "POST":
        raise Bad("invalid_method", f"method is POST, not {line.method[:20]!r}", "method")
    if line.url != endpoint:
        message = f"url {line.url[:80]!r} is not the batch's endpoint, {endpoint}"
        raise Bad("invalid_url", message, "url")
    return read_request(line.custom_id, line.url, bytes(line.body), tasks)


def _id_of(raw: bytes) -> str | None:
    """The custom_id of a line that has other faults."""
    try:
        custom_id = _decode_id(raw).custom_id
    except _SYNTAX:
        return None
    return None if custom_id is None else custom_id[: limits.BATCH_CUSTOM_ID_MAX_CHARS]


def read_request(custom_id: str, url: str, body: bytes, tasks: Mapping[str, str]) -> Line:
    """A request's items. Raises `Bad`."""
    match url:
        case "/v1/embeddings":
            line = _embeddings(custom_id, _decoded(_decode_embeddings, body))
        case "/v1/chat/completions":
            line = _chat(custom_id, _decoded(_decode_chat, body))
        case "/v1/completions":
            line = _completion(custom_id, _decoded(_decode_completion, body))
        case _:
            raise Bad("invalid_url", f"no requests go to {url[:80]!r}", "url")
    task = tasks.get(line.model)
    if task is None:
        message = f"no model {line.model[:80]!r}; see GET /v1/models"
        raise Bad("model_not_found", message, "model")
    if task != TASK_OF_URL[url]:
        message = f"model {line.model[:80]!r} does {task}, and {url} is {TASK_OF_URL[url]}"
        raise Bad("model_not_supported", message, "model")
    return line


def _decoded(decode: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode(body)
    except _SYNTAX as error:
        raise _bad_body(error, "invalid_request") from None


def _bad_body(error: Exception, code: str) -> Bad:
    text = str(error)
    what, _, path = text.partition(" - at `$.")
    return Bad(code, what[:200], path.rstrip("`") or None)


def _embeddings(custom_id: str, body: EmbeddingsBody) -> Line:
    if body.dimensions is not None:
        raise Bad("unsupported_value", "dimensions are the model's own", "dimensions")
    texts: list[Any] = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(texts) <= limits.EMBEDDING_INPUTS_MAX:
        message = f"input has {len(texts)} texts, of 1 to {limits.EMBEDDING_INPUTS_MAX}"
        raise Bad("invalid_input", message, "input")
    for text in texts:
        if not isinstance(text, str):
            raise Bad("invalid_input", "input is a text or a list of texts, no tokens", "input")
        if not text or len(text.encode()) > limits.INPUT_TEXT_MAX_BYTES:
            message = f"a text has 1 to {limits.INPUT_TEXT_MAX_BYTES} bytes"
            raise Bad("invalid_input", message, "input")
    items = tuple(ItemInput(media_type=_TEXT, text=text) for text in texts)
    is_base64 = body.encoding_format == "base64"
    return Line(custom_id, EMBEDDINGS, body.model, items, is_base64)


def _chat(custom_id: str, body: ChatBody) -> Line:
    messages = [
        {"role": message.role, "content": _content(message.content)} for message in body.messages
    ]
    return _generation(custom_id, CHAT, body.model, {"messages": messages, **body.parameters()})


def _content(content: str | list[_ContentPart]) -> str:
    if isinstance(content, str):
        return content
    if any(part.type != "text" or part.text is None for part in content):
        raise Bad("unsupported_value", "content is text", "messages")
    return "".join(part.text or "" for part in content)


def _completion(custom_id: str, body: CompletionBody) -> Line:
    asked = {"prompt": body.prompt, **body.parameters()}
    return _generation(custom_id, COMPLETIONS, body.model, asked)


def _generation(custom_id: str, url: str, model: str, asked: dict[str, Any]) -> Line:
    data = _encode(asked)
    if len(data) > limits.ITEM_MAX_BYTES:
        message = f"the request has {len(data)} bytes, of at most {limits.ITEM_MAX_BYTES}"
        raise Bad("request_too_large", message)
    return Line(custom_id, url, model, (ItemInput(media_type=_JSON, data=data),))


# --- answers -----------------------------------------------------------------------------------


def answer_body(
    url: str, model: str, outputs: Sequence[bytes], made_s: int, name: str, *, is_base64: bool
) -> dict[str, Any]:
    """The body of the answer to a request, from its items' outputs (MessagePack), in order.

    Raises `Bad` for an output that is not what the task gives.
    """
    try:
        decoded = [_decode_output(output) for output in outputs]
        if url == EMBEDDINGS:
            return _embeddings_answer(model, decoded, is_base64=is_base64)
        return _generation_answer(url, model, decoded[0], made_s, name)
    except (*_SYNTAX, KeyError, TypeError, ValueError, OverflowError) as error:
        message = f"the model's output is not what {url} needs: {type(error).__name__}"
        raise Bad("invalid_output", message) from None


def _embeddings_answer(model: str, outputs: Sequence[Any], *, is_base64: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _vector(output, is_base64=is_base64),
            }
            for index, output in enumerate(outputs)
        ],
        "model": model,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }


def _vector(output: Any, *, is_base64: bool) -> str | list[float]:
    """float32, little-endian in base64 as on the wire."""
    data = output["data"]
    if output["datatype"] != "FP32" or not isinstance(data, bytes) or len(data) % _FLOAT_BYTES:
        raise ValueError
    if is_base64:
        return base64.b64encode(data).decode()
    floats = array.array("f", data)
    if sys.byteorder == "big":
        floats.byteswap()
    return floats.tolist()


def _generation_answer(url: str, model: str, output: Any, made_s: int, name: str) -> dict[str, Any]:
    usage = output["usage"]
    counted = {
        "prompt_tokens": int(usage["prompt_tokens"]),
        "completion_tokens": int(usage["completion_tokens"]),
    }
    finish, text = output["finish"], output["text"]
    if not isinstance(text, str) or not isinstance(finish, str | None):
        raise TypeError
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if url == CHAT:
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    return {
        "id": f"{'chatcmpl' if url == CHAT else 'cmpl'}-{name}",
        "object": "chat.completion" if url == CHAT else "text_completion",
        "created": made_s,
        "model": model,
        "choices": [choice],
        "usage": {**counted, "total_tokens": sum(counted.values())},
    }
