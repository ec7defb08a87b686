"""`schemas/` agrees with the code, and its documents with the bytes."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest
from contract_shapes import PAYLOAD_TYPES
from jsonschema import Draft7Validator, Draft202012Validator

from edge_runtime.cli.schemas import write_schemas
from edge_runtime.contract.golden import GOLDEN, Golden
from edge_runtime.contract.schemas import CHANNELS, asyncapi, message_schema, schema_files
from edge_runtime.contract.topics import Down, Topics, Up

SCHEMAS = Path(__file__).parents[2] / "schemas"
ASYNCAPI_3 = json.loads((Path(__file__).parent / "asyncapi-3.0.0.schema.json").read_text())

each_vector = pytest.mark.parametrize("vector", GOLDEN, ids=lambda v: v.name)


def readable(value: Any) -> Any:
    """JSON's view of a payload: bytes as base64."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case list():
            return [readable(part) for part in value]
        case dict():
            return {key: readable(part) for key, part in value.items()}
        case _:
            return value


def payload_of(vector: Golden) -> Any:
    return readable(msgpack.unpackb((SCHEMAS / "golden" / f"{vector.name}.msgpack").read_bytes()))


def test_the_folder_is_what_the_code_generates() -> None:
    assert write_schemas(SCHEMAS, check=True) == [], "run `edge-runtime schemas write`"


def test_generation_is_deterministic() -> None:
    assert schema_files({}) == schema_files({})


def test_write_fills_an_empty_folder_then_finds_nothing_to_do(tmp_path: Path) -> None:
    missing = write_schemas(tmp_path, check=True)
    assert any("topics.md" in line for line in missing)
    assert not list(tmp_path.iterdir())
    assert write_schemas(tmp_path, check=False) == []
    assert write_schemas(tmp_path, check=True) == []


def test_write_removes_what_is_not_generated_any_more(tmp_path: Path) -> None:
    write_schemas(tmp_path, check=False)
    stale = tmp_path / "json" / "Forgotten.json"
    stale.write_text("{}")
    assert any("Forgotten.json" in line for line in write_schemas(tmp_path, check=True))
    assert write_schemas(tmp_path, check=False) == []
    assert not stale.exists()


def test_write_refuses_to_touch_a_changed_golden_vector(tmp_path: Path) -> None:
    shutil.copytree(SCHEMAS, tmp_path, dirs_exist_ok=True)
    changed = tmp_path / "golden" / "offline.msgpack"
    changed.write_bytes(b"\x90")
    (tmp_path / "topics.md").write_text("old")
    for check in (True, False):
        (fault,) = write_schemas(tmp_path, check=check)
        assert "offline" in fault
    assert changed.read_bytes() == b"\x90"
    assert (tmp_path / "topics.md").read_text() == "old"


def test_write_refuses_to_drop_a_golden_vector(tmp_path: Path) -> None:
    write_schemas(tmp_path, check=False)
    (tmp_path / "golden" / "retired.msgpack").write_bytes(b"\xc0")
    (fault,) = write_schemas(tmp_path, check=False)
    assert "retired.msgpack" in fault
    assert (tmp_path / "golden" / "retired.msgpack").exists()


@each_vector
def test_json_schema_accepts_the_vector_and_refuses_its_ruin(vector: Golden) -> None:
    schema = json.loads((SCHEMAS / "json" / f"{type(vector.message).__name__}.json").read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    value = payload_of(vector)
    validator.validate(value)
    ruined = value[:1] if isinstance(value, list) else {**value, "type": "other"}
    assert not validator.is_valid(ruined)


def test_json_schemas_name_the_elements_of_arrays() -> None:
    state = message_schema(next(k for k in PAYLOAD_TYPES if k.__name__ == "VehicleState"))
    elements = state["$defs"]["VehicleState"]["prefixItems"]
    assert [e["title"] for e in elements][:4] == ["tag", "vehicle", "boot", "seq"]
    charge = state["$defs"]["Signals"]["prefixItems"][0]
    assert charge["x-vss-path"].endswith("StateOfCharge.Displayed")
    assert charge["x-unit"] == "percent"


def test_asyncapi_document_is_valid_asyncapi_3() -> None:
    document = json.loads((SCHEMAS / "asyncapi.json").read_text())
    faults = [
        f"{list(error.absolute_path)}: {error.message[:200]}"
        for error in Draft7Validator(ASYNCAPI_3).iter_errors(document)
    ]
    assert faults == []


def test_the_validator_of_asyncapi_documents_finds_faults() -> None:
    document = asyncapi()
    document["operations"]["sendFleet"]["bindings"]["mqtt"]["qos"] = 3
    assert not Draft7Validator(ASYNCAPI_3).is_valid(document)


def test_every_reference_in_asyncapi_leads_somewhere() -> None:
    document = asyncapi()
    references = list(_references(document))
    assert len(references) > 50
    for reference in references:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
        assert node


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for part in node:
            yield from _references(part)


@each_vector
def test_asyncapi_payload_schema_accepts_the_vector(vector: Golden) -> None:
    document = asyncapi()
    name = type(vector.message).__name__
    validator = Draft7Validator({"$ref": f"#/components/schemas/{name}", **document})
    validator.validate(payload_of(vector))
    assert not validator.is_valid([])


def test_every_topic_of_the_contract_is_a_channel() -> None:
    topics = Topics("er")
    built = {
        *(topics.up("car-1", kind) for kind in Up),
        *(topics.down("car-1", kind) for kind in Down),
        topics.host("d-1"),
        topics.job_results("acme", "j-1"),
        topics.job_status("acme", "j-1"),
        topics.tenant_request("acme"),
        topics.tenant_answers("acme", "r-1"),
        topics.fleet("north"),
    }
    values = {
        "ns": "er",
        "shard": topics.up("car-1", Up.STATE).split("/")[2],
        "vehicle": "car-1",
        "dispatcher": "d-1",
        "tenant": "acme",
        "job": "j-1",
        "region": "north",
        "reader": "r-1",
    }
    assert {channel.address.format(**values) for channel in CHANNELS} == built
    table = (SCHEMAS / "topics.md").read_text()
    assert all(f"`{channel.address}`" in table for channel in CHANNELS)


def test_retained_topics_and_wills_are_those_of_the_design() -> None:
    retained = {channel.name for channel in CHANNELS if channel.is_retained}
    assert retained == {"vehicleStatus", "vehicleDesired", "hostStatus", "jobStatus", "fleet"}
    assert {c.name for c in CHANNELS if c.is_will} == {"vehicleStatus", "hostStatus"}
    assert {c.name for c in CHANNELS if c.in_envelope} == {
        "vehicleWork",
        "vehicleControl",
        "vehicleDesired",
    }
