"""Requests that share steps: each gets what it would get alone, whoever joins and leaves."""

from collections.abc import Callable

import numpy as np
import pytest
from generation_rig import Told, alone, asked, load, together
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from edge_runtime.contract.errors import LocalError
from edge_runtime.vehicle.core.events import FinishReason
from edge_runtime.vehicle.inference.generation.batch import Answer, Key
from edge_runtime.vehicle.inference.generation.request import GenerationRequest
from edge_runtime.vehicle.inference.generation.sampler import Sampling
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.models.importers.tiny_text import ROWS, SHAPE, STOP_ID, write_tiny_text

MARGIN = 1e-3
"""Of two tokens closer than this, rounding may choose."""
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    folder = tmp_path_factory.mktemp("tiny")
    return load(write_tiny_text(folder), folder)


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 20]),
    seed=st.integers(0, 2**62),
)
requests = st.builds(
    asked,
    st.lists(st.integers(0, SHAPE.vocabulary - 1), min_size=1, max_size=80),
    st.integers(1, 24),
    sampling=samplings,
    stops=st.sampled_from([(), ("a",), ("�",), ("th", "e")]),
    stop_ids=st.sampled_from([frozenset[int](), frozenset({STOP_ID})]),
)


def is_decided(generation: Generation, request: GenerationRequest) -> tuple[bool, Answer]:
    answer, margin = alone(generation, request)
    return margin > MARGIN, answer


@FEW
@given(st.lists(requests, min_size=2, max_size=ROWS))
def test_a_batch_is_its_requests(tiny: Generation, several: list[GenerationRequest]) -> None:
    single = [is_decided(tiny, request) for request in several]
    answers = together(tiny, {(0, place): request for place, request in enumerate(several)})
    assert tiny.batch.keys == []
    for place, (decided, answer) in enumerate(single):
        if decided:
            assert answers[0, place] == answer


@FEW
@given(
    several=st.lists(requests, min_size=2, max_size=7),
    pauses=st.lists(st.integers(0, 6), min_size=7, max_size=7),
    leavers=st.sets(st.integers(0, 6), max_size=3),
)
def test_who_joins_and_leaves_changes_nothing_for_the_others(
    tiny: Generation,
    several: list[GenerationRequest],
    pauses: list[int],
    leavers: set[int],
) -> None:
    single = [is_decided(tiny, request) for request in several]
    told = Told(tiny)
    for place, request in enumerate(several):
        for _ in range(pauses[place]):
            told.step()
        while not tiny.batch.free_rows:
            told.step()
        told.add((0, place), request)
        leaver = (0, place - 1)
        if place - 1 in leavers:
            tiny.batch.remove(leaver)
            assert leaver not in tiny.batch.keys
    told.finish()
    for place, (decided, answer) in enumerate(single):
        key: Key = (0, place)
        if decided and key in told.answers:
            assert told.answers[key] == answer
            assert "".join(told.texts[key]) == answer.text
            assert tuple(told.ids[key]) == answer.ids
        assert key in told.answers or place in leavers


@FEW
@given(requests)
def test_a_request_goes_on_elsewhere_from_every_token(
    tiny: Generation, request: GenerationRequest
) -> None:
    decided, answer = is_decided(tiny, request)
    assume(decided)
    whole = Told(tiny)
    whole.add((0, 0), request)
    whole.finish()
    for done in range(len(answer.ids) + 1):
        rest = Told(tiny)
        resumed = asked(
            request.prompt,
            request.max_tokens,
            generated=answer.ids[:done],
            sampling=request.sampling,
            stops=request.stops,
            stop_ids=request.stop_ids,
        )
        rest.add((1, 0), resumed)
        rest.finish()
        assert rest.answers[1, 0] == answer
        assert tuple(rest.ids[1, 0]) == answer.ids[done:]
        before = "".join(whole.texts[0, 0][:done])
        assert before + "".join(rest.texts[1, 0]) == answer.text or done == len(answer.ids)


def test_the_tokens_that_are_there_may_be_the_whole_answer(tiny: Generation) -> None:
    prompt, done = [1, 2], [97, 98, 99]
    length, _ = alone(tiny, asked(prompt, 3, generated=done))
    assert length == Answer((97, 98, 99), "abc", FinishReason.LENGTH)
    stop, _ = alone(tiny, asked(prompt, 9, generated=done, stops=("bc",)))
    assert stop == Answer((97, 98, 99), "a", FinishReason.STOP)


def test_a_full_batch_takes_nobody_and_a_key_is_there_once(tiny: Generation) -> None:
    for place in range(ROWS):
        tiny.batch.add((0, place), asked([place + 1], 5))
    with pytest.raises(LocalError, match="no room"):
        tiny.batch.add((0, ROWS), asked([1], 5))
    tiny.batch.remove((0, 1))
    with pytest.raises(LocalError, match="here already"):
        tiny.batch.add((0, 2), asked([1], 5))
    tiny.batch.remove((9, 9))
    for key in tiny.batch.keys:
        tiny.batch.remove(key)
    assert tiny.batch.read() == []
    assert tiny.batch.decode() == []


def test_a_step_that_failed_is_done_again_as_if_it_had_not(
    tiny: Generation, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = {(0, place): asked([place + 5] * 70, 6) for place in range(3)}
    expected = together(tiny, several)
    decoder = tiny.batch.decoder
    left = {"prefill": 1, "decode": 2}

    def failing(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            result = real(*arguments)
            left[name] -= 1
            if left[name] >= 0:
                raise RuntimeError("stopped after the work, before it was told")
            return result

        return call

    for name in ("prefill", "decode"):
        monkeypatch.setattr(decoder, name, failing(name, getattr(decoder, name)))
    told = Told(tiny)
    for key, request in several.items():
        told.add(key, request)
    failures = 0
    while tiny.batch.keys:
        try:
            told.step()
        except RuntimeError:
            failures += 1
    assert failures == 3
    assert told.answers == expected


def test_prompts_are_read_in_pieces_beside_the_others_steps(tiny: Generation) -> None:
    told = Told(tiny)
    told.add((0, 0), asked([5], 20))
    told.step()
    told.add((0, 1), asked(np.arange(150).tolist(), 4))
    told.step()
    assert told.ids[0, 1] == [], "150 tokens take three pieces"
    assert len(told.ids[0, 0]) >= 2, "and nobody waits for them"
    told.finish()
    assert len(told.ids[0, 1]) == 4
