"""kill -9 of a real dispatcher in the midst of an upload and of a batch, by OpenAI's own client."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
import pytest
from services import FourProcesses, four_processes

from edge_runtime.vehicle.models.importers.tiny_text import write_tiny_text

WAIT_S = 90.0
# A car writes for seconds: long enough to be found in the middle of it.
LINES = 1_200
TOKENS = 128
TWICE = 2
BROKEN = b'{"custom_id": "broken"}\n'
FORM = (
    b'--cut-here\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--cut-here\r\nContent-Disposition: form-data; name="file"; filename="night.jsonl"\r\n\r\n'
)

T = TypeVar("T")


def line(number: int) -> bytes:
    body = {"model": "tiny-text", "prompt": f"the {number}", "max_tokens": TOKENS}
    request = {
        "custom_id": f"line-{number}",
        "method": "POST",
        "url": "/v1/completions",
        "body": body,
    }
    return json.dumps(request).encode() + b"\n"


def until(found: Callable[[], T | None]) -> T:
    """What is found at last, while the dispatcher is away or not so far."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            value = found()
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError):
            value = None
        if value is not None:
            return value
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.02)


def kill_in_the_middle_of_an_upload(four: FourProcesses, data: bytes) -> None:
    """Send half of a file; when some of it has come, the dispatcher is killed."""
    files = Path(f"{four.store}-files")
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        "Content-Type: multipart/form-data; boundary=cut-here\r\n"
        f"Content-Length: {len(FORM) + len(data)}\r\n\r\n"
    )
    address = urlsplit(four.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(head.encode() + FORM + data[: len(data) // 2])
        until(lambda: list(files.iterdir()) or None)
        four.dispatcher.kill()
    assert list(files.iterdir()), "the upload was not in its middle"
    four.dispatcher.start()


def text_of(client: openai.OpenAI, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    content = until(lambda: client.files.content(file_id)).text
    # Not `splitlines`: what was written may hold U+0085, U+2028 or U+2029, which end no line here.
    return [json.loads(entry) for entry in content.split("\n") if entry]


def batch_over(client: openai.OpenAI, batch_id: str) -> Any:
    def found() -> Any:
        batch = client.batches.retrieve(batch_id)
        return batch if batch.status in {"completed", "failed", "expired", "cancelled"} else None

    return until(found)


@pytest.mark.timeout(240)
def test_a_batch_outlives_its_dispatcher_twice(tmp_path: Path) -> None:
    write_tiny_text(tmp_path / "models")
    data = b"".join(map(line, range(LINES))) + BROKEN
    with (
        four_processes(tmp_path, tmp_path / "models", cars=("car-1",)) as four,
        openai.OpenAI(base_url=f"{four.url}/v1", api_key="none", max_retries=0) as client,
    ):
        until(lambda: client.models.list().data)
        for _ in range(TWICE):
            kill_in_the_middle_of_an_upload(four, data)
            assert until(client.files.list).data == []
            assert list(Path(f"{four.store}-files").iterdir()) == []
        file = until(lambda: client.files.create(file=("night.jsonl", data), purpose="batch"))
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        # Once while its lines become jobs, once while cars work on them.
        four.dispatcher.kill()
        four.dispatcher.start()

        def has_begun() -> bool | None:
            counts = client.batches.retrieve(batch.id).request_counts
            return True if counts is not None and counts.completed else None

        until(has_begun)
        (car,) = four.cars
        with car.paused():  # else it might be done before the dispatcher dies
            four.dispatcher.kill()
            four.dispatcher.start()
            between = until(lambda: client.batches.retrieve(batch.id))
            assert between.status in {"in_progress", "finalizing"}, "it was not in its middle"
        over = batch_over(client, batch.id)
        outputs = text_of(client, over.output_file_id)
        errors = text_of(client, over.error_file_id)
    assert over.status == "completed"
    assert Counter(entry["custom_id"] for entry in outputs) == {
        f"line-{number}": 1 for number in range(LINES)
    }
    assert {entry["response"]["status_code"] for entry in outputs} == {200}
    assert [entry["custom_id"] for entry in errors] == ["broken"]
