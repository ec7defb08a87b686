"""No input crashes a decoder, takes it over 5 ms of processor time or over 32 MiB.

The same targets and the same damage as `campaign.py`, small enough for every test run; and what
campaigns found, kept for ever under `corpus/<target>/`.
"""

import random
from collections.abc import Iterator

import pytest
from campaign import shrunk
from fuzz_guard import fault_of, peak_bytes_of
from fuzz_mutation import bombs, mutated
from fuzz_seeds import CORPUS_FOLDER
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import TARGETS, Target

each_target = pytest.mark.parametrize("name", TARGETS)
steady = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
BATCH = 40


def assert_sound(target: Target, data: bytes, *, is_memory_asked: bool = True) -> None:
    fault = fault_of(target, data, is_memory_asked=is_memory_asked)
    assert fault is None, f"{target.name}: {fault} on {len(data)} bytes {data[:200]!r}"


@each_target
def test_every_target_has_inputs_that_it_reads(name: str) -> None:
    target = TARGETS[name]
    read = 0
    for seed in target.seeds:
        try:
            target.read(seed)
        except target.refusals:
            continue
        read += 1
    assert read


@each_target
@steady
@given(data=st.binary(max_size=300))
def test_random_bytes(name: str, data: bytes) -> None:
    assert_sound(TARGETS[name], data, is_memory_asked=False)


@each_target
@steady
@given(seed=st.integers(0, 2**32 - 1))
def test_damaged_inputs(name: str, seed: int) -> None:
    target, chance = TARGETS[name], random.Random(seed)
    for _ in range(BATCH):
        data = mutated(target.seeds, chance)
        assert_sound(target, data, is_memory_asked=False)


@each_target
def test_damaged_inputs_stay_small(name: str) -> None:
    target, chance = TARGETS[name], random.Random(7)
    for _ in range(20):
        assert_sound(target, mutated(target.seeds, chance))


@each_target
def test_bombs(name: str) -> None:
    target = TARGETS[name]
    for what, bomb in bombs(target.input_max_bytes).items():
        fault = fault_of(target, bomb)
        assert fault is None, f"{name}: {fault} on {what}"


def kept_inputs() -> Iterator[tuple[str, str]]:
    for path in sorted(CORPUS_FOLDER.glob("*/*.bin")):
        yield path.parent.name, path.name


@pytest.mark.parametrize(("name", "file"), list(kept_inputs()))
def test_what_failed_once(name: str, file: str) -> None:
    assert_sound(TARGETS[name], (CORPUS_FOLDER / name / file).read_bytes())


def test_the_guard_sees_a_crash() -> None:
    def crash(data: bytes) -> object:
        return {}[data]

    fault = fault_of(Target("crash", crash, (ValueError,)), b"x")
    assert fault is not None
    assert fault.kind == "crash"


def test_the_guard_sees_a_slow_input() -> None:
    fault = fault_of(Target("slow", lambda _: sum(range(10**6))), b"x")
    assert fault is not None
    assert fault.kind == "slow"


def test_the_guard_sees_a_large_input() -> None:
    target = Target("large", lambda _: bytearray(40 * 2**20), input_max_bytes=0)
    assert peak_bytes_of(target, b"x") > 40 * 2**20
    fault = fault_of(target, b"x")
    assert fault is not None
    assert fault.kind == "large"


def test_a_found_input_is_cut_down_to_what_matters() -> None:
    def crash(data: bytes) -> object:
        if b"\xc1" in data and b"\x00" in data:
            raise KeyError
        return None

    found = bytes(range(256)) * 3
    assert sorted(shrunk(Target("crash", crash), found, "crash")) == [0x00, 0xC1]
