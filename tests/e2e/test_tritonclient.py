"""Triton's own client, unmodified, against real processes: a broker, a dispatcher and two cars."""

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from services import FourProcesses, four_processes
from tritonclient.utils import InferenceServerException

from edge_runtime.vehicle.models.importers.synthetic import (
    CHAIN_WIDTH,
    MLP_WIDTH,
    write_synthetic,
)

READY_S = 60.0


@dataclass
class House:
    four: FourProcesses

    @property
    def address(self) -> str:
        return self.four.url.removeprefix("http://")


def until(is_so: Callable[[], bool], timeout_s: float = READY_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def is_ready(client: triton.InferenceServerClient, model: str) -> bool:
    try:
        return bool(client.is_model_ready(model))
    except (OSError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("oip")
    models = folder / "models"
    models.mkdir()
    for name in ("noop", "mlp5ms", "chain"):
        write_synthetic(name, models)
    with four_processes(folder, models) as four:
        running = House(four)
        with triton.InferenceServerClient(running.address) as client:
            until(lambda: is_ready(client, "noop"))
        yield running


@pytest.fixture
def client(house: House) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(house.address, concurrency=8) as opened:
        yield opened


def x(values: np.ndarray, **how: Any) -> triton.InferInput:
    tensor = triton.InferInput("x", values.shape, "FP32")
    tensor.set_data_from_numpy(values, **how)
    return tensor


ROW = np.full((1, MLP_WIDTH), 0.5, np.float32)
FLOATS = np.array([1.5, -2.0, 3.25], np.float32)


def test_health_metadata_configuration_and_index(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("noop")
    assert client.is_model_ready("noop", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("mlp5ms", "1")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, MLP_WIDTH]}]
    assert client.get_model_config("noop")["platform"] == "onnx_onnxv1"
    index = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
    assert index == {"noop": "READY", "mlp5ms": "READY", "chain": "READY"}
    client.load_model("noop")
    client.unload_model("noop")
    assert client.is_model_ready("noop")


@pytest.mark.parametrize("request_packing", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_packing", [None, "gzip", "deflate"])
def test_inference_packed_or_not(
    client: triton.InferenceServerClient, request_packing: str | None, answer_packing: str | None
) -> None:
    many = np.arange(400, dtype=np.float32)
    result = client.infer(
        "noop",
        [x(many)],
        request_compression_algorithm=request_packing,
        response_compression_algorithm=answer_packing,
    )
    assert np.array_equal(result.as_numpy("y"), many)


@pytest.mark.parametrize("in_binary", [True, False])
@pytest.mark.parametrize("out_binary", [True, False, None])
def test_inference_in_every_form(
    client: triton.InferenceServerClient, in_binary: bool, out_binary: bool | None
) -> None:
    outputs = None
    if out_binary is not None:
        outputs = [triton.InferRequestedOutput("y", binary_data=out_binary)]
    tensor = x(FLOATS, binary_data=in_binary)
    result = client.infer("noop", [tensor], outputs=outputs, request_id="mine")
    assert np.array_equal(result.as_numpy("y"), FLOATS)
    assert result.get_response()["id"] == "mine"


def test_a_tensor_that_does_not_travel_inline_reaches_the_model_and_comes_back(
    client: triton.InferenceServerClient, house: House
) -> None:
    # The model gives back what it takes.
    values = np.arange(1_000_000, dtype=np.float32)
    assert np.array_equal(client.infer("noop", [x(values)]).as_numpy("y"), values)
    health = f"{house.four.url}/v1/health"
    with urllib.request.urlopen(health, timeout=10) as answer:  # noqa: S310 - http only
        counters = json.loads(answer.read())["counters"]
    assert (counters["inputs_lent"], counters["outputs_received"]) == (1, 1)


def test_a_body_made_and_read_by_hand(client: triton.InferenceServerClient) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([x(FLOATS)])
    assert length is not None
    answer = client._post("v2/models/noop/infer", body, {
        "Inference-Header-Content-Length": str(length)
    }, None)  # fmt: skip
    said = answer.get("inference-header-content-length")
    result = triton.InferenceServerClient.parse_response_body(
        answer.read(), header_length=None if said is None else int(said)
    )
    assert np.array_equal(result.as_numpy("y"), FLOATS)


def test_async_requests_of_the_sync_client(client: triton.InferenceServerClient) -> None:
    asked = [client.async_infer("noop", [x(FLOATS + n)]) for n in range(20)]
    for number, one in enumerate(asked):
        assert np.array_equal(one.get_result().as_numpy("y"), FLOATS + number)


async def test_the_aio_client(house: House) -> None:
    async with triton_aio.InferenceServerClient(house.address) as client:
        assert await client.is_server_ready()
        answers = await asyncio.gather(*(client.infer("noop", [x(FLOATS + n)]) for n in range(100)))
        for number, answer in enumerate(answers):
            assert np.array_equal(answer.as_numpy("y"), FLOATS + number)
        with pytest.raises(InferenceServerException, match="not found"):
            await client.infer("nothing", [x(FLOATS)])


def test_errors_are_read_by_the_client(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="not found"):
        client.infer("nothing", [x(FLOATS)])
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        client.infer("mlp5ms", [x(FLOATS)])
    with pytest.raises(InferenceServerException, match="unexpected inference input"):
        client.infer("noop", [triton.InferInput("z", [0], "FP32")])
    with pytest.raises(InferenceServerException, match="not found"):
        client.get_model_metadata("noop", "9")


def test_the_example_runs(house: House) -> None:
    example = Path(__file__).parents[2] / "examples" / "triton_infer.py"
    said = subprocess.run(
        [sys.executable, str(example), house.address, "noop", "1.5", "2.5"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert said.stdout == "y [1.5, 2.5]\n"


def test_the_timeout_is_a_deadline(client: triton.InferenceServerClient) -> None:
    row = np.zeros((1, CHAIN_WIDTH), np.float32)
    client.infer("chain", [x(row)])
    with pytest.raises(InferenceServerException, match="deadline"):
        client.infer("chain", [x(row)], timeout=1_000)


def test_statistics_count_what_was_asked(client: triton.InferenceServerClient) -> None:
    def successes() -> int:
        (stats,) = client.get_inference_statistics("mlp5ms")["model_stats"]
        count: int = stats["inference_stats"]["success"]["count"]
        return count

    before = successes()
    for _ in range(5):
        client.infer("mlp5ms", [x(ROW)])
    assert successes() == before + 5
    everything = client.get_inference_statistics()["model_stats"]
    assert {stats["name"] for stats in everything} == {"noop", "mlp5ms", "chain"}


def cars_online(house: House) -> int:
    request = urllib.request.Request(  # noqa: S310 - http only
        house.four.url + "/v1/fleet", headers={"X-Tenant": "*"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - http only
        cars = json.load(answer)["cars"]
    return sum(car["availability"] in {"ready", "working"} and car["online"] for car in cars)


@pytest.mark.timeout(180)
def test_a_car_that_is_killed_is_not_noticed(house: House) -> None:
    """Every request is answered, each with its own, while each car is killed and comes back."""
    answers: queue.Queue[tuple[float, Any]] = queue.Queue()
    is_over = threading.Event()

    def ask(worker: int) -> None:
        number = float(worker)
        with triton.InferenceServerClient(house.address) as client:
            while not is_over.is_set():
                number += 10.0
                try:
                    result = client.infer("noop", [x(np.array([number], np.float32))])
                    answers.put((number, float(result.as_numpy("y")[0])))
                except Exception as error:  # noqa: BLE001 - the test looks at every one
                    answers.put((number, error))

    workers = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    try:
        for car in house.four.cars:
            until(lambda: answers.qsize() > 50)
            seen = answers.qsize()
            car.kill()
            until(lambda seen=seen: answers.qsize() > seen + 100)  # type: ignore[misc]  # bound now
            car.start()
            until(lambda: cars_online(house) == len(house.four.cars))
    finally:
        is_over.set()
        for worker in workers:
            worker.join()
    assert not answers.empty()
    while not answers.empty():
        asked, got = answers.get()
        assert asked == got
