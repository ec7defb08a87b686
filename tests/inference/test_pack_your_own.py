"""The example makes a package that a car runs."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from engine_rig import engine_rig, tensors

from edge_runtime.contract.package import Package, read_package
from edge_runtime.contract.tensors import Tensor, to_numpy

EXAMPLE = Path(__file__).parents[2] / "examples" / "models" / "pack_your_own.py"


@pytest.fixture
def packed(tmp_path: Path) -> Package:
    folder = tmp_path / "mine"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(folder)], check=True, capture_output=True, text=True
    )
    package = read_package(folder)
    assert package.digest in done.stdout
    return package


async def test_the_example_package_computes(packed: Package) -> None:
    async with engine_rig() as rig:
        run_id = rig.submit(packed, [tensors(celsius=np.array([-40, 0, 100], np.float32))])
        await rig.ended(run_id)
        (tensor,) = msgspec.convert(rig.outputs(run_id)[0], list[Tensor])
        assert tensor.name == "fahrenheit"
        assert to_numpy(tensor).tolist() == [-40, 32, 212]
