"""What a reader takes, holds, asks for and gives up: without a clock, a bus or a dispatcher."""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.client.results import ItemResult
from edge_runtime.client.subscription_state import (
    Ask,
    Entry,
    JobLost,
    JobResult,
    SubscriptionState,
    TooManyJobs,
)
from edge_runtime.contract import limits
from edge_runtime.contract.messages import (
    JobResults,
    JobStatus,
    RequestRefused,
    ResultEntry,
)
from edge_runtime.contract.reasons import JobState, RequestRefusal


def entry(cursor: int, output: object = "x") -> ResultEntry:
    return ResultEntry(
        cursor=cursor, item=cursor, at_ms=0, output=msgspec.Raw(msgspec.msgpack.encode(output))
    )


def page(*cursors: int, since: int | None = None, status: JobStatus | None = None) -> JobResults:
    return JobResults(job="j", results=tuple(map(entry, cursors)), since=since, status=status)


def job_status(last: int, state: JobState = JobState.RUNNING, job: str = "j") -> JobStatus:
    return JobStatus(
        job=job, tenant="t", model="m", state=state, items=100, done=last, failed=0,
        last_cursor=last, submitted_ms=0, deadline_ms=1,
    )  # fmt: skip


DONE = JobState.DONE


def drained(state: SubscriptionState) -> Iterator[Entry]:
    while (one := state.take()) is not None:
        yield one


def cursors_of(entries: Sequence[Entry]) -> list[int]:
    return [one.result.cursor for one in entries if isinstance(one, JobResult)]


class Reader:
    """A state with a clock and short words for what is heard."""

    def __init__(self, job: str | None = "j", **cursors: int) -> None:
        self.state = SubscriptionState(job, cursors, random.Random(1))
        self.now_s = 100.0

    def up(self) -> list[Ask]:
        self.state.connected(self.now_s)
        return self.asks()

    def asks(self) -> list[Ask]:
        return self.state.requests(self.now_s)

    def live(self, *cursors: int) -> list[int]:
        self.state.results(page(*cursors), self.now_s, is_answer=False)
        return cursors_of(list(drained(self.state)))

    def answer(self, since: int, *cursors: int, status: JobStatus | None = None) -> list[Entry]:
        told = page(*cursors, since=since, status=status)
        self.state.results(told, self.now_s, is_answer=True)
        return list(drained(self.state))

    def status(self, status: JobStatus) -> list[Entry]:
        self.state.status(status, self.now_s)
        return list(drained(self.state))


def test_live_results_are_given_in_order_and_once() -> None:
    reader = Reader()
    assert reader.up() == [Ask("j", 0)]
    assert reader.live(1, 2) == [1, 2]
    assert reader.live(2, 3) == [3]
    assert reader.live(1) == []
    assert reader.state.cursors == {"j": 3}
    assert reader.state.counters["repeated"] == 2


def test_a_gap_is_asked_for_and_what_came_after_it_is_kept() -> None:
    reader = Reader()
    reader.up()
    reader.answer(0, 1, status=job_status(1))
    assert reader.asks() == []
    assert reader.live(4, 5) == []
    assert reader.asks() == [Ask("j", 1)]
    assert reader.asks() == []
    assert cursors_of(reader.answer(1, 2, 3, status=job_status(5))) == [2, 3, 4, 5]
    assert reader.asks() == []


def test_cursors_that_are_used_no_more_are_no_gap() -> None:
    """A failure that is run again leaves its cursor unused."""
    reader = Reader(j=9)
    assert reader.up() == [Ask("j", 9)]
    assert cursors_of(reader.answer(9, 12, 14, status=job_status(14))) == [12, 14]
    assert reader.asks() == []
    assert reader.live(15) == [15]
    assert reader.status(job_status(17, DONE)) == []
    assert reader.asks() == [Ask("j", 15)]
    (final,) = reader.answer(15, status=job_status(17, DONE))
    assert final == job_status(17, DONE)
    assert reader.state.is_ended


def test_live_goes_on_after_unused_cursors() -> None:
    reader = Reader(j=9)
    reader.up()
    reader.answer(9, status=job_status(10))
    assert reader.live(11) == [11]


def test_the_final_status_comes_after_the_last_result() -> None:
    reader = Reader()
    reader.up()
    assert reader.status(job_status(0)) == [job_status(0)]
    assert reader.status(job_status(3, DONE)) == []
    assert not reader.state.is_ended
    told = reader.answer(0, 1, 2, 3, status=job_status(3, DONE))
    assert cursors_of(told) == [1, 2, 3]
    assert told[-1] == job_status(3, DONE)
    assert reader.state.is_ended
    assert reader.asks() == []


def test_one_job_may_be_known_to_its_end_by_an_answer_alone() -> None:
    """Yesterday's job: its retained status is cleared, nothing of it is published any more."""
    reader = Reader(j=2)
    assert reader.up() == [Ask("j", 2)]
    told = reader.answer(2, 3, status=job_status(3, DONE))
    assert cursors_of(told) == [3]
    assert reader.state.is_ended


@pytest.mark.parametrize("last", [0, 5])
def test_an_older_status_changes_nothing(last: int) -> None:
    reader = Reader(None)
    reader.up()
    assert reader.status(job_status(last)) == [job_status(last)]
    reader.live(*range(1, 6))
    assert reader.status(job_status(5, DONE)) == [job_status(5, DONE)]
    assert reader.status(job_status(last)) == []
    assert reader.status(job_status(5, DONE)) == []


def test_every_job_of_a_tenant_is_found_and_followed() -> None:
    reader = Reader(None, old=7)
    assert reader.up() == [Ask("old", 7)]
    assert reader.live(1) == [1]
    assert reader.asks() == []
    assert reader.status(job_status(4, job="retained"))[0] == job_status(4, job="retained")
    assert reader.asks() == [Ask("retained", 0)]
    assert set(reader.state.cursors) == {"old", "j", "retained"}
    assert not reader.state.is_ended


def test_of_one_job_others_are_not_heard() -> None:
    reader = Reader("mine")
    reader.up()
    assert reader.live(1) == []
    assert reader.state.cursors == {"mine": 0}


def test_after_a_reconnect_everything_that_is_not_over_is_asked_for() -> None:
    reader = Reader(None)
    reader.up()
    reader.live(1)
    reader.status(job_status(0, DONE, "over"))
    reader.state.disconnected()
    assert reader.asks() == []
    assert reader.state.next_deadline_s() is None
    assert reader.up() == [Ask("j", 1)]


def test_silence_is_asked_about() -> None:
    """The last message of all may have been lost."""
    reader = Reader()
    reader.up()
    reader.answer(0, 1, status=job_status(1))
    assert reader.asks() == []
    reader.now_s += limits.SUBSCRIPTION_SILENCE_S
    assert reader.state.next_deadline_s() == reader.now_s
    assert reader.asks() == [Ask("j", 1)]


def test_a_request_is_sent_again_ever_more_seldom() -> None:
    reader = Reader()
    assert reader.up() == [Ask("j", 0)]
    asked_s = [reader.now_s]
    while len(asked_s) < 9:
        due_s = reader.state.next_deadline_s()
        assert due_s is not None
        reader.now_s = due_s - 0.001
        assert reader.asks() == []
        reader.now_s = due_s
        asked_s += [due_s for ask in reader.asks() if ask == Ask("j", 0)]
    waits = [after - before for before, after in pairwise(asked_s)]
    first_s = limits.SUBSCRIPTION_ANSWER_S
    assert waits[:3] == [first_s, 2 * first_s, 4 * first_s]
    assert waits[-1] == limits.SUBSCRIPTION_ANSWER_MAX_S
    assert reader.state.counters["unanswered"] == 8


def test_a_promise_that_is_never_kept_is_not_asked_about_without_end() -> None:
    """A message that claims a cursor that nobody has must not make a storm of requests."""
    reader = Reader()
    reader.up()
    reader.answer(0, 1, status=job_status(1))
    assert reader.live(1_000_000) == []
    asked = 0
    end_s = reader.now_s + 600
    while reader.now_s < end_s:
        for _ in reader.asks():
            asked += 1
            reader.answer(1, status=job_status(1))
        due_s = reader.state.next_deadline_s()
        assert due_s is not None
        reader.now_s = max(due_s, reader.now_s + 0.001)
    assert 5 < asked < 150


def test_a_pause_that_is_asked_for_is_kept_by_all_requests() -> None:
    reader = Reader(None, a=1, b=1)
    assert len(reader.up()) == 2
    refused = RequestRefused(
        reason=RequestRefusal.RATE_EXCEEDED, job="a", since=1, retry_after_ms=2_000
    )
    reader.state.refused(refused, reader.now_s)
    assert reader.asks() == []
    assert reader.live(2) == []
    due_s = reader.state.next_deadline_s()
    assert due_s is not None
    assert 2.0 <= due_s - reader.now_s <= 4.0
    reader.now_s = due_s
    assert Ask("a", 1) in reader.asks()
    assert reader.state.counters["refused_rate_exceeded"] == 1


def test_a_deleted_job_is_lost() -> None:
    reader = Reader()
    reader.up()
    refused = RequestRefused(reason=RequestRefusal.UNKNOWN_JOB, job="j", since=0)
    reader.state.refused(refused, reader.now_s)
    assert list(drained(reader.state)) == [JobLost("j", "unknown_job")]
    assert reader.state.is_ended
    assert reader.state.cursors == {}


def test_a_cursor_of_another_past_is_told() -> None:
    reader = Reader(j=50)
    reader.up()
    assert reader.answer(50, status=job_status(20)) == [JobLost("j", "cursor_ahead")]
    assert reader.state.is_ended


def test_a_cleared_status_lets_go_of_a_job_that_is_over() -> None:
    reader = Reader(None)
    reader.up()
    reader.live(1)
    reader.status(job_status(1, DONE))
    reader.state.cleared("j", reader.now_s)
    assert reader.state.cursors == {}
    reader.state.cleared("never heard of", reader.now_s)


def test_a_cleared_status_of_a_job_that_is_not_over_is_asked_about() -> None:
    reader = Reader()
    reader.up()
    reader.answer(0, 1, status=job_status(1))
    assert reader.asks() == []
    reader.state.cleared("j", reader.now_s)
    assert reader.asks() == [Ask("j", 1)]


def test_requests_in_flight_are_few() -> None:
    reader = Reader(None, **{f"j{n}": 1 for n in range(100)})
    first = reader.up()
    assert len(first) == limits.SUBSCRIPTION_ASKS_MAX
    assert reader.asks() == []
    reader.state.results(
        JobResults(job=first[0].job, results=(), since=1, status=job_status(1, job=first[0].job)),
        reader.now_s, is_answer=True,
    )  # fmt: skip
    assert len(reader.asks()) == 1


def test_what_is_held_is_bounded_and_fetched_later() -> None:
    reader = Reader()
    reader.up()
    far = range(3, limits.SUBSCRIPTION_HELD_ENTRIES_MAX + 103)
    assert reader.live(*far) == []
    assert reader.state.counters["let_go"] == 100
    last = far[-1]
    told = cursors_of(reader.answer(0, 1, 2, status=job_status(last)))
    assert told == list(range(1, limits.SUBSCRIPTION_HELD_ENTRIES_MAX + 3))
    assert reader.asks() == [Ask("j", told[-1])]
    assert reader.live(*range(told[-1] + 1, last + 1)) == list(range(told[-1] + 1, last + 1))


def test_what_is_held_is_bounded_in_bytes() -> None:
    reader = Reader()
    reader.up()
    large = bytes(1024 * 1024)
    entries = tuple(entry(cursor, large) for cursor in range(3, 43))
    reader.state.results(JobResults(job="j", results=entries), reader.now_s, is_answer=False)
    held = reader.state.counters["held"]
    assert 1024 * 1024 * held <= limits.SUBSCRIPTION_HELD_BYTES_MAX
    assert held + reader.state.counters["let_go"] == 40


def test_jobs_that_are_over_make_room_and_without_any_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "SUBSCRIPTION_JOBS_MAX", 3)
    reader = Reader(None, a=1, b=1)
    reader.up()
    reader.status(job_status(0, DONE, "over"))
    reader.live(1)
    assert set(reader.state.cursors) == {"a", "b", "j"}
    with pytest.raises(TooManyJobs, match="more than 3 jobs"):
        reader.status(job_status(1, job="one more"))


def test_an_output_that_cannot_be_decoded_is_an_error_of_its_item() -> None:
    reader = Reader()
    reader.up()
    bad = ResultEntry(cursor=1, item=0, at_ms=0, output=msgspec.Raw(b"\xd9\x02\xff\xff"))
    reader.state.results(JobResults(job="j", results=(bad,)), 0.0, is_answer=False)
    (told,) = drained(reader.state)
    assert isinstance(told, JobResult)
    assert isinstance(told.result, ItemResult)
    assert not told.result.ok


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_is_lost_repeated_or_late_each_result_comes_once_and_in_order(
    data: st.DataObject,
) -> None:
    """A dispatcher with holes in its cursors, a bus that does as it likes, an honest answer."""
    used = sorted(data.draw(st.sets(st.integers(1, 30), min_size=1, max_size=20)))
    last = data.draw(st.integers(used[-1], 31))
    final = job_status(last, DONE)
    reader = Reader()
    pending = reader.up()
    live = data.draw(st.lists(st.sampled_from(used), max_size=40))
    told: list[Entry] = []
    lost = 0
    for cursor in live:
        # What is published live says nothing of holes: only neighbours follow one another.
        reader.state.results(page(cursor), reader.now_s, is_answer=False)
        if data.draw(st.booleans()):
            told += reader.status(final)
    for _ in range(200):
        told += drained(reader.state)
        if reader.state.is_ended:
            break
        for ask in [*pending, *reader.asks()]:
            size = data.draw(st.integers(1, 5))
            after = [cursor for cursor in used if cursor > ask.cursor][:size]
            lost += 1
            if lost > 20 or data.draw(st.booleans()):
                told += reader.answer(ask.cursor, *after, status=final)
        pending = []
        reader.now_s = reader.state.next_deadline_s() or reader.now_s
    assert cursors_of(told) == used
    assert told[-1] == final
