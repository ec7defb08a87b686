"""OpenAI's own client and the real MiniLM: embeddings at once and by batch, on real processes."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest
from services import FourProcesses, four_processes

ROOT = Path(__file__).parents[2]
MODELS = Path(os.environ.get("EDGE_RUNTIME_TEST_MODELS", ROOT / ".data" / "models"))
WAIT_S = 90.0
TEXTS = ["A dog barks at night.", "The hound is loud after dark.", "Interest rates have risen."]

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    if not (MODELS / "minilm").is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("the models are missing: make models")
        pytest.skip("needs the models: make models")
    folder = tmp_path_factory.mktemp("minilm")
    with four_processes(folder, MODELS) as four, client_of(four) as opened:
        yield opened


def client_of(house: FourProcesses) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{house.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)


def vectors(client: openai.OpenAI) -> np.ndarray:
    """Embeddings as soon as a car gives them: the first ones have to load the model."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            made = client.embeddings.create(model="minilm", input=TEXTS)
        except (openai.InternalServerError, openai.APIConnectionError):
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        else:
            return np.array([one.embedding for one in made.data])


def test_likeness_is_what_it_should_be_and_a_batch_gives_the_same(client: openai.OpenAI) -> None:
    live = vectors(client)
    assert live.shape == (3, 384)
    likeness = live @ live.T
    assert likeness[0, 1] > likeness[0, 2] + 0.3
    lines = [
        {
            "custom_id": f"t{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "minilm", "input": text},
        }
        for n, text in enumerate(TEXTS)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("texts.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
    )
    deadline_s = time.monotonic() + WAIT_S
    while batch.status not in {"completed", "failed", "expired"}:
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.completed == 3, batch
    answers = [
        json.loads(line)
        for line in client.files.content(batch.output_file_id or "").content.splitlines()
    ]
    by_id = {
        answer["custom_id"]: answer["response"]["body"]["data"][0]["embedding"]
        for answer in answers
    }
    np.testing.assert_allclose([by_id[f"t{n}"] for n in range(3)], live, atol=1e-6)


def test_a_text_that_is_too_long_is_refused_with_the_limit(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="minilm", input="x" * 70_000)
    assert refused.value.param == "input"
