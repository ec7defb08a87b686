"""The reference page of the policy file, made from the structs: keys, types, defaults, meanings.

`docs/reference/policy.md` is its output; a test compares them.
"""

import json
from collections.abc import Iterator
from typing import Any, Final, get_args

import msgspec
from msgspec import inspect

from edge_runtime.vehicle.policy import OwnerPolicy, example_policy

_HEAD: Final = """\
# The owner's policy

<!-- Made by `edge-runtime owner policy --reference`; edit edge_runtime/vehicle/policy.py. -->

`policy.toml` says when, for whom and how far a car may work. It is read again within a second of
every change, and at once on SIGHUP. A file that is missing gives no consent; one that is wrong
anywhere, or half written, stops all work until it is right. An unknown key is an error.

Beginning and going on have separate levels: work begins when **every** rule has been good, at its
start level, for `dwell_s`, and stops at once when one passes its stop level. Between the two, work
that runs goes on and none begins. So work begins at most once per `dwell_s`.

What a rule needs must be there: a signal that a rule uses and that is stale (older than 5 s) or
impossible stops work, one that `require` or a table of its own asks for must exist, a budget of
something that the car does not count is spent, an unknown price is too high, and every rule about
hours needs a clock that is set.

What the owner decides by command lies in `owner.json` in the state folder, outlives every restart
and overrides `paused` and `[consent]` of this file:

| command | what it does |
| --- | --- |
| `edge-runtime owner status` | one screen: consent, what the car does, energy, work done |
| `edge-runtime owner why` | every rule that forbids or allows work now, with its numbers |
| `edge-runtime owner ledger` | what work took, and the budgets |
| `edge-runtime owner pause`, `resume` | stop all work; let it begin again |
| `edge-runtime owner consent`, `withdraw` | give and withdraw consent; a withdrawal stops work at \
once, drops every result that was not handed over, clears what the broker keeps of the car, and no \
more signals are told |
| `edge-runtime owner policy` | print the example below |

They need no network; the car's runtime hears of them through a socket in its state folder. A
withdrawal by command is undone by `owner consent` alone; a `[consent]` table with `given = false`
and a higher `version` withdraws as well. An `owner.json` that is damaged is no consent.
`edge-runtime vehicle --owner-page-port 8090` shows the same at http://127.0.0.1:8090/, read only.
"""


def policy_reference() -> str:
    """The page, Markdown."""
    parts = [_HEAD, "## Keys outside of tables\n", *_rows(OwnerPolicy)]
    for field in msgspec.structs.fields(OwnerPolicy):
        table = _table_of(field.type)
        if table is None:
            continue
        is_list = "tuple" in str(field.type)
        brackets = f"[[{field.encode_name}]]" if is_list else f"[{field.encode_name}]"
        parts.append(f"\n## `{brackets}`\n\n{_doc(table)}")
        if description := _description(OwnerPolicy, field.encode_name):
            parts.append(f"{description}")
        parts += ["", *_rows(table)]
    parts += ["\n## Example\n\n```toml", example_policy().rstrip(), "```"]
    return "\n".join(parts) + "\n"


def _rows(struct: type[msgspec.Struct]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for field in msgspec.structs.fields(struct):
        if _table_of(field.type) is None:
            meaning = _description(struct, field.encode_name)
            yield f"| `{field.encode_name}` | {_kind(field)} | {_default(field)} | {meaning} |"


def _table_of(kind: Any) -> type[msgspec.Struct] | None:
    """The struct of a table, an optional table or a list of tables."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for arg in get_args(kind) if (found := _table_of(arg))), None)


def _doc(struct: type[msgspec.Struct]) -> str:
    return "\n".join(line.strip() for line in (struct.__doc__ or "").strip().splitlines())


def _description(struct: type[msgspec.Struct], name: str) -> str:
    info = inspect.type_info(struct)
    if not isinstance(info, inspect.StructType):
        return ""
    for field in info.fields:
        if field.encode_name == name:
            schema = getattr(field.type, "extra_json_schema", None) or {}
            return str(schema.get("description", ""))
    return ""


def _kind(field: msgspec.structs.FieldInfo) -> str:
    schema = msgspec.json.schema(field.type)
    if options := schema.get("anyOf"):
        schema = next(option for option in options if option.get("type") != "null")
    if choices := schema.get("enum"):
        return " or ".join(f"`{json.dumps(choice)}`" for choice in choices)
    if schema.get("type") == "array":
        return "list of text"
    words = {"boolean": "true or false", "integer": "whole number", "string": "text"}
    kind = words.get(schema.get("type", ""), str(schema.get("type", "")))
    if schema.get("format") == "date":
        return "date"
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most = schema.get("maximum")
    if above is not None:
        return f"{kind} over {above:g}, at most {most:,g}"
    if least is not None and most is not None:
        return f"{kind}, {least:,g} to {most:,g}" if most < 2**53 else f"{kind} from {least:g}"
    return kind


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "needed"
    default = field.default
    if default is None:
        return "none"
    if isinstance(default, float):
        return f"`{default:g}`"
    return f"`{json.dumps(default)}`"
