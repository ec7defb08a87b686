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
from edge_runtime.dispatcher.api.operations import OPERATIONS, Operation, Schema
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


def _body_types() -> list[Any]:
    types: list[Any] = [http.Problem]
    for operation in OPERATIONS:
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
    for operation in OPERATIONS:
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
                "components": {"schemas": components},
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
    if operation.body is not None:
        document["requestBody"] = {
            "required": True,
            "content": _both_forms(schema_of(operation.body)),
        }
    return document


def _both_forms(schema: Schema) -> dict[str, Any]:
    return {JSON: {"schema": schema}, MSGPACK: {"schema": schema}}


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
            response["content"] = _both_forms(schema_of(body_type))
        responses[str(status)] = response
    problem = _both_forms(schema_of(http.Problem))
    for status in operation.problems:
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": problem,
        }
    responses["default"] = {"description": "Any other refusal", "content": problem}
    return responses
