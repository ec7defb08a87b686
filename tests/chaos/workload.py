"""The jobs of a campaign: number `n` of a seed is always the same job, in every process.

So a requester that was killed submits the very same body again under the same key, and the
checker knows every answer: `noop` gives its input back, `mlp5ms` and `chain` are computed
here once for each of a few inputs.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from edge_runtime.contract.http import ItemInput
from edge_runtime.contract.messages import ResultError
from edge_runtime.contract.tensors import Tensor, from_numpy
from edge_runtime.vehicle.models.importers.synthetic import CHAIN_WIDTH, MLP_WIDTH

MLP_INPUTS = 16
CHAIN_INPUTS = 3
WIDTHS = {"mlp5ms": MLP_WIDTH, "chain": CHAIN_WIDTH}
"""Inputs of the models that take their time: 5 ms and 60 ms an item."""
REAL_MODEL = "minilm"
SENTENCES = ("A parked car.", "The owner returns.", "Ten thousand idle computers.", "Rain.")
CANCELLED_SHARE = 0.04
DELETED_SHARE = 0.06
LARGE_SHARE = 0.08
HURRIED_SHARE = 0.04
LAST = -1
"""The number of a campaign's last job, a plain one."""
DAY_S = 24 * 3600.0
ENDLESS = "loop-when-positive"
ENDLESS_EVERY = 80
"""One job in so many has one item that never ends: a car must be freed of it, and it must fail."""

_encode = msgspec.msgpack.Encoder(order="sorted").encode


@dataclass(frozen=True)
class JobPlan:
    """One job: `values` decide its items; a cancel comes after so many results, if at all."""

    key: str
    model: str
    values: tuple[int, ...]
    cancel_after: int | None
    is_deleted: bool
    deadline_s: float = DAY_S

    def items(self) -> list[ItemInput]:
        return [_item(self.model, value) for value in self.values]

    def expected(self, models: Path) -> tuple[str, ...]:
        """The digest of every item's output; "" where only the car can know it."""
        return tuple(_answer(self.model, value, models) for value in self.values)


def plan(seed: int, number: int, *, has_real_model: bool, large_items: int) -> JobPlan:
    """Job `number` of a campaign; `large_items` is the size of its few large ones."""
    if number == LAST:
        return JobPlan(f"seed{seed}-last", "noop", (1,), cancel_after=None, is_deleted=False)
    dice = random.Random(f"{seed}/{number}")
    share = dice.random()
    if number % 12 == 1 or share < LARGE_SHARE:
        model, count = "noop", dice.randint(large_items, 3 * large_items)
    elif share < 0.5:
        model, count = "noop", dice.randint(1, 60)
    elif share < 0.65:
        model, count = "chain", dice.randint(10, 40)
    elif share < 0.95 or not has_real_model:
        model, count = "mlp5ms", dice.randint(1, 40)
    else:
        model, count = REAL_MODEL, dice.randint(1, 8)
    if number % ENDLESS_EVERY == 7:
        model, count = ENDLESS, dice.randint(2, 12)
    first = dice.randrange(1 << 22)
    kinds = {"mlp5ms": MLP_INPUTS, "chain": CHAIN_INPUTS, REAL_MODEL: len(SENTENCES)}.get(
        model, 1 << 23
    )
    return JobPlan(
        key=f"seed{seed}-job{number}",
        model=model,
        values=tuple((first + index) % kinds for index in range(count)),
        cancel_after=dice.randrange(count) if dice.random() < CANCELLED_SHARE else None,
        is_deleted=dice.random() < DELETED_SHARE,
        deadline_s=dice.uniform(1.0, 8.0) if dice.random() < HURRIED_SHARE else DAY_S,
    )


def _item(model: str, value: int) -> ItemInput:
    if model == REAL_MODEL:
        return ItemInput(media_type="text/plain", text=SENTENCES[value])
    match model:
        case "noop":
            array = _noop_input(value)
        case "mlp5ms" | "chain":
            array = _row_input(model, value)
        case _:
            array = _endless_input(value)
    data = msgspec.msgpack.encode([from_numpy("x", array)])
    return ItemInput(media_type="application/x-msgpack", data=data)


def _noop_input(value: int) -> Any:
    return np.array([value, -value], np.float32)  # exact: values stay under 2**24


def _row_input(model: str, value: int) -> Any:
    return np.full((1, WIDTHS[model]), value / MLP_INPUTS, np.float32)


def _endless_input(value: int) -> Any:
    """Negative, hence given back; but one in a job, by its value, never ends."""
    return np.array([1.0 if value % 13 == 0 else -1.0 - value % 13], np.float32)


def _answer(model: str, value: int, models: Path) -> str:
    match model:
        case "noop":
            return digest_of([from_numpy("y", _noop_input(value))])
        case "mlp5ms" | "chain":
            return _row_answer(model, value, models)
        case "loop-when-positive" if value % 13:
            return digest_of([from_numpy("y", _endless_input(value))])
        case _:
            return ""


@cache
def _row_answer(model: str, value: int, models: Path) -> str:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        models / model / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(["y"], {"x": _row_input(model, value)})
    return digest_of([from_numpy("y", output)])


def digest_of(output: list[Tensor] | Any, error: ResultError | None = None) -> str:
    """What stands for a result in every history; errors by their code."""
    if error is not None:
        return f"error:{error.code.value}"
    return hashlib.blake2b(_encode(output), digest_size=8).hexdigest()


def digest_of_raw(output: bytes) -> str:
    """`digest_of` for an output that is still MessagePack."""
    return digest_of(msgspec.msgpack.decode(output))
