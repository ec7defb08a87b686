"""The OpenAPI 3.1 document, made from the table of operations and the contract's structs.

Litestar's own generator is not used: the bodies here travel in two forms and are decoded by
`bodies.py`, so their types stand in no handler's signature.
"""

import re
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from edge_runtime import __version__
from edge_runtime.contract import http
from edge_runtime.contract.messages import ResultEntry
from edge_runtime.dispatcher.api.door import API_KEY_HEADER, needs_no_key
from edge_runtime.dispatcher.api.operations import OPERATIONS, Operation, Schema
from edge_runtime.dispatcher.api.operations_of_others import DESCRIBED, OPENAI
from edge_runtime.dispatcher.api.wire import JSON, MSGPACK, NDJSON

_REF: Final = "#/components/schemas/{name}"
_PATH_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_OCTETS: Final = "application/octet-stream"


def _as_documented(struct: type[msgspec.Struct], name: str, **types: Any) -> type[msgspec.Struct]:
    """The struct with the types of some fields replaced by what they are in JSON."""
    fields: list[Any] = []
    for known in msgspec.structs.fields(struct):
        field_type = types.get(known.name, known.type)
        if known.required:
            fields.append((known.encode_name, field_type))
        else:
            default = None if known.name in types else known.default
            fields.append((known.encode_name, field_type, default))
    return msgspec.defstruct(name, fields, kw_only=True, namespace={"__doc__": struct.__doc__})


# An output is any value; msgspec has no schema for the raw bytes that it is kept as.
_ResultEntry: Final = _as_documented(ResultEntry, "ResultEntry", output=Any)
_FeedEntry: Final = _as_documented(http.FeedEntry, "FeedEntry", result=_ResultEntry)
_DOCUMENTED: Final[dict[Any, Any]] = {ResultEntry: _ResultEntry, http.FeedEntry: _FeedEntry}


ALL_OPERATIONS: Final = (*OPERATIONS, *OPENAI, *DESCRIBED)
_COMMON: Final = (400, 401, 403, 422, 429, 431, 503)
"""Refusals before any route: the request itself, its key, its tenant's name and quota; no room."""
_OF_BODIES: Final = (408, 413, 415)
"""Refusals of whatever reads a body: too slow, too large, in a form that is none."""
_OF_CHANGES: Final = (507,)
"""Refusals of whatever the store may have to write: it is full or locked."""
_KEYS: Final = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": API_KEY_HEADER},
}


def _body_types() -> list[Any]:
    types: list[Any] = []
    for operation in ALL_OPERATIONS:
        types.append(operation.refusal)
        candidates = [operation.body, *operation.answers.values(), *operation.stream]
        types += [t for t in candidates if t is not None and t is not bytes]
    documented = [_DOCUMENTED.get(t, t) for t in types]
    return [t for index, t in enumerate(documented) if t not in documented[:index]]


@cache
def openapi_json() -> bytes:
    """The document as JSON."""
    types = _body_types()
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(str, types), schemas, strict=True))

    def schema_of(body_type: Any) -> Schema:
        return by_type[str(_DOCUMENTED.get(body_type, body_type))]

    paths: dict[str, dict[str, Any]] = {}
    for operation in ALL_OPERATIONS:
        entry = paths.setdefault(operation.path, {})
        entry[operation.method.lower()] = _operation(operation, schema_of)
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "openapi": "3.1.0",
                "info": {
                    "title": "edge-runtime dispatcher",
                    "version": __version__,
                    "description": (
                        "Every body also travels as application/x-msgpack. In JSON, bytes are "
                        "base64, and NaN and the infinities in outputs are null."
                    ),
                },
                "paths": paths,
                "components": {"schemas": components, "securitySchemes": _KEYS},
            }
        ),
        indent=2,
    )


def _operation(operation: Operation, schema_of: Any) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PARAMETER.findall(operation.path)
    ]
    parameters += [
        {
            "name": parameter.name,
            "in": parameter.place,
            "schema": parameter.schema,
            "description": parameter.description,
            **({"required": True} if parameter.is_required else {}),
        }
        for parameter in operation.parameters
    ]
    document: dict[str, Any] = {
        "operationId": operation.handler.replace(".", "_"),
        "summary": operation.summary,
        "tags": list(operation.tags),
        "parameters": parameters,
        "responses": _responses(operation, schema_of),
    }
    if not needs_no_key(operation.path):
        # Without accounts everybody may; with them, with one of these.
        document["security"] = [{name: []} for name in _KEYS]
    if operation.body is not None:
        fields = msgspec.structs.fields(operation.body)
        document["requestBody"] = {
            "required": operation.method == "PUT" or any(field.required for field in fields),
            "content": _forms(operation, schema_of(operation.body)),
        }
    elif operation.sends is not None:
        document["requestBody"] = {"required": True, "content": operation.sends}
    return document


def _forms(operation: Operation, schema: Schema) -> dict[str, Any]:
    content = {"schema": schema}
    return {JSON: content} if operation.is_json else {JSON: content, MSGPACK: content}


def _responses(operation: Operation, schema_of: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, body_type in operation.answers.items():
        response: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if operation.stream:
            elements = {"oneOf": [schema_of(element) for element in operation.stream]}
            response["description"] = "One element a line; an empty line is a heartbeat"
            response["content"] = {NDJSON: {"schema": elements}, MSGPACK: {"schema": elements}}
        elif body_type is bytes:
            response["content"] = {_OCTETS: {"schema": {"type": "string", "format": "binary"}}}
        elif body_type is not None:
            response["content"] = _forms(operation, schema_of(body_type))
            response["content"] |= {
                media_type: {"schema": {"type": "string"}} for media_type in operation.also_answers
            }
        responses[str(status)] = response
    problem = _forms(operation, schema_of(operation.refusal))
    of_bodies = _OF_BODIES if operation.body is not None or operation.sends is not None else ()
    of_changes = () if operation.method in {"GET", "HEAD"} else _OF_CHANGES
    for status in sorted({*_COMMON, *of_bodies, *of_changes, *operation.problems}):
        if str(status) in responses:
            continue
        refused: dict[str, Any] = {"description": HTTPStatus(status).phrase}
        if operation.method != "HEAD":
            refused["content"] = problem
        responses[str(status)] = refused
    return responses
