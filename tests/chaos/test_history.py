"""The checker of campaigns: a good history passes, every planted fault is found, and no other."""

from dataclasses import replace

import pytest
from history import (
    Accepted,
    Cancelling,
    Car,
    CarEvent,
    Database,
    Deleted,
    Deleting,
    Ended,
    EngineWatch,
    Entry,
    Fault,
    Fed,
    Fence,
    History,
    HoldBegan,
    HoldEnded,
    Intended,
    Issued,
    JournalRow,
    Published,
    RequesterEvent,
    RunBegan,
    Saw,
    StoredJob,
    StoredResult,
    check,
    count,
)

DIGESTS = ("d0", "d1", "d2")
SEEN = (Entry(1, 1, "d1"), Entry(2, 0, "d0"), Entry(3, 2, "d2"))
FIRST = Issued("j1", 7, Fence(100, 1), "car-1", frozenset({0, 1, 2}))
AGAIN = Issued("j1", 7, Fence(100, 2), "car-2", frozenset({0, 2}))
REQUESTER: tuple[RequesterEvent, ...] = (
    Intended("k1", DIGESTS),
    Accepted("k1", "j1"),
    Saw("j1", SEEN[:1]),
    # Killed before it heard of the acceptance, it submits again under the same key.
    Accepted("k1", "j1"),
    Saw("j1", SEEN[1:]),
    Ended("j1", "done", 3),
    Intended("k2", ("e0", "e1")),
    Accepted("k2", "j2"),
    Cancelling("j2"),
    Ended("j2", "cancelled", 0),
    Intended("k3", ("f0",)),
    Accepted("k3", "j3"),
    Saw("j3", (Entry(1, 0, "f0"),)),
    Ended("j3", "done", 1),
    Deleting("j3"),
    Deleted("j3"),
)
DATABASE = Database(
    jobs=(StoredJob("j1", "k1", "done", 3, 3), StoredJob("j2", "k2", "cancelled", 2, 0)),
    results=(
        StoredResult("j1", SEEN[0], "car-1"),
        StoredResult("j1", SEEN[1], "car-2"),
        StoredResult("j1", SEEN[2], "car-2"),
    ),
    attempts=(FIRST, AGAIN),
)
FEED = (
    Fed(1, "j1", SEEN[0]),
    Fed(2, "j3", Entry(1, 0, "f0")),
    Fed(4, "j1", SEEN[1]),
    Fed(5, "j1", SEEN[2]),
)
LOG: tuple[CarEvent, ...] = (
    HoldBegan(0.0, "sensor_stale"),
    HoldEnded(1.0),
    RunBegan(2.0, "run"),
    HoldBegan(3.0, "occupied"),
    HoldEnded(9.0),
    RunBegan(9.1, "run"),
    HoldBegan(10.0, "storage_full"),
    RunBegan(14.0, "run"),
)
GOOD = History(
    requester=REQUESTER,
    database=DATABASE,
    fed=FEED,
    # The raw topics may repeat, and may know a job that was deleted since.
    published=(
        Published("j1", SEEN[0]),
        Published("j1", SEEN[0]),
        Published("j3", Entry(1, 0, "f0")),
    ),
    offers=(FIRST, FIRST, AGAIN, Issued("j3", 9, Fence(100, 1), "car-1", frozenset({0}))),
    cars={"car-1": Car(log=LOG), "car-2": Car()},
    watches=(EngineWatch("car-1", "occupied", 0.0),),
)


def heard(*events: RequesterEvent) -> History:
    return replace(GOOD, requester=events)


def without(event: RequesterEvent) -> History:
    return heard(*(other for other in REQUESTER if other != event))


def instead(event: RequesterEvent, *others: RequesterEvent) -> History:
    at = REQUESTER.index(event)
    return heard(*REQUESTER[:at], *others, *REQUESTER[at + 1 :])


def store(**changes: object) -> History:
    """The feed is as the store then has it: its own faults are planted apart."""
    database = replace(DATABASE, **changes)  # type: ignore[arg-type]  # fields by name
    results = enumerate(database.results, 1)
    fed = tuple(Fed(position, result.job, result.entry) for position, result in results)
    return replace(GOOD, database=database, fed=fed)


def car(*log: CarEvent) -> History:
    return replace(GOOD, cars={"car-1": Car(log=log)})


HELD = (HoldBegan(0.0, "occupied"), RunBegan(4.0, "run"))
SECOND = Saw("j1", SEEN[1:])
RESULTS = DATABASE.results
PLANTED = {
    "an item without an end": (store(results=RESULTS[:2]), {"lost", "reader_differs"}),
    "a cancel that nobody asked for": (without(Cancelling("j2")), {"lost"}),
    "two jobs of one key": (
        heard(*REQUESTER, Accepted("k1", "j9")),
        {"doubled"},
    ),
    "two rows of one key": (
        store(jobs=(*DATABASE.jobs, StoredJob("j4", "k2", "cancelled", 2, 0))),
        {"doubled"},
    ),
    "two results of one item": (
        store(results=(*RESULTS, StoredResult("j1", Entry(4, 2, "d2"), "car-2"))),
        {"doubled", "reader_differs"},
    ),
    "an item delivered again under a new cursor": (
        instead(SECOND, SECOND, Saw("j1", (Entry(4, 0, "d0"),))),
        {"doubled", "cursor_gap", "reader_differs"},
    ),
    "a job that nobody submitted": (
        store(jobs=(*DATABASE.jobs, StoredJob("j4", "k4", "done", 0, 0))),
        {"fabricated"},
    ),
    "a result of a car that never had the item": (
        store(results=(StoredResult("j1", SEEN[0], "car-2"), *RESULTS[1:])),
        {"fabricated"},
    ),
    "an item that was never submitted": (
        instead(REQUESTER[0], Intended("k1", DIGESTS[:2])),
        {"fabricated"},
    ),
    "a feed that goes back": (replace(GOOD, fed=(*FEED, FEED[3])), {"cursor_repeat", "doubled"}),
    "a feed that leaves a result out": (replace(GOOD, fed=FEED[:3]), {"cursor_gap"}),
    "a feed with another output": (
        replace(GOOD, fed=(*FEED[:3], Fed(5, "j1", Entry(3, 2, "other")))),
        {"reader_differs"},
    ),
    "a result published that is not in the store": (
        replace(GOOD, published=(Published("j1", Entry(1, 1, "forged")),)),
        {"fabricated"},
    ),
    "a result published before its commit": (
        replace(GOOD, published=(Published("j1", Entry(4, 1, "d1")),)),
        {"fabricated"},
    ),
    "an output of another input": (
        instead(REQUESTER[0], Intended("k1", ("d1", "d0", "d2"))),
        {"wrong_output"},
    ),
    "a gap": (instead(SECOND, Saw("j1", SEEN[2:])), {"cursor_gap", "reader_differs"}),
    "the last result unseen": (
        instead(SECOND, Saw("j1", SEEN[1:2])),
        {"cursor_gap", "reader_differs"},
    ),
    "a repeat": (instead(SECOND, Saw("j1", SEEN)), {"cursor_repeat", "doubled"}),
    "the reader saw another output than was kept": (
        instead(SECOND, Saw("j1", (SEEN[1], Entry(3, 2, "other")))),
        {"reader_differs", "wrong_output"},
    ),
    "an accepted job that is not there": (
        store(jobs=DATABASE.jobs[:1]),
        {"job_missing"},
    ),
    "a job that never ended for its requester": (
        without(Ended("j1", "done", 3)),
        {"job_open"},
    ),
    "a key that was never answered": (
        heard(*REQUESTER, Intended("k5", ("x",))),
        {"job_open"},
    ),
    "a job open after the drain": (
        store(jobs=(StoredJob("j1", "k1", "running", 3, 3), DATABASE.jobs[1])),
        {"job_open"},
    ),
    "a deleted job that is back": (
        store(jobs=(*DATABASE.jobs, StoredJob("j3", "k3", "cancelled", 1, 1))),
        {"job_revived", "reader_differs"},
    ),
    "one fence for two attempts": (
        store(attempts=(FIRST, AGAIN, replace(FIRST, vehicle="car-2"))),
        {"fence_reused"},
    ),
    "one fence heard by two cars": (
        replace(GOOD, offers=(FIRST, replace(FIRST, vehicle="car-3"))),
        {"fence_reused"},
    ),
    "an offer before its commit": (
        replace(GOOD, offers=(replace(FIRST, fence=Fence(100, 3)),)),
        {"offer_uncommitted"},
    ),
    "a run while occupied": (car(*HELD), {"no_leave"}),
    "a run long before the owner left": (car(*HELD, HoldEnded(5.0)), {"no_leave"}),
    "an engine that goes on": (
        replace(GOOD, watches=(EngineWatch("car-1", "occupied", 0.4),)),
        {"no_leave"},
    ),
    "a chunk of an ended job in a journal": (
        replace(GOOD, cars={"car-1": Car(journal=(JournalRow("j1", 7, Fence(1, 1), "chunk 0"),))}),
        {"journal_left"},
    ),
    "a store that its own check faults": (
        store(problems=("1 results without their item",)),
        {"store_unsound"},
    ),
    "a process that is left": (replace(GOOD, leaked=("engine 12",)), {"leaked"}),
    "a process that ended by itself": (replace(GOOD, deaths=("car-1: 1",)), {"died"}),
}


def test_a_kept_promise_is_found_kept() -> None:
    assert check(GOOD) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name: str) -> None:
    history, faults = PLANTED[name]
    assert {verdict.fault.value for verdict in check(history)} == faults


def test_every_fault_is_planted_somewhere() -> None:
    planted = {fault for _, faults in PLANTED.values() for fault in faults}
    assert planted == {fault.value for fault in Fault}


def test_a_resumption_may_be_logged_after_what_it_caused() -> None:
    log = (HoldBegan(0.0, "occupied"), RunBegan(4.0, "thaw"), RunBegan(4.0, "run"), HoldEnded(4.1))
    assert check(car(*log)) == []


def test_the_count_names_every_kind() -> None:
    counts = count(check(store(problems=("a", "b"))))
    assert counts.keys() == {fault.value for fault in Fault}
    assert sum(counts.values()) == counts["store_unsound"] == 2
