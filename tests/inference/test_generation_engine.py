"""Text generation through the real engine process: streams, joins, cancels, stops, resumption."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from engine_rig import EngineRig, engine_rig, vector

from edge_runtime.contract.messages import Item
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import ItemError, StopTier
from edge_runtime.vehicle.core.commands import SubmitRun
from edge_runtime.vehicle.core.events import (
    EngineDied,
    FinishReason,
    ItemInterrupted,
    ItemStarted,
    RunOutcome,
    TokensProduced,
)
from edge_runtime.vehicle.models.importers.tiny_text import CONTEXT_TOKENS, write_tiny_text

LONG = {"max_tokens": CONTEXT_TOKENS - 20, "ignore_eos": True}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return write_tiny_text(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def rig() -> AsyncIterator[EngineRig]:
    async with engine_rig() as rig:
        yield rig


def ask(
    rig: EngineRig,
    package: Package,
    *items: dict[str, Any],
    run_id: int,
    urgent: bool = False,
) -> None:
    """Submit a run that streams; an item is a JSON object."""
    rig.engine.submit(
        SubmitRun(
            run_id=run_id,
            unit=run_id,
            digest=package.digest,
            items=tuple(
                Item(index=index, media_type="application/json", data=json.dumps(item).encode())
                for index, item in enumerate(items)
            ),
            parameters=b"",
            streams=True,
            urgent=urgent,
        ),
        package,
    )


def told(rig: EngineRig, run_id: int, index: int = 0) -> list[TokensProduced]:
    return [
        event
        for event in rig.events
        if isinstance(event, TokensProduced) and (event.run_id, event.index) == (run_id, index)
    ]


def joined(events: Sequence[TokensProduced]) -> tuple[list[int], str]:
    """The ids and the text of a stream, whose offsets must leave no gap and no repeat."""
    ids: list[int] = []
    for event in events:
        assert event.offset == events[0].offset + len(ids)
        ids += event.ids
    return ids, "".join(event.text for event in events)


async def test_a_stream_is_the_answer_piece_by_piece(rig: EngineRig, tiny: Package) -> None:
    ask(rig, tiny, {"prompt": "the", "max_tokens": 40, "ignore_eos": True}, run_id=1)
    ended = await rig.ended(1)
    assert ended.outcome is RunOutcome.COMPLETED
    events = told(rig, 1)
    ids, text = joined(events)
    (output,) = rig.outputs(1).values()
    assert isinstance(output, dict)
    assert (output["ids"], output["text"], output["finish"]) == (ids, text, "length")
    assert output["usage"] == {"prompt_tokens": 2, "completion_tokens": 40}
    assert [event.finish for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish is FinishReason.LENGTH
    assert len(events[0].ids) == 1, "the first token is told at once"
    assert all(len(event.ids) <= 8 for event in events)


async def test_a_run_that_nobody_streams_ends_as_every_other(rig: EngineRig, tiny: Package) -> None:
    run_id = rig.submit(tiny, [b"the", b"inn"], {"max_tokens": 5})
    assert (await rig.ended(run_id)).outcome is RunOutcome.COMPLETED
    assert set(rig.outputs(run_id)) == {0, 1}
    assert not told(rig, run_id)


async def test_runs_join_one_that_generates_and_leave_before_it_ends(
    rig: EngineRig, tiny: Package
) -> None:
    ask(rig, tiny, {"prompt": "a", **LONG}, run_id=1)
    await rig.event(TokensProduced, run_id=1)
    ask(rig, tiny, {"prompt": "b", "max_tokens": 3, "ignore_eos": True}, run_id=2)
    await rig.ended(2)
    await rig.ended(1)
    order = [event.run_id for event in rig.events if isinstance(event, TokensProduced)]
    assert order.index(2) > order.index(1)
    assert order[-1] == 1, "who came later and asked for less is done earlier"


async def test_a_cancelled_run_leaves_and_the_others_go_on(rig: EngineRig, tiny: Package) -> None:
    ask(rig, tiny, {"prompt": "a", **LONG}, run_id=1)
    ask(rig, tiny, {"prompt": "b", **LONG}, {"prompt": "c", **LONG}, run_id=2)
    await rig.event(TokensProduced, run_id=2, index=1)
    rig.engine.cancel(2)
    ended = await rig.ended(2)
    assert ended.outcome is RunOutcome.CANCELLED
    assert ended.stop is not None
    assert ended.stop.tier is StopTier.TERMINATE
    assert (await rig.event(ItemInterrupted, run_id=2)).busy_ms > 0
    assert (await rig.ended(1)).outcome is RunOutcome.COMPLETED
    assert not any(isinstance(event, EngineDied) for event in rig.events)
    assert len(joined(told(rig, 1))[0]) == LONG["max_tokens"]


async def test_a_frozen_generation_goes_on_where_it_was(rig: EngineRig, tiny: Package) -> None:
    ask(rig, tiny, {"prompt": "a", **LONG}, run_id=1)
    await rig.event(TokensProduced, run_id=1)
    rig.engine.freeze()
    report = await rig.engine.measure_stop()
    assert report.tier is StopTier.FREEZE
    before = len(rig.events)
    rig.engine.thaw()
    await rig.ended(1)
    assert len(rig.events) > before
    assert len(joined(told(rig, 1))[0]) == LONG["max_tokens"]


async def test_a_killed_generation_says_what_it_cost(rig: EngineRig, tiny: Package) -> None:
    ask(rig, tiny, {"prompt": "a", **LONG}, {"prompt": "b", **LONG}, run_id=1)
    await rig.event(TokensProduced, run_id=1, index=1)
    rig.engine.freeze()
    await rig.engine.measure_stop()
    interrupted = [event for event in rig.events if isinstance(event, ItemInterrupted)]
    assert [event.index for event in interrupted] == [0, 1]
    assert all(event.busy_ms > 0 for event in interrupted)
    assert (await rig.engine.kill()).tier is StopTier.KILL


async def test_another_process_goes_on_where_the_first_was_killed(tiny: Package) -> None:
    asked = {"prompt": "the end", "temperature": 1.5, "seed": 7, **LONG}
    async with engine_rig() as rig:
        ask(rig, tiny, asked, run_id=1)
        await rig.ended(1)
        whole = joined(told(rig, 1))
    async with engine_rig() as rig:
        ask(rig, tiny, asked, run_id=1)
        await rig.until(lambda: len(told(rig, 1)) > 2)
        rig.engine.freeze()
        await rig.engine.measure_stop()
        await rig.engine.kill()
        ids, text = joined(told(rig, 1))
    async with engine_rig() as rig:
        ask(rig, tiny, {**asked, "generated": ids}, run_id=1)
        await rig.ended(1)
        rest = told(rig, 1)
        (output,) = rig.outputs(1).values()
    assert rest[0].offset == len(ids)
    more_ids, more_text = joined(rest)
    assert (ids + more_ids, text + more_text) == whole
    assert isinstance(output, dict)
    assert (output["ids"], output["text"]) == whole


async def test_a_bad_item_breaks_alone(rig: EngineRig, tiny: Package) -> None:
    ask(
        rig,
        tiny,
        {"prompt": "a", "max_tokens": 3},
        {"prompt": "a", "max_tokens": 10**9},
        {"prompt": "a" * CONTEXT_TOKENS},
        {"prompt": "b", "max_tokens": 3},
        run_id=1,
    )
    assert (await rig.ended(1)).outcome is RunOutcome.COMPLETED
    assert set(rig.outputs(1)) == {0, 3}
    broken = rig.broken(1)
    assert broken[1].code is ItemError.INVALID_PARAMETERS
    assert "max_tokens" in broken[1].message
    assert broken[2].code is ItemError.INPUT_TOO_LARGE
    assert f"the limit is {CONTEXT_TOKENS - 1}" in broken[2].message


async def test_another_models_run_waits_only_for_those_before_it(
    rig: EngineRig, tiny: Package, synthetic: Callable[[str], Package]
) -> None:
    ask(rig, tiny, {"prompt": "a", **LONG}, run_id=101)
    await rig.event(TokensProduced, run_id=101)
    other = rig.submit(synthetic("noop"), [vector(1.0)])
    ask(rig, tiny, {"prompt": "b", "max_tokens": 2}, run_id=102)
    for run_id in (101, other, 102):
        await rig.ended(run_id)
    started = [event.run_id for event in rig.events if isinstance(event, ItemStarted)]
    assert started.index(other) < started.index(102)


async def test_urgent_runs_join_at_whatever_moment_they_come(rig: EngineRig, tiny: Package) -> None:
    """Once one that came between two looks began a second generation in the midst of the first."""
    runs = range(1, 41)
    ask(rig, tiny, {"prompt": "the"} | LONG, run_id=1, urgent=True)
    for run in runs[1:]:
        await rig.until(lambda run=run: bool(told(rig, run - 1)))  # type: ignore[misc] # the loop's own
        ask(rig, tiny, {"prompt": "the"} | LONG, run_id=run, urgent=True)
    for run in runs:
        assert (await rig.ended(run)).outcome is RunOutcome.COMPLETED
    assert not [event for event in rig.events if isinstance(event, EngineDied)]
    (text,) = {joined(told(rig, run))[1] for run in runs}
    assert text
