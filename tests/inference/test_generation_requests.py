"""What may be asked of a generation, and what is said of what may not."""

import json
from typing import Any

import msgspec
import pytest
from generation_rig import load
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.generation.request import GenerationRequest
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.tasks.base import ItemFailure
from edge_runtime.vehicle.models.importers.tiny_text import CONTEXT_TOKENS, STOP_ID, write_tiny_text

START, END = STOP_ID - 1, STOP_ID


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    folder = tmp_path_factory.mktemp("tiny")
    return load(write_tiny_text(folder), folder)


def read(tiny: Generation, item: object, **parameters: Any) -> GenerationRequest:
    data = item if isinstance(item, bytes) else json.dumps(item).encode()
    return tiny.read(data, "application/json", parameters)


def refusal(tiny: Generation, item: object, **parameters: Any) -> tuple[ItemError, str]:
    with pytest.raises(ItemFailure) as caught:
        read(tiny, item, **parameters)
    return caught.value.code, caught.value.detail


def test_a_plain_text_is_the_prompt(tiny: Generation) -> None:
    request = tiny.read("thé".encode(), "text/plain", {"max_tokens": 7, "stop": "x"})
    assert request.prompt == (256, *"é".encode())
    assert (request.max_tokens, request.stops) == (7, ("x",))
    assert request.stop_ids == {END}
    assert request.sampling.temperature == 0


def test_what_an_item_says_goes_before_what_its_job_says(tiny: Generation) -> None:
    item = {"prompt": [1, 2], "seed": 5, "temperature": 0.5, "stop": ["a", "b"], "generated": [7]}
    request = read(tiny, item, seed=4, top_p=0.25, ignore_eos=True)
    assert (request.prompt, request.generated) == ((1, 2), (7,))
    sampling = request.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (5, 0.5, 0.25)
    assert (request.stops, request.stop_ids) == (("a", "b"), frozenset())


def test_a_conversation_is_written_as_the_package_says(tiny: Generation) -> None:
    item = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "<|im_end|>\n"},
        ]
    }
    said = read(tiny, item).prompt
    marks = {START: b"<s>", END: b"<e>"}
    table = tiny.batch.token_bytes
    written = b"".join(marks.get(token, table[token]) for token in said)
    # A mark that a person writes is text.
    assert written == b"<s>system\ns<e>\n<s>user\n<|im_end|>\n<e>\n<s>assistant\n"


def test_an_answer_ends_with_the_context_at_the_latest(tiny: Generation) -> None:
    request = read(tiny, {"prompt": [1] * (CONTEXT_TOKENS - 3)}, max_tokens=100)
    assert request.max_tokens == 3
    assert read(tiny, {"prompt": [1]}).max_tokens == CONTEXT_TOKENS - 1


BAD_NUMBERS: list[tuple[str, Any]] = [
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 10**9),
    ("max_tokens", 10**30),
    ("max_tokens", "many"),
    ("max_tokens", 1.5),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", -0.1),
    ("temperature", 1e9),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("seed", -1),
    ("stop", ""),
    ("stop", ["a"] * (limits.GENERATION_STOPS_MAX + 1)),
    ("stop", "a" * (limits.GENERATION_STOP_MAX_CHARS + 1)),
    ("ignore_eos", "yes"),
    ("n", 2),
]


@pytest.mark.parametrize(("name", "value"), BAD_NUMBERS)
def test_a_parameter_that_cannot_be_is_named(tiny: Generation, name: str, value: object) -> None:
    code, message = refusal(tiny, {"prompt": "a"}, **{name: value})
    assert code is ItemError.INVALID_PARAMETERS
    assert name in message


@pytest.mark.parametrize(
    ("item", "code", "says"),
    [
        (b"", ItemError.UNDECODABLE_INPUT, "not JSON"),
        (b"\xff", ItemError.UNDECODABLE_INPUT, "not JSON"),
        (b"[" * 60_000, ItemError.UNDECODABLE_INPUT, "not JSON"),
        ([], ItemError.UNDECODABLE_INPUT, "not a JSON object"),
        ({}, ItemError.UNDECODABLE_INPUT, "either a prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": ""}]},
         ItemError.UNDECODABLE_INPUT, "either a prompt or messages"),
        ({"prompt": ""}, ItemError.UNDECODABLE_INPUT, "no tokens"),
        ({"prompt": []}, ItemError.UNDECODABLE_INPUT, "no tokens"),
        ({"prompt": [264]}, ItemError.INVALID_PARAMETERS, "token 264 is not one of the"),
        ({"prompt": [-1]}, ItemError.INVALID_PARAMETERS, "prompt"),
        ({"prompt": "a", "generated": [999]}, ItemError.INVALID_PARAMETERS, "generated: token 999"),
        ({"prompt": "a", "generated": [1, 1], "max_tokens": 1},
         ItemError.INVALID_PARAMETERS, "generated: has 2 tokens; max_tokens leaves 1"),
        ({"messages": []}, ItemError.INVALID_PARAMETERS, "messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, ItemError.INVALID_PARAMETERS, "role"),
        ({"messages": [{"role": "user", "content": 1}]}, ItemError.INVALID_PARAMETERS, "content"),
        ({"prompt": [1] * CONTEXT_TOKENS}, ItemError.INPUT_TOO_LARGE,
         f"has at least {CONTEXT_TOKENS} tokens; the limit is {CONTEXT_TOKENS - 1}"),
        ({"messages": [{"role": "user", "content": "a" * 60_000}]}, ItemError.INPUT_TOO_LARGE,
         f"has at least {CONTEXT_TOKENS} tokens; the limit is {CONTEXT_TOKENS - 1}"),
        ({"prompt": "a" * limits.INPUT_TEXT_MAX_BYTES}, ItemError.INPUT_TOO_LARGE,
         f"the limit is {limits.INPUT_TEXT_MAX_BYTES}"),
    ],
)  # fmt: skip
def test_an_item_that_cannot_be_says_why(
    tiny: Generation, item: object, code: ItemError, says: str
) -> None:
    found, message = refusal(tiny, item)
    assert found is code
    assert says in message


def test_a_text_that_is_no_text_is_refused(tiny: Generation) -> None:
    with pytest.raises(ItemFailure, match="not UTF-8"):
        tiny.read(b"\xff\xfe", "text/plain", {})


def test_a_model_without_a_chat_template_says_so(tiny: Generation) -> None:
    from dataclasses import replace  # noqa: PLC0415 - this test alone changes the model

    mute = replace(tiny, model=msgspec.structs.replace(tiny.model, chat=None))
    code, message = refusal(mute, {"messages": [{"role": "user", "content": "a"}]})
    assert code is ItemError.INVALID_PARAMETERS
    assert "no chat template" in message


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    ["prompt", "messages", "generated", "max_tokens", "temperature", "top_p", "top_k", "seed"]
)


@settings(deadline=None)
@given(item=st.dictionaries(NAMES, JSON_VALUES), parameters=st.dictionaries(NAMES, JSON_VALUES))
def test_whatever_is_asked_is_read_or_refused(
    tiny: Generation, item: dict[str, Any], parameters: dict[str, Any]
) -> None:
    try:
        request = tiny.read(json.dumps(item).encode(), "application/json", parameters)
    except ItemFailure:
        return
    assert 1 <= len(request.prompt) < CONTEXT_TOKENS
    assert 1 <= request.max_tokens <= CONTEXT_TOKENS - len(request.prompt)
