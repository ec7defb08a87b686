"""What clients ask of `/v2` besides inference, and paths that are none."""

import json

import pytest
from oip_rig import NOOP, EchoCar, Oip, x_input

from edge_runtime.contract.package import ModelSpec, TensorSpec
from edge_runtime.dispatcher.api.oip.errors import OipError
from edge_runtime.dispatcher.api.oip.infer import Interface

JSON = dict[str, object]


async def get(front: Oip, path: str) -> tuple[int, bytes]:
    status, _, body = await front.call("GET", path)
    return status, body


async def test_health_is_a_status_and_no_body(front: Oip) -> None:
    assert await get(front, "/v2/health/live") == (200, b"")
    assert await get(front, "/v2/health/ready") == (200, b"")
    front.house.broker.kill()
    await front.house.until(lambda: not front.house.service.bus.is_connected)
    assert await get(front, "/v2/health/live") == (200, b"")
    assert await get(front, "/v2/health/ready") == (400, b"")


async def test_a_model_is_ready_where_a_car_could_serve_it(front: Oip) -> None:
    assert (await get(front, "/v2/models/noop/ready"))[0] == 400
    _, _, before = await front.call("POST", "/v2/repository/index", b"")
    (entry,) = json.loads(before)
    assert entry["state"] == "UNAVAILABLE"
    assert entry["reason"] == "no car has ever connected"
    async with EchoCar(front.house.broker, "car-1", takes=False):
        await front.house.until(
            lambda: bool(front.house.service.core.fleet.counts()[0].get("ready"))
        )
        assert await get(front, "/v2/models/noop/ready") == (200, b"")
        assert await get(front, "/v2/models/noop/versions/1/ready") == (200, b"")
        _, _, after = await front.call("POST", "/v2/repository/index", b"{}")
    assert json.loads(after) == [{"name": "noop", "version": "1", "state": "READY", "reason": ""}]


async def test_what_the_server_and_a_model_are(front: Oip) -> None:
    server = json.loads((await get(front, "/v2"))[1])
    assert server["name"] == "edge-runtime"
    assert "binary_tensor_data" in server["extensions"]
    model = json.loads((await get(front, "/v2/models/noop"))[1])
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    config = json.loads((await get(front, "/v2/models/noop/config"))[1])
    assert config["input"][0]["data_type"] == "TYPE_FP32"


async def test_statistics_count_successes_and_failures(front: Oip, echo: EchoCar) -> None:
    await front.infer(x_input(1))
    echo.works = False
    await front.infer(x_input(1, parameters={"timeout": 20_000}))
    for path in ("/v2/models/noop/stats", "/v2/models/noop/versions/1/stats", "/v2/models/stats"):
        (stats,) = json.loads((await get(front, path))[1])["model_stats"]
        counts = stats["inference_stats"]
        assert (counts["success"]["count"], counts["fail"]["count"]) == (1, 1)
        assert stats["inference_count"] == 1


@pytest.mark.parametrize("what", ["load", "unload"])
async def test_loading_is_answered_for_models_that_there_are(front: Oip, what: str) -> None:
    path = "/v2/repository/models/{}/" + what
    assert (await front.call("POST", path.format("noop"), b"{}"))[0] == 200
    assert (await front.call("POST", path.format("none"), b"{}"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", NOOP, 405),
        ("PUT", NOOP, 405),
        ("DELETE", "/v2/models/noop", 405),
        ("POST", "/v2/models/noop", 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2/health/live", 405),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/noop/nothing", 404),
        ("GET", "/v2/models/no%2Fop", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/%00", 404),
        ("GET", "/v2/models/" + "x" * 5_000, 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/v2/models/infer", 404),
        ("GET", "/v2x", 404),
    ],
)
async def test_paths_that_are_none(front: Oip, method: str, path: str, status: int) -> None:
    got, _, body = await front.call(method, path, b"{}" if method != "GET" else None)
    assert got == status
    if path.startswith("/v2/"):
        assert list(json.loads(body)) == ["error"]


async def test_made_up_names_do_not_make_the_disk_be_read_each_time(
    front: Oip, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = 0

    def scan() -> None:
        nonlocal scans
        scans += 1

    monkeypatch.setattr(front.house.service.shelf, "scan", scan)
    for number in range(20):
        await get(front, f"/v2/models/none{number}")
    assert scans <= 2


def test_a_model_of_another_task_takes_an_item_and_gives_json() -> None:
    spec = ModelSpec(
        name="m",
        version="1",
        task="feature-extraction",
        licence="none",
        source="",
        files={},
        reference_ms=1.0,
        memory_bytes=0,
        inputs=(TensorSpec(name="ids", datatype="INT64", shape=(-1, -1)),),
        outputs=(),
    )
    interface = Interface(spec)
    inference = interface.read(b"caf\xc3\xa9 \xff", 0)
    assert inference.item == b"caf\xc3\xa9 \xff"
    text = json.dumps(
        {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": ["hello"]}]}
    )
    inference = interface.read(text.encode(), None)
    assert inference.item == b"hello"
    body, length = interface.answer(inference, b"\x81\xa1v\x93\x01\xc4\x01a\xc0", "m", "1")
    assert length is None
    (output,) = json.loads(body)["outputs"]
    assert json.loads(output["data"][0]) == {"v": [1, "YQ==", None]}
    two = text.replace("[1]", "[2]").replace('["hello"]', '["a", "b"]')
    with pytest.raises(OipError, match="one element"):
        interface.read(two.encode(), None)
