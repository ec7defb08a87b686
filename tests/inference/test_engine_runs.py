"""Ordinary work: runs in, events out, failures of one item only."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from engine_rig import engine_rig, row, tensors, vector

from edge_runtime.contract import limits
from edge_runtime.contract.errors import LocalError
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError
from edge_runtime.contract.tensors import Tensor, to_numpy
from edge_runtime.vehicle.core.events import (
    EngineDied,
    ItemFinished,
    ItemStarted,
    ModelLoaded,
    RunEnded,
    RunOutcome,
)
from edge_runtime.vehicle.inference.engine import EngineFull
from edge_runtime.vehicle.inference.options import EngineOptions, WorkerOptions
from edge_runtime.vehicle.models.importers.writer import write_package

Synthetic = Callable[[str], Package]


async def test_a_run_tells_each_step_in_order(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(synthetic("noop"), [vector(1, 2), vector(3)])
        ended = await rig.ended(run_id)
        assert ended.outcome is RunOutcome.COMPLETED
        kinds = [type(event) for event in rig.events]
        one_item = [ItemStarted, ItemFinished]
        assert kinds == [ModelLoaded, *one_item, *one_item, RunEnded]
        tensor = msgspec.convert(rig.outputs(run_id)[0], list[Tensor])[0]
        assert to_numpy(tensor).tolist() == [1.0, 2.0]
        assert rig.engine.resident == (synthetic("noop").digest,)


async def test_many_runs_of_one_item_all_end(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        runs = [rig.submit(synthetic("noop"), [vector(number)]) for number in range(1_000)]
        await rig.until(lambda: sum(isinstance(e, RunEnded) for e in rig.events) == len(runs))
        ended = [event.run_id for event in rig.events if isinstance(event, RunEnded)]
        assert ended == runs
        assert all(list(rig.outputs(run_id)) == [0] for run_id in runs[::100])


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (tensors(x=np.zeros(2, np.float64)), ItemError.WRONG_DATATYPE, "'x' is 'FP64'"),
        (tensors(x=np.zeros((2, 2), np.float32)), ItemError.WRONG_SHAPE, "the model takes [-1]"),
        (tensors(z=np.zeros(2, np.float32)), ItemError.WRONG_SHAPE, "'z' is unknown"),
        (msgspec.msgpack.encode([]), ItemError.WRONG_SHAPE, "['x'] are missing"),
        (b"\xc1", ItemError.UNDECODABLE_INPUT, "not a list of tensors"),
        (
            msgspec.msgpack.encode([Tensor(name="x", datatype="FP32", shape=(4,), data=b"\0")]),
            ItemError.UNDECODABLE_INPUT,
            "needs 16 bytes, got 1",
        ),
        (
            msgspec.msgpack.encode([Tensor(name="x", datatype="FP32", shape=(1 << 40,), data=b"")]),
            ItemError.WRONG_SHAPE,
            f"the limit is {limits.TENSOR_MAX_ELEMENTS}",
        ),
    ],
)
async def test_a_bad_item_fails_alone(
    synthetic: Synthetic, data: bytes, code: ItemError, says: str
) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(synthetic("noop"), [vector(1), data, vector(3)])
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert list(rig.outputs(run_id)) == [0, 2]
        assert rig.broken(run_id)[1].code is code
        assert says in rig.broken(run_id)[1].message


async def test_unknown_parameters_are_named(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(synthetic("noop"), [vector(1)], parameters={"speed": 2})
        await rig.ended(run_id)
        assert rig.broken(run_id)[0].code is ItemError.INVALID_PARAMETERS
        assert "speed" in rig.broken(run_id)[0].message


async def test_a_result_over_the_limit_fails_alone(synthetic: Synthetic) -> None:
    options = EngineOptions(worker=WorkerOptions(output_max_bytes=100))
    async with engine_rig(options) as rig:
        run_id = rig.submit(synthetic("noop"), [vector(1), vector(*range(50))])
        await rig.ended(run_id)
        assert list(rig.outputs(run_id)) == [0]
        assert rig.broken(run_id)[1].code is ItemError.RESULT_TOO_LARGE
        assert "the limit is 100" in rig.broken(run_id)[1].message


async def test_a_model_that_does_not_load_ends_its_run_only(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    good = synthetic("noop")
    spec = msgspec.structs.replace(good.spec, name="broken")
    # A protobuf message that is no model.
    broken = write_package(spec, {"model.onnx": b"\x08\x07"}, tmp_path / "broken")
    async with engine_rig() as rig:
        bad_run = rig.submit(broken, [vector(1)])
        good_run = rig.submit(good, [vector(1)])
        ended = await rig.ended(bad_run)
        assert ended.outcome is RunOutcome.MODEL_FAILED
        assert "model.onnx" in ended.message
        assert (await rig.ended(good_run)).outcome is RunOutcome.COMPLETED


async def test_a_model_toml_that_describes_another_model_is_refused(
    synthetic: Synthetic, tmp_path: Path
) -> None:
    good = synthetic("noop")
    inputs = (msgspec.structs.replace(good.spec.inputs[0], datatype="INT8"),)
    spec = msgspec.structs.replace(good.spec, inputs=inputs)
    lying = write_package(
        spec, {"model.onnx": good.path_of("model").read_bytes()}, tmp_path / "lying"
    )
    async with engine_rig() as rig:
        ended = await rig.ended(rig.submit(lying, [vector(1)]))
        assert ended.outcome is RunOutcome.MODEL_FAILED
        assert "declares inputs" in ended.message


async def test_the_least_recently_used_model_makes_room(synthetic: Synthetic) -> None:
    options = EngineOptions(worker=WorkerOptions(resident_models_max=1))
    async with engine_rig(options) as rig:
        noop, mlp = synthetic("noop"), synthetic("mlp5ms")
        for package, data in ((noop, vector(1)), (mlp, row(256)), (noop, vector(1))):
            await rig.ended(rig.submit(package, [data]))
            assert rig.engine.resident == (package.digest,)
        assert sum(isinstance(event, ModelLoaded) for event in rig.events) == 3


async def test_more_than_the_engine_may_hold_is_refused(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        rig.engine.freeze()
        for _ in range(limits.ENGINE_RUNS_MAX):
            rig.submit(synthetic("noop"), [vector(1)])
        with pytest.raises(EngineFull, match=str(limits.ENGINE_RUNS_MAX)):
            rig.submit(synthetic("noop"), [vector(1)])


async def test_a_run_id_is_used_once_at_a_time(synthetic: Synthetic) -> None:
    async with engine_rig() as rig:
        rig.submit(synthetic("noop"), [vector(1)])
        rig._next_run_id = 1
        with pytest.raises(LocalError, match="run 1 is already here"):
            rig.submit(synthetic("noop"), [vector(1)])


async def test_without_work_the_process_goes_and_comes_back(synthetic: Synthetic) -> None:
    async with engine_rig(EngineOptions(idle_exit_ms=50)) as rig:
        await rig.ended(rig.submit(synthetic("noop"), [vector(1)]))
        pidfd = os.pidfd_open(rig.pid)
        try:
            gone = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, gone.set)
            await asyncio.wait_for(gone.wait(), 30)
            asyncio.get_running_loop().remove_reader(pidfd)
        finally:
            os.close(pidfd)
        assert rig.engine.pid is None
        assert rig.engine.resident == ()
        run_id = rig.submit(synthetic("noop"), [vector(2)])
        assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
        assert not any(isinstance(event, EngineDied) for event in rig.events)


async def test_a_process_that_cannot_start_says_why(synthetic: Synthetic) -> None:
    options = EngineOptions(worker=WorkerOptions(memory_max_bytes=64 << 20))
    async with engine_rig(options) as rig:
        rig.submit(synthetic("noop"), [vector(1)])
        died = await rig.event(EngineDied)
        assert died.run_id is None
        assert died.index is None
        assert died.code is ItemError.ENGINE_KILLED
        assert "it last said" in died.message
        assert rig.engine.deaths_without_work == 1


async def test_a_car_without_work_loads_no_inference_library() -> None:
    script = (
        "import sys; import edge_runtime.vehicle.inference.engine; "
        "import edge_runtime.vehicle.models.store; "
        "heavy = {'numpy', 'onnxruntime', 'cv2', 'tokenizers', 'http.client'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
