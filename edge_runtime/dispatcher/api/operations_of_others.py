"""Operations whose form is another API's: OpenAI's, the Open Inference Protocol's, tus'.

What they send and answer is those conventions' to say; here is what this dispatcher makes of them,
for its own OpenAPI document. `OPENAI` are also its routes; the others are applications beside the
router (`oip`, `objects`, `openai.live`), and only described.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from edge_runtime.contract import limits
from edge_runtime.dispatcher.api.door import TENANT_HEADER
from edge_runtime.dispatcher.api.openai.batches import BatchRequest
from edge_runtime.dispatcher.api.openai.lines import ChatBody, CompletionBody, EmbeddingsBody
from edge_runtime.dispatcher.api.operations import Operation, Parameter, Schema

_Object = dict[str, Any]
_TENANT: Final = Parameter(
    TENANT_HEADER, {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}, "Whose.", "header"
)
_TUS: Final = Parameter("Tus-Resumable", {"const": "1.0.0"}, "The protocol's.", "header", True)


class OpenAiFault(msgspec.Struct):
    """What OpenAI's API says of a refusal."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiRefusal(msgspec.Struct):
    """A refusal in the form of OpenAI's API."""

    error: OpenAiFault


class OipRefusal(msgspec.Struct):
    """A refusal of the Open Inference Protocol."""

    error: str


def _openai(
    method: str,
    path: str,
    handler: str,
    summary: str,
    *problems: int,
    **more: Any,
) -> Operation:
    more.setdefault("answers", {200: _Object})
    more["parameters"] = (_TENANT, *more.get("parameters", ()))
    return Operation(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        problems=(422, *problems),
        tags=("openai",),
        refusal=OpenAiRefusal,
        is_json=True,
        **more,
    )


_LIMIT: Final = Parameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": limits.OPENAI_PAGE_MAX, "default": 20},
    "How many at most.",
)
_AFTER: Final = Parameter("after", {"type": "string"}, "Only what comes after this id.")
_PAGE: Final = {"parameters": (_LIMIT, _AFTER)}
_FORM: Final = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["purpose", "file"],
            "properties": {
                "purpose": {"const": "batch"},
                "file": {"type": "string", "format": "binary"},
                "expires_after[seconds]": {"type": "integer", "minimum": 3_600},
            },
        }
    }
}
_models: Final[dict[str, Any]] = {"tags": ("openai",), "is_json": True}

OPENAI: Final = (
    Operation(
        method="GET",
        path="/v1/models",
        handler="openai.models",
        summary="Models, as OpenAI's clients list them",
        answers={200: _Object},
        **_models,
    ),
    Operation(
        method="GET",
        path="/v1/models/{name}",
        handler="openai.model",
        summary="One model by its name, `name@version` or digest",
        answers={200: _Object},
        problems=(404,),
        **_models,
    ),
    _openai(
        "POST",
        "/v1/embeddings",
        "openai.embeddings",
        "Vectors of texts",
        *(404, 408, 413, 415, 502, 504),
        body=EmbeddingsBody,
    ),
    _openai(
        "POST",
        "/v1/files",
        "openai.upload",
        "Keep a file of requests",
        *(408, 413, 415, 507),
        sends=_FORM,
    ),
    _openai("GET", "/v1/files", "openai.files", "Files, newest first", **_PAGE),
    _openai("GET", "/v1/files/{name}", "openai.file", "One file, without its bytes", 404),
    _openai("DELETE", "/v1/files/{name}", "openai.delete_file", "Forget a file", 404, 409),
    _openai(
        "GET",
        "/v1/files/{name}/content",
        "openai.content",
        "A file's bytes",
        *(404, 416),
        answers={200: bytes, 206: bytes},
    ),
    _openai(
        "POST",
        "/v1/batches",
        "openai.create_batch",
        "Run a file of requests",
        *(404, 408, 409, 413, 415, 507),
        body=BatchRequest,
    ),
    _openai("GET", "/v1/batches", "openai.batches", "Batches, newest first", **_PAGE),
    _openai("GET", "/v1/batches/{name}", "openai.batch", "One batch and its progress", 404),
    _openai("POST", "/v1/batches/{name}/cancel", "openai.cancel_batch", "Stop a batch", 404, 409),
)

_LIVE_PROBLEMS: Final = (404, 408, 413, 415, 500, 502, 504)
TEXTS: Final = tuple(
    _openai(
        "POST",
        path,
        f"live_{name}",
        f"{summary}; with `stream`, as server-sent events",
        *_LIVE_PROBLEMS,
        body=body,
        also_answers=("text/event-stream",),
    )
    for path, name, summary, body in (
        ("/v1/chat/completions", "chat", "The next message of a chat", ChatBody),
        ("/v1/completions", "completion", "What follows a prompt", CompletionBody),
    )
)


def _oip(method: str, path: str, name: str, summary: str, *problems: int, **more: Any) -> Operation:
    more.setdefault("answers", {200: _Object})
    return Operation(
        method=method,
        path=f"/v2{path}",
        handler=f"oip_{name}",
        summary=summary,
        problems=problems,
        tags=("open-inference",),
        refusal=OipRefusal,
        is_json=True,
        **more,
    )


_TENSOR: Final[Schema] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
_INFER: Final[Schema] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_INFER_BODIES: Final = {
    "application/json": {"schema": _INFER},
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
}
_HEADER_LENGTH: Final = Parameter(
    "Inference-Header-Content-Length",
    {"type": "integer", "minimum": 0, "maximum": 10**limits.OIP_LENGTH_DIGITS_MAX - 1},
    "How long the JSON is before binary tensors; 0: the body is the one input.",
    "header",
)


def _of_model(prefix: str, name: str) -> tuple[Operation, ...]:
    """What a model is asked, by its name or a version of it."""
    of = f"/models/{{model}}{prefix}"
    return (
        _oip("GET", of, f"{name}metadata", "Inputs and outputs", 404),
        _oip(
            "GET",
            f"{of}/ready",
            f"{name}ready",
            "Whether a car could serve it now: 200, or 400 without a body",
            404,
            answers={200: None, 400: None},
        ),
        _oip("GET", f"{of}/config", f"{name}config", "As Triton's ModelConfig", 404),
        _oip("GET", f"{of}/stats", f"{name}stats", "Counts and times", 404),
        _oip(
            "POST",
            f"{of}/infer",
            f"{name}infer",
            "Inference",
            *(404, 408, 413, 415, 422, 500, 504),
            sends=_INFER_BODIES,
            also_answers=("application/octet-stream",),
            parameters=(_TENANT, _HEADER_LENGTH),
        ),
    )


OPEN_INFERENCE: Final = (
    _oip("GET", "", "server", "Name, version, extensions"),
    *(
        _oip(
            "GET",
            f"/health/{kind}",
            f"health_{kind}",
            "200, or 400 without a body",
            answers={200: None, 400: None},
        )
        for kind in ("live", "ready")
    ),
    _oip("GET", "/models/stats", "all_stats", "Counts and times of all models"),
    *_of_model("", ""),
    *_of_model("/versions/{version}", "version_"),
    _oip(
        "POST",
        "/repository/index",
        "index",
        "Every model, and whether a car could serve it",
        *(408, 413, 415),
        answers={200: list[_Object]},
    ),
    *(
        _oip(
            "POST",
            f"/repository/models/{{model}}/{verb}",
            verb,
            "Changes nothing: cars load what is asked for",
            *(404, 408, 413, 415),
            answers={200: None},
        )
        for verb in ("load", "unload")
    ),
)


def _tus(method: str, path: str, name: str, summary: str, *problems: int, **more: Any) -> Operation:
    more.setdefault("answers", {HTTPStatus.NO_CONTENT.value: None})
    needs = () if method in {"GET", "OPTIONS"} else (_TUS,)
    whose = () if method == "OPTIONS" else (_TENANT,)
    more["parameters"] = (*whose, *needs, *more.get("parameters", ()))
    return Operation(
        method=method,
        path=path,
        handler=f"objects_{name}",
        summary=summary,
        problems=(412, 422, *problems) if needs else (422, *problems),
        tags=("objects",),
        **more,
    )


def _size(name: str, says: str) -> Parameter:
    return Parameter(name, {"type": "integer", "minimum": 0}, says, "header", True)


_ONE: Final = "/objects/{sha256}"
OBJECTS: Final = (
    _tus("OPTIONS", "/objects", "options", "What of tus 1.0.0 there is"),
    _tus(
        "POST",
        "/objects",
        "create",
        "Begin an upload",
        *(409, 413, 423, 503, 507),
        answers={201: None},
        parameters=(
            _size("Upload-Length", "How many bytes it will have."),
            Parameter(
                "Upload-Metadata",
                {"type": "string"},
                "`sha256` and its 64 hex digits in base64.",
                "header",
                True,
            ),
        ),
    ),
    _tus(
        "GET",
        _ONE,
        "read",
        "A whole object, or one range of it",
        *(404, 416),
        answers={200: bytes, 206: bytes},
    ),
    _tus("HEAD", _ONE, "look", "How much of it is there", *(404, 423, 503), answers={200: None}),
    _tus(
        "PATCH",
        _ONE,
        "append",
        "Go on with an upload",
        *(404, 408, 409, 413, 415, 423, 503, 507),
        parameters=(_size("Upload-Offset", "Where these bytes belong."),),
        sends={
            "application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}
        },
    ),
    _tus("DELETE", _ONE, "delete", "Forget an object that no job uses", *(404, 409)),
)

DESCRIBED: Final = (*TEXTS, *OPEN_INFERENCE, *OBJECTS)
"""Operations of applications beside the router."""
