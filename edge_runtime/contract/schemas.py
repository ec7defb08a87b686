"""Generates everything under `schemas/` from the contract's own types and topics.

Four artefacts: `asyncapi.json` (AsyncAPI 3.0, MQTT bindings, from the dispatcher's point of
view), `json/<Message>.json` (JSON Schema 2020-12, self-contained), `topics.md`, and `golden/`
(vectors and their index). Pure functions from types to bytes: the same code gives the same
bytes, so a test and CI compare them with the repository.

A schema describes what today's peer sends. Readers must follow the evolution rules of
`messages.py`: more trailing elements, other reasons and other tags may come.

Deliberately absent: file access (the command line writes), and any address written by hand
(each is built by `topics.py` and then named).
"""

import base64
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any, Final, get_args

import msgspec

from edge_runtime.contract import messages
from edge_runtime.contract.golden import GOLDEN, golden_files
from edge_runtime.contract.messages import (
    CONTRACT_VERSION,
    Acks,
    Control,
    Desired,
    FetchSince,
    FleetAggregate,
    HostStatus,
    JobResults,
    JobStatus,
    RequestRefused,
    ResultEntry,
    Results,
    Signed,
    Status,
    VehicleState,
    WorkOffer,
)
from edge_runtime.contract.signals import WIRE_SIGNALS, Signals
from edge_runtime.contract.topics import ID_PATTERN, Down, Topics, Up, shard_of

Json = dict[str, Any]

CONTENT_TYPE: Final = "application/x-msgpack"

_PLACEHOLDERS: Final = {
    "NS": "{ns}",
    shard_of("VEHICLE"): "{shard}",
    "VEHICLE": "{vehicle}",
    "DISPATCHER": "{dispatcher}",
    "TENANT": "{tenant}",
    "JOB": "{job}",
    "REGION": "{region}",
    "READER": "{reader}",
}
_TOPICS: Final = Topics("NS")


def _address(topic: str) -> str:
    return "/".join(_PLACEHOLDERS.get(part, part) for part in topic.split("/"))


@dataclass(frozen=True, slots=True)
class Channel:
    """One row of the topic table.

    `qos` lists the levels in use, the usual one first; `qos_note` says when which. `in_envelope`
    payloads are `Signed` around the bytes of the message. Where a reply goes, its request says:
    `address` is then a custom.
    """

    name: str
    address: str
    publisher: str
    subscribers: str
    qos: tuple[int, ...]
    is_retained: bool
    message: type[msgspec.Struct] | UnionType
    purpose: str
    qos_note: str = ""
    is_will: bool = False
    in_envelope: bool = False
    is_reply: bool = False

    @property
    def message_types(self) -> tuple[type[msgspec.Struct], ...]:
        """The message, or every member of the union."""
        return get_args(self.message) or (self.message,)

    @property
    def parameters(self) -> list[str]:
        """Names between braces, in order."""
        return [part[1:-1] for part in self.address.split("/") if part.startswith("{")]


def _up_channels() -> tuple[Channel, ...]:
    car, dispatcher = "car", "dispatcher"
    return (
        Channel(
            name="vehicleStatus",
            address=_address(_TOPICS.up("VEHICLE", Up.STATUS)),
            publisher=car,
            subscribers=dispatcher,
            qos=(1,),
            is_retained=True,
            is_will=True,
            message=Status,
            purpose="A car's runtime came up (Birth) or left (Offline, also its Will).",
        ),
        Channel(
            name="vehicleState",
            address=_address(_TOPICS.up("VEHICLE", Up.STATE)),
            publisher=car,
            subscribers=dispatcher,
            qos=(0, 1),
            qos_note="1 when the availability changed, 0 for the periodic refresh",
            is_retained=False,
            message=VehicleState,
            purpose="Availability or hold reason, signals, free slots.",
        ),
        Channel(
            name="vehicleAck",
            address=_address(_TOPICS.up("VEHICLE", Up.ACK)),
            publisher=car,
            subscribers=dispatcher,
            qos=(1,),
            is_retained=False,
            message=Acks,
            purpose="Verdicts on offers and cancels.",
        ),
        Channel(
            name="vehicleResult",
            address=_address(_TOPICS.up("VEHICLE", Up.RESULT)),
            publisher=car,
            subscribers=dispatcher,
            qos=(1,),
            is_retained=False,
            message=Results,
            purpose="Finished items, chunk by chunk; each chunk is answered on `dn/control`.",
        ),
    )


def _down_channels() -> tuple[Channel, ...]:
    dispatcher = "dispatcher"
    return (
        Channel(
            name="vehicleWork",
            address=_address(_TOPICS.down("VEHICLE", Down.WORK)),
            publisher=dispatcher,
            subscribers="that car",
            qos=(1,),
            is_retained=False,
            in_envelope=True,
            message=WorkOffer,
            purpose="Units offered to one car; re-sent unchanged until answered.",
        ),
        Channel(
            name="vehicleControl",
            address=_address(_TOPICS.down("VEHICLE", Down.CONTROL)),
            publisher=dispatcher,
            subscribers="that car",
            qos=(1,),
            is_retained=False,
            in_envelope=True,
            message=Control,
            purpose="Answers to chunks, Cancel, Drain, Rebirth.",
        ),
        Channel(
            name="vehicleDesired",
            address=_address(_TOPICS.down("VEHICLE", Down.DESIRED)),
            publisher=dispatcher,
            subscribers="that car",
            qos=(1,),
            is_retained=True,
            in_envelope=True,
            message=Desired,
            purpose="Models to hold ready, policy version.",
        ),
    )


def _shared_channels() -> tuple[Channel, ...]:
    dispatcher = "dispatcher"
    return (
        Channel(
            name="hostStatus",
            address=_address(_TOPICS.host("DISPATCHER")),
            publisher=dispatcher,
            subscribers="cars",
            qos=(1,),
            is_retained=True,
            is_will=True,
            message=HostStatus,
            purpose="Which dispatcher serves which shards.",
        ),
        Channel(
            name="jobResults",
            address=_address(_TOPICS.job_results("TENANT", "JOB")),
            publisher=dispatcher,
            subscribers="the tenant's readers",
            qos=(1,),
            is_retained=False,
            message=JobResults,
            purpose="Results in order of commit; a gap in the cursor can be fetched.",
        ),
        Channel(
            name="jobStatus",
            address=_address(_TOPICS.job_status("TENANT", "JOB")),
            publisher=dispatcher,
            subscribers="the tenant's readers",
            qos=(1,),
            is_retained=True,
            message=JobStatus,
            purpose="State and progress; cleared 24 h after the job's end.",
        ),
        Channel(
            name="tenantRequest",
            address=_address(_TOPICS.tenant_request("TENANT")),
            publisher="the tenant's readers",
            subscribers=dispatcher,
            qos=(1,),
            is_retained=False,
            message=FetchSince,
            purpose="Asks for results after a cursor; answered where the request says.",
        ),
        Channel(
            name="tenantAnswer",
            address=_address(_TOPICS.tenant_answers("TENANT", "READER")),
            publisher=dispatcher,
            subscribers="the tenant's reader that asked",
            qos=(1,),
            is_retained=False,
            is_reply=True,
            message=JobResults | RequestRefused,
            purpose="A page of what was asked for, or why not; the request names the topic.",
        ),
        Channel(
            name="fleet",
            address=_address(_TOPICS.fleet("REGION")),
            publisher=dispatcher,
            subscribers="anyone allowed",
            qos=(0,),
            is_retained=True,
            message=FleetAggregate,
            purpose="Aggregated capacity, never a single car.",
        ),
    )


CHANNELS: Final[tuple[Channel, ...]] = (
    *_up_channels(),
    *_down_channels(),
    *_shared_channels(),
)
"""Every topic of the contract, in the order of DESIGN §5."""

_PARAMETERS: Final = {
    "ns": "Namespace of one deployment, `er` by default.",
    "shard": "Two hex digits: the low byte of the CRC-32 of the vehicle id.",
    "vehicle": "Opaque random id of a car, never its VIN.",
    "dispatcher": "Id of a dispatcher.",
    "tenant": "A requester's account.",
    "job": "Id of a job.",
    "region": "Region a car names in its Birth.",
    "reader": "Name that a reader gives itself, unlike those of the tenant's other readers.",
}


def schema_files(stored_golden: Mapping[str, bytes]) -> dict[str, bytes]:
    """Every file under `schemas/` by its path there.

    `stored_golden` holds the golden vectors that exist, by file name; their bytes are kept.
    Raises `GoldenChanged` when one of them no longer means what the code says.
    """
    golden = golden_files(stored_golden)
    files = {f"golden/{name}": data for name, data in golden.items()}
    files["golden/index.json"] = _json_bytes(_golden_index(golden))
    for message in _payload_types():
        files[f"json/{message.__name__}.json"] = _json_bytes(message_schema(message))
    files["asyncapi.json"] = _json_bytes(asyncapi())
    files["topics.md"] = topic_table().encode()
    return files


def _json_bytes(value: Json) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _payload_types() -> list[type[msgspec.Struct]]:
    """Every struct that is a payload, the envelope included, each once."""
    types = [kind for channel in CHANNELS for kind in channel.message_types]
    return list(dict.fromkeys([*types, Signed]))


# --- JSON Schema ---------------------------------------------------------------------------


def message_schema(message: type[msgspec.Struct]) -> Json:
    """JSON Schema 2020-12 of one payload; bytes appear as base64 strings."""
    (reference,), components = _components((message,), "#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edge-runtime:{CONTRACT_VERSION}:{message.__name__}",
        **reference,
        "$defs": components,
    }


def _components(
    types: Iterable[type[msgspec.Struct]], ref_template: str
) -> tuple[tuple[Json, ...], Json]:
    """References to `types`, and the schemas of every named type they need, titled."""
    readable = [_READABLE.get(kind, kind) for kind in types]
    references, components = msgspec.json.schema_components(readable, ref_template=ref_template)
    titled = {name: _titled(name, schema) for name, schema in sorted(components.items())}
    return references, titled


def _raw_as_any(struct: type[msgspec.Struct], replaced: Mapping[str, Any]) -> type[msgspec.Struct]:
    """A twin of `struct` for msgspec's generator, which cannot print the default `Raw()`."""
    fields = []
    for info in msgspec.structs.fields(struct):
        kind = replaced.get(info.name, info.type)
        default = None if info.name in replaced and not info.required else info.default
        fields.append((info.name, kind) if info.required else (info.name, kind, default))
    config = struct.__struct_config__
    return msgspec.defstruct(
        struct.__name__,
        fields,
        namespace={"__doc__": struct.__doc__},
        kw_only=True,
        tag=config.tag,
        tag_field=config.tag_field,
    )


_ENTRY: Final = _raw_as_any(ResultEntry, {"output": Any})
_READABLE: Final[Mapping[type[msgspec.Struct], type[msgspec.Struct]]] = {
    JobResults: _raw_as_any(JobResults, {"results": tuple[_ENTRY, ...]}),  # type: ignore[valid-type]  # built at run time
}


def _titled(name: str, schema: Json) -> Json:
    """Clean docstrings, names of array elements, and the VSS binding of signals."""
    schema = {**schema}
    if "description" in schema:
        schema["description"] = inspect.cleandoc(schema["description"])
    if "enum" in schema:
        schema["description"] += " Open: read any other string as `unknown`."
    if "prefixItems" in schema:
        names = _element_names(getattr(messages, name))
        pairs = zip(names, schema["prefixItems"], strict=True)
        schema["prefixItems"] = [{"title": title, **element} for title, element in pairs]
    if name == Signals.__name__:
        for element, signal in zip(schema["prefixItems"], WIRE_SIGNALS, strict=True):
            element["x-vss-path"] = signal.path
            if signal.unit:
                element["x-unit"] = signal.unit
    if name == ResultEntry.__name__:
        del schema["properties"]["output"]["default"]
    return schema


def _element_names(kind: Any) -> list[str]:
    if not issubclass(kind, msgspec.Struct):
        return list(kind._fields)
    tag = ["tag"] if kind.__struct_config__.tag is not None else []
    return [*tag, *kind.__struct_encode_fields__]


# --- AsyncAPI ------------------------------------------------------------------------------


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document, from the dispatcher's point of view."""
    _, components = _components(_payload_types(), "#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "edge-runtime",
            "version": f"{CONTRACT_VERSION}.0.0",
            "description": inspect.cleandoc(messages.__doc__ or ""),
            "license": {
                "name": "Apache-2.0",
                "url": "https://www.apache.org/licenses/LICENSE-2.0",
            },
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"broker": _BROKER},
        "channels": {channel.name: _asyncapi_channel(channel) for channel in CHANNELS},
        "operations": {
            name: operation for channel in CHANNELS for name, operation in _operations(channel)
        },
        "components": {
            "parameters": {
                name: {"description": description} for name, description in _PARAMETERS.items()
            },
            "messages": {
                kind.__name__: _asyncapi_message(kind, channel)
                for channel in CHANNELS
                for kind in channel.message_types
            },
            "schemas": {name: _as_draft_07(schema) for name, schema in components.items()},
        },
    }


_BROKER: Final = {
    "host": "localhost:1883",
    "protocol": "mqtt",
    "protocolVersion": "5.0",
    "description": "Any MQTT broker; everything also works on MQTT 3.1.1.",
    "bindings": {"mqtt": {"cleanSession": False, "keepAlive": 30, "bindingVersion": "0.2.0"}},
}


def _asyncapi_channel(channel: Channel) -> Json:
    if channel.is_reply:
        # The request says where: AsyncAPI wants no address then, and no parameters of one.
        described = f"{channel.purpose} By custom `{channel.address}`."
        fixed = replace(channel, address="", purpose=described, is_reply=False)
        return {**_asyncapi_channel(fixed), "address": None}
    return {
        "address": channel.address,
        "description": channel.purpose,
        "messages": {
            kind.__name__: {"$ref": f"#/components/messages/{kind.__name__}"}
            for kind in channel.message_types
        },
        "parameters": {
            name: {"$ref": f"#/components/parameters/{name}"} for name in channel.parameters
        },
        "x-publisher": channel.publisher,
        "x-subscribers": channel.subscribers,
        "x-retained": channel.is_retained,
        "x-will": channel.is_will,
    }


def _asyncapi_message(kind: type[msgspec.Struct], channel: Channel) -> Json:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    message: Json = {
        "name": kind.__name__,
        "summary": inspect.cleandoc(kind.__doc__ or "").splitlines()[0],
        "contentType": CONTENT_TYPE,
        "payload": schema,
        "bindings": {"mqtt": {"contentType": CONTENT_TYPE, "bindingVersion": "0.2.0"}},
    }
    if channel.in_envelope:
        # On the wire is the envelope; the message is the bytes inside it.
        message["payload"] = {"$ref": f"#/components/schemas/{Signed.__name__}"}
        message["x-body"] = schema
    return message


def _operations(channel: Channel) -> Iterable[tuple[str, Json]]:
    """One operation per QoS in use: the binding knows one level only."""
    is_sent = channel.publisher == "dispatcher"
    for qos in channel.qos:
        suffix = f"Qos{qos}" if len(channel.qos) > 1 else ""
        verb = "send" if is_sent else "receive"
        operation: Json = {
            "action": verb,
            "channel": {"$ref": f"#/channels/{channel.name}"},
            "summary": channel.purpose,
            "bindings": {
                "mqtt": {"qos": qos, "retain": channel.is_retained, "bindingVersion": "0.2.0"}
            },
        }
        if channel.qos_note:
            operation["description"] = f"QoS: {channel.qos_note}."
        if channel.message is FetchSince:
            operation["reply"] = {
                "address": {
                    "location": "$message.payload#/respond_to",
                    "description": "MQTT 5: the message's response topic.",
                },
                "channel": {"$ref": "#/channels/tenantAnswer"},
            }
        yield f"{verb}{channel.name[0].upper()}{channel.name[1:]}{suffix}", operation


def _as_draft_07(node: Any) -> Any:
    """The same schema in the dialect AsyncAPI tools read: positional `items`."""
    if isinstance(node, list):
        return [_as_draft_07(part) for part in node]
    if not isinstance(node, dict):
        return node
    node = {key: _as_draft_07(part) for key, part in node.items()}
    if "prefixItems" in node:
        node["items"] = node.pop("prefixItems")
    if "$ref" in node and len(node) > 1:
        # Draft 7 ignores what stands beside a $ref.
        node["allOf"] = [{"$ref": node.pop("$ref")}]
    return node


# --- for people ----------------------------------------------------------------------------


def topic_table() -> str:
    """`topics.md`: topic, publisher, subscriber, QoS, retained, message."""
    lines = [
        "# Topics",
        "",
        "Generated by `edge-runtime schemas write`; do not edit.",
        "",
        "| topic | publisher | subscriber | QoS | retained | message | purpose |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_topic_row(channel) for channel in CHANNELS]
    ids = f"Every id matches `{ID_PATTERN.pattern}`."
    canary = f"`{_address(_TOPICS.canary('VEHICLE'))}`"
    own_check = f"A car also publishes to {canary} and reads it back: does the broker let it?"
    forms = "The form of each message is in [`json/`](json/), its bytes in [`golden/`](golden/)"
    return "\n".join(
        [
            *lines,
            "",
            f"{ids} {own_check}",
            "",
            "Parameters:",
            "",
            *(f"- `{name}`: {description}" for name, description in _PARAMETERS.items()),
            "",
            f"{forms}, all of it in [`asyncapi.json`](asyncapi.json).",
            "",
        ]
    )


def _topic_row(channel: Channel) -> str:
    kinds = " or ".join(f"[{k.__name__}](json/{k.__name__}.json)" for k in channel.message_types)
    cells = (
        f"`{channel.address}`",
        channel.publisher,
        channel.subscribers,
        channel.qos_note or str(channel.qos[0]),
        ("yes, also the Will" if channel.is_will else "yes") if channel.is_retained else "no",
        f"{kinds} in [Signed](json/Signed.json)" if channel.in_envelope else kinds,
        channel.purpose,
    )
    return f"| {' | '.join(cells)} |"


def _golden_index(golden: Mapping[str, bytes]) -> Json:
    return {
        "description": "Each file is one payload. `value` is what any MessagePack reader makes of "
        'it, with bytes as {"$base64": …}. Files are never changed or removed.',
        "vectors": [
            {
                "file": f"{vector.name}.msgpack",
                "message": type(vector.message).__name__,
                "channel": vector.channel,
                "description": vector.description,
                "value": _jsonable(msgspec.msgpack.decode(golden[f"{vector.name}.msgpack"])),
            }
            for vector in GOLDEN
        ],
    }


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$base64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_jsonable(part) for part in value]
    if isinstance(value, dict):
        return {key: _jsonable(part) for key, part in value.items()}
    return value
