"""OpenAI's own client, unmodified, against a broker, a dispatcher and two cars: texts, streamed.

The model is a tiny one of random weights: what it writes means nothing, and is the same anywhere.
"""

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from services import FourProcesses, four_processes

from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

READY_S = 60.0
ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models"))
MESSAGES: Any = [{"role": "user", "content": "the inn"}]
LONG: Any = {"model": "tiny-text", "messages": MESSAGES, "extra_body": {"ignore_eos": True}}


def until_ready(client: openai.OpenAI, model: str = "tiny-text") -> None:
    deadline_s = time.monotonic() + READY_S
    while True:
        try:
            client.completions.create(model=model, prompt="the", max_tokens=1)
        except (openai.APIConnectionError, openai.InternalServerError):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FourProcesses]:
    folder = tmp_path_factory.mktemp("chat")
    write_tiny_text(folder / "models")
    with four_processes(folder, folder / "models") as four:
        with client_of(four) as client:
            until_ready(client)
        yield four


def client_of(house: FourProcesses) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def client(house: FourProcesses) -> Iterator[openai.OpenAI]:
    with client_of(house) as opened:
        yield opened


def text_of(stream: Any) -> tuple[str, str | None, Any]:
    """What a stream of chat chunks says: its text, why it ended, its usage."""
    text, finish, usage = "", None, None
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish, usage


def test_one_answer_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**LONG, max_tokens=12)
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == 12 + answer.usage.prompt_tokens


def test_what_is_streamed_is_what_is_answered_at_once(client: openai.OpenAI) -> None:
    asked = LONG | {"max_tokens": 60, "temperature": 0.8, "seed": 5}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    text, finish, usage = text_of(stream)
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason == "length"
    assert usage == whole.usage


def test_completions_continue_a_prompt(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny-text", "prompt": "the inn", "max_tokens": 9}
    whole = client.completions.create(**asked).choices[0].text
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == whole


def test_a_seed_that_nobody_names_is_another_each_time(client: openai.OpenAI) -> None:
    asked = LONG | {"max_tokens": 40, "temperature": 1.5}
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "nobody"}, (404, "model_not_found", "model")),
        ({"n": 2}, (400, "unsupported_value", "n")),
        ({"messages": []}, (400, "invalid_request", "messages")),
        ({"temperature": -1.0}, (400, "invalid_parameters", None)),
        ({"max_tokens": 10**9}, (400, "invalid_parameters", None)),
        ({"messages": [{"role": "user", "content": "x " * 4000}]}, (400, "input_too_large", None)),
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_what_is_wrong_has_its_status_and_code(
    client: openai.OpenAI,
    changes: dict[str, Any],
    expected: tuple[int, str, str | None],
    is_streamed: bool,
) -> None:
    asked: Any = {"model": "tiny-text", "messages": MESSAGES, "stream": is_streamed} | changes
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**asked)
    body: Any = refused.value.body
    assert (refused.value.status_code, body["code"], body["param"]) == expected
    assert body["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": 1}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(house: FourProcesses, body: bytes) -> None:
    connection = http.client.HTTPConnection(house.url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        assert answer.status == 400
        error = json.loads(answer.read())["error"]
    finally:
        connection.close()
    assert error["type"] == "invalid_request_error"


@pytest.mark.models
def test_a_text_goes_on_when_its_car_dies(tmp_path: Path) -> None:
    if not (MODELS / "smollm2").exists():
        message = f"{MODELS / 'smollm2'} is missing; run `make models`"
        pytest.fail(message) if os.environ.get("CI") == "true" else pytest.skip(message)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2").symlink_to(MODELS / "smollm2")
    asked: Any = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Tell me a story about a car."}],
        "max_tokens": 40,
    }
    with four_processes(tmp_path, tmp_path / "models") as four, client_of(four) as client:
        until_ready(client, "smollm2")
        whole = client.chat.completions.create(**asked).choices[0].message.content
        # Two at once are on two cars, so one of them loses its car.
        streams = [client.chat.completions.create(**asked, stream=True) for _ in range(2)]
        for stream in streams:
            next(iter(stream))
        four.cars[0].kill()
        texts = [text_of(stream)[0] for stream in streams]
    assert texts == [whole, whole]


def test_the_example_prints_what_the_car_writes(
    house: FourProcesses, client: openai.OpenAI
) -> None:
    answer = client.chat.completions.create(model="tiny-text", messages=MESSAGES, max_tokens=200)
    settings = {"OPENAI_BASE_URL": f"{house.url}/v1", "MODEL": "tiny-text"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "chat" / "chat.py", "the", "inn"],
        env=os.environ | settings,
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.decode() == f"{answer.choices[0].message.content}\n"
