"""The OpenAPI document is served, is structurally valid, and names what the routes take."""

import re
from typing import Any

import jsonschema
import msgspec
import pytest
from serving import Served

from edge_runtime.contract.http import ResultEntry
from edge_runtime.dispatcher.api.openapi import ALL_OPERATIONS

# The parts of the OpenAPI 3.1 schema that a generator could get wrong; $ref targets and path
# parameters are checked beside it.
STRUCTURE = {
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "properties": {
        "openapi": {"pattern": r"^3\.1\.\d+$"},
        "info": {"type": "object", "required": ["title", "version"]},
        "paths": {
            "patternProperties": {
                "^/": {
                    "type": "object",
                    "propertyNames": {
                        "enum": ["get", "head", "options", "patch", "post", "put", "delete"]
                    },
                    "additionalProperties": {"$ref": "#/$defs/operation"},
                }
            },
            "additionalProperties": False,
        },
        "components": {
            "type": "object",
            "required": ["schemas"],
            "properties": {
                "schemas": {
                    "propertyNames": {"pattern": r"^[A-Za-z0-9._-]+$"},
                    "additionalProperties": {"$ref": "#/$defs/schema"},
                }
            },
        },
    },
    "$defs": {
        "schema": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
        "content": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "object",
                "required": ["schema"],
                "properties": {"schema": {"$ref": "#/$defs/schema"}},
            },
        },
        "operation": {
            "type": "object",
            "required": ["operationId", "responses", "summary"],
            "properties": {
                "parameters": {
                    "items": {
                        "type": "object",
                        "required": ["name", "in", "schema"],
                        "properties": {
                            "in": {"enum": ["path", "query", "header"]},
                            "schema": {"$ref": "#/$defs/schema"},
                        },
                    }
                },
                "requestBody": {
                    "required": ["content"],
                    "properties": {"content": {"$ref": "#/$defs/content"}},
                },
                "responses": {
                    "minProperties": 1,
                    "propertyNames": {"pattern": "^([1-5][0-9][0-9]|default)$"},
                    "additionalProperties": {
                        "required": ["description"],
                        "properties": {"content": {"$ref": "#/$defs/content"}},
                    },
                },
            },
        },
    },
}


@pytest.fixture
async def document(api: Served) -> dict[str, Any]:
    found: dict[str, Any] = await api.call("GET", "/openapi.json")
    return found


def refs_in(node: Any) -> list[str]:
    match node:
        case dict():
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in refs_in(value)]
        case list():
            return [ref for value in node for ref in refs_in(value)]
        case _:
            return []


async def test_it_is_structurally_valid(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(STRUCTURE).validate(document)
    schemas = document["components"]["schemas"]
    refs = set(refs_in(document))
    assert {f"#/components/schemas/{name}" for name in schemas} == refs
    assert set(document["components"]) == {"schemas", "securitySchemes"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))


async def test_operation_ids_are_unique_and_all_are_there(document: dict[str, Any]) -> None:
    ids = [op["operationId"] for ops in document["paths"].values() for op in ops.values()]
    assert len(ids) == len(set(ids)) == len(ALL_OPERATIONS)


async def test_schemas_accept_what_the_api_takes_and_says(document: dict[str, Any]) -> None:
    def validator(name: str) -> jsonschema.Draft202012Validator:
        return jsonschema.Draft202012Validator(
            {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        )

    job = {"model": "m", "items": [{"data": "AA=="}], "deadline_s": 5}
    validator("JobRequest").validate(job)
    assert not validator("JobRequest").is_valid({"model": "m"})
    assert not validator("JobRequest").is_valid({**job, "deadline_s": 0})
    entry = msgspec.to_builtins(ResultEntry(cursor=1, item=0, at_ms=5))
    validator("ResultEntry").validate({**entry, "output": {"any": ["thing"]}})
    assert not validator("ResultEntry").is_valid({"item": 0})
