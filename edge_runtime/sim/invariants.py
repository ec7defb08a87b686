"""The promises, one function and one paragraph each; numbers are those of the method's reference.

Those here look at the end, when the healed world has drained. `AT_ONCE` says in words which are
judged where they would break: in `witness`, `ledger`, `world`, `buses`, and by nemeses that are
people (`tenants`, `visitors`, `conversations`, `keyholders`, `night_batches`).
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from edge_runtime.contract.limits import (
    POISON_DISTINCT_CARS,
    SIM_ATTEMPTS_PER_UNIT_MAX,
    SIM_STARTS_PER_ITEM_MAX,
)
from edge_runtime.contract.messages import Fence, Item, OutputReference, ResultError
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.dispatcher.core.events import JobSpec
from edge_runtime.dispatcher.storage import StoreDamaged
from edge_runtime.dispatcher.storage.schema import ITEM_BITS
from edge_runtime.sim.car import answer
from edge_runtime.sim.ledger import BULK, Submitted
from edge_runtime.sim.world import TENANT, World

_ENDED: Final = frozenset(
    state.value for state in JobState if state not in {JobState.ACCEPTED, JobState.RUNNING}
)
_DEADLY: Final = frozenset({ItemError.ENGINE_KILLED, ItemError.ENGINE_HUNG, ItemError.CAR_REBOOTED})
_JOB_NO: Final = {
    "item": f"(key >> {ITEM_BITS})",
    "result": "job_no",
    "attempt": "job_no",
    "strike": "job_no",
}
_ROUNDING: Final = 1e-6
_spec: Final = msgspec.msgpack.Decoder(JobSpec)
_reference: Final = msgspec.msgpack.Decoder(OutputReference)
_error: Final = msgspec.msgpack.Decoder(ResultError)
_issued: Final = msgspec.msgpack.Decoder(tuple[int, ...])


def check_end(world: World, store: Path) -> None:
    """Judge a drained world by its ledger and by the dispatcher's store, a file nobody holds."""
    db = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        for check in CHECKS:
            check(world, db)
    finally:
        db.close()


def s1_durable_accept(world: World, db: sqlite3.Connection) -> None:
    """S1. A job that its requester was told is accepted is in the store, whatever died since."""
    stored = {row[0] for row in db.execute("SELECT id FROM job")}
    for job in sorted(set(world.ledger.jobs) - stored):
        world.ledger.violated("S1", f"{job} was accepted and is gone")


def s2_conservation(world: World, db: sqlite3.Connection) -> None:
    """S2. Every item of an ended job has exactly one end, and the job's counts say so."""
    rows = db.execute(
        "SELECT j.id, j.items, j.done, j.failed, j.cursor, j.state,"
        " (SELECT count(*) FROM result r WHERE r.job_no=j.no AND r.error IS NULL),"
        " (SELECT count(*) FROM result r WHERE r.job_no=j.no AND r.error IS NOT NULL),"
        " (SELECT count(DISTINCT r.item) FROM result r WHERE r.job_no=j.no) FROM job j"
    )
    for job, items, done, failed, cursor, state, good, bad, distinct in rows:
        if (done, failed) != (good, bad) or distinct != good + bad:
            world.ledger.violated("S2", f"{job} counts {done}+{failed}, has {good}+{bad}")
        if state == JobState.DONE.value and good + bad != items:
            world.ledger.violated("S2", f"{job} is done with {good + bad} of {items} items")
        if cursor < good + bad:
            world.ledger.violated("S2", f"{job} has more results than cursors")


def s4_exactly_once(world: World, db: sqlite3.Connection) -> None:
    """S3, S4. What a cursor-keeping requester read is what the store has: no gap, no repeat."""
    for submitted in world.ledger.jobs.values():
        cursors = [seen.cursor for seen in submitted.read]
        is_whole = cursors == list(range(1, len(cursors) + 1))
        # A failure that was requeued leaves its cursor unused.
        is_whole |= submitted.was_requeued and cursors == sorted(set(cursors))
        if not is_whole:
            world.ledger.violated("S4", f"{submitted.job} was read as {cursors}")
        stored = _stored(db, submitted.job)
        cursors_stored = {row[0] for row in stored}
        read = [
            (seen.cursor, seen.item, int(seen.ok))
            for seen in submitted.read
            # A dead letter that was requeued is a result no more, and its cursor stays unused.
            if seen.ok or seen.cursor in cursors_stored or not submitted.was_requeued
        ]
        if submitted.is_done and read != stored:
            world.ledger.violated("S4", f"{submitted.job}: read {read}, stored {stored}")
        published = world.ledger.published.get(submitted.job, {})
        for cursor, item, ok in stored:
            told = published.get(cursor)
            if told is not None and (told[0], int(told[1])) != (item, ok):
                world.ledger.violated("S4", f"{submitted.job} published another cursor {cursor}")


def s14_usage(world: World, db: sqlite3.Connection) -> None:
    """S14. What a tenant is counted to have open, for its quota, is what it has open."""
    opened = {
        tenant: counts
        for tenant, *counts in db.execute(
            "SELECT tenant, count(*), sum(items - done - failed), sum(bytes) FROM job"
            " WHERE finished_ms IS NULL GROUP BY tenant"
        )
    }
    for tenant, *counted in db.execute("SELECT tenant, jobs, items, bytes FROM usage"):
        if counted != opened.get(tenant, [0, 0, 0]):
            world.ledger.violated("S14", f"{tenant} has {opened.get(tenant)}, counted {counted}")


def s17_work_is_booked_once(world: World, db: sqlite3.Connection) -> None:
    """S21. A car is credited the price of each result that it gave, each once."""
    gave: dict[str, tuple[int, float]] = {}
    for vehicle, spec, items in db.execute(
        "SELECT r.vehicle, j.spec, count(*) FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE r.error IS NULL GROUP BY r.vehicle, j.no"
    ):
        known, earned = gave.get(vehicle, (0, 0.0))
        price = _spec.decode(spec).reference_ms / 1000
        gave[vehicle] = known + items, earned + items * price
    is_whole = not world.ledger.deleting  # what is deleted stays booked
    rows = db.execute(
        "SELECT name, sum(items), sum(credits) FROM total"
        " WHERE kind='vehicle' AND NOT is_interactive GROUP BY name"
    )
    booked = {vehicle: (items, earned) for vehicle, items, earned in rows}
    for vehicle in sorted(gave.keys() | booked.keys()):
        items, earned = gave.get(vehicle, (0, 0.0))
        booked_items, booked_credits = booked.get(vehicle, (0, 0.0))
        is_right = booked_items == items and abs(booked_credits - earned) < _ROUNDING
        if not is_right and (is_whole or booked_items < items):
            world.ledger.violated(
                "S21",
                f"{vehicle} gave {items} results worth {earned}, booked are {booked_items}"
                f" worth {booked_credits}",
            )
    (fleet,), (tenants,) = (
        db.execute("SELECT sum(items) FROM total WHERE kind=?", (kind,)).fetchone()
        for kind in ("fleet", "tenant")
    )
    if fleet != tenants:
        world.ledger.violated("S21", f"the fleet finished {fleet} items, its tenants {tenants}")


def s2_failures_have_causes(world: World, db: sqlite3.Connection) -> None:
    """S2. An item is called undecodable only if it is."""
    rows = db.execute(
        "SELECT j.id, r.item & 1048575, r.error FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE r.error IS NOT NULL"
    )
    broken = world.cars[0].script.broken
    for job, item, blob in rows:
        code = _error.decode(blob).code
        submitted = world.ledger.jobs.get(job)
        is_blamed = code is ItemError.UNDECODABLE_INPUT
        if is_blamed and submitted is not None and submitted.data[item] not in broken:
            world.ledger.violated("S2", f"{job} item {item} failed as {code.value} without cause")


def s2_blame_has_grounds(world: World, db: sqlite3.Connection) -> None:
    """S2. An item fails as one that kills only where it was in hand at enough deaths.

    With `POISON_DISTINCT_CARS` different cars, or twice as many deaths. What a car's identity said
    falsely of its output counts like one: the car is not believed, and struck. So is one that what
    is bulky does not reach, or leave. A journal that went back may name an item of long ago.
    """
    if "stale_journals" in world.chosen:
        return
    k = POISON_DISTINCT_CARS
    rows = db.execute(
        "SELECT j.id, r.item & 1048575, r.error FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE r.error IS NOT NULL"
    )
    for job, item, blob in rows:
        code, submitted = _error.decode(blob).code, world.ledger.jobs.get(job)
        if code not in _DEADLY or submitted is None or submitted.key.startswith(BULK):
            continue
        deaths = world.ledger.deaths.get(submitted.data[item], [])
        lies = world.ledger.doubted[job]
        if len(set(deaths)) + lies < k and len(deaths) + lies < 2 * k:
            world.ledger.violated("S2", f"{job} item {item} is {code.value} after {deaths}")


def s2_forgotten_jobs_stay_away(world: World, db: sqlite3.Connection) -> None:
    """S2. Of a job that was deleted nothing is left, in the store or retained at the broker."""
    for table, job_no in _JOB_NO.items():
        (count,) = db.execute(
            f"SELECT count(*) FROM {table} WHERE {job_no} NOT IN (SELECT no FROM job)"  # noqa: S608 - constant names
        ).fetchone()
        if count:
            world.ledger.violated("S2", f"{count} of {table} belong to no job")
    if world.ledger.has_gone_back:
        return
    is_heard = not world.has_lost_at_broker
    is_repeated = world.dispatcher_faults.fired["duplicate"] > 0
    for job in sorted(world.ledger.deleted):
        if db.execute("SELECT 1 FROM job WHERE id=?", (job,)).fetchone() is not None:
            world.ledger.violated("S2", f"{job} was deleted and is there again")
        if is_repeated and world.ledger.was_repeated(job):
            continue  # the network's, overtaken by the word that clears it
        if is_heard and world.broker.retains_of(job):
            world.ledger.violated("S2", f"{job} was deleted, and its status is retained")


def s2_cancelled_jobs_rest(world: World, db: sqlite3.Connection) -> None:
    """S2. What the answer to a cancel said of a job stays true: nothing is added to it."""
    for job, cursor in world.ledger.cancelled.items():
        if world.ledger.was_requeued(job) or world.ledger.has_gone_back:
            continue
        row = db.execute("SELECT state, cursor FROM job WHERE id=?", (job,)).fetchone()
        if row is None or row[0] not in _ENDED or row[1] != cursor:
            world.ledger.violated("S2", f"{job} was over at {cursor} results, and is {row}")


def s3_memory_and_store_agree(world: World, db: sqlite3.Connection) -> None:
    """S3. The dispatcher never writes what its store cannot hold: a second end, a used cursor."""
    del db
    for error in world.dispatcher.ends:
        if isinstance(error, StoreDamaged) and isinstance(error.__cause__, sqlite3.IntegrityError):
            world.ledger.violated("S3", f"the dispatcher contradicts its store: {error.__cause__}")


def s4_topics_skip_nothing(world: World, db: sqlite3.Connection) -> None:
    """S4. Raw topics may repeat and never skip, where the broker loses and refuses nothing."""
    if world.has_lost_at_broker:
        return
    for job, cursor in db.execute(
        "SELECT j.id, r.cursor FROM result r JOIN job j ON j.no=r.job_no ORDER BY r.position"
    ):
        if cursor not in world.ledger.published.get(job, {}):
            world.ledger.violated("S4", f"{job} cursor {cursor} was never published")


def s4_statuses_are_retained(world: World, db: sqlite3.Connection) -> None:
    """S4. Who comes late hears of every job: its status is retained, whatever the broker forgot."""
    del db
    for job in world.unretained:
        world.ledger.violated("S4", f"{job} has no retained status")


def s4_feeds_are_whole(world: World, db: sqlite3.Connection) -> None:
    """S4. Who reads the feed of all jobs reads each result once, in order of commit."""
    if not world.ledger.readers or world.ledger.has_gone_back:
        return
    stored = db.execute(
        "SELECT r.position, j.id, r.cursor FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE j.tenant=? ORDER BY r.position",
        (TENANT,),
    ).fetchall()
    known = set(stored)
    read = [
        entry
        for entry in world.ledger.feed
        # A dead letter that was requeued is a result no more.
        if entry in known or not world.ledger.was_requeued(entry[1])
    ]
    if read != stored:
        pairs = zip([*read, None], [*stored, None], strict=False)
        differs = next((pair for pair in pairs if pair[0] != pair[1]), None)
        world.ledger.violated("S4", f"the feed was read as (read, stored): {differs}")


def s4_third_parties(world: World, db: sqlite3.Connection) -> None:
    """S4. Who keeps a cursor and fetches over MQTT has what the store has: no gap, no repeat."""
    if world.ledger.has_gone_back:
        return
    for third in world.third_parties:
        for submitted in world.ledger.jobs.values():
            if submitted.tenant != TENANT or not submitted.is_done:
                continue
            stored = _stored(db, submitted.job)
            cursors = {row[0] for row in stored}
            heard = [
                entry
                for entry in third.read.get(submitted.job, [])
                if entry[2] or entry[0] in cursors or not submitted.was_requeued
            ]
            is_unheard_of = third.knows_by_topics and not heard and world.has_lost_at_broker
            if heard != stored and not is_unheard_of:
                world.ledger.violated(
                    "S4", f"{submitted.job}: {third.name} has {heard}, stored {stored}"
                )


def s5_no_fabrication(world: World, db: sqlite3.Connection) -> None:
    """S5. Every output is the answer to its item, and came from a car that was offered it."""
    for submitted in world.ledger.jobs.values():
        for seen in submitted.read:
            if seen.ok and seen.output != _right(submitted, seen.item):
                world.ledger.violated("S5", f"{submitted.job} item {seen.item} is not its answer")
    rows = db.execute(
        "SELECT j.id, r.item & 1048575, r.vehicle FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE r.error IS NULL AND NOT EXISTS"
        " (SELECT 1 FROM attempt a WHERE a.job_no=r.job_no AND a.vehicle=r.vehicle)"
    )
    for job, item, vehicle in rows:
        world.ledger.violated("S5", f"{job} item {item} from {vehicle}, who never had it")


def s5_work_is_counted_once(world: World, db: sqlite3.Connection) -> None:
    """S5. An attempt is credited no more time than computing its unit's items takes."""
    item_ms = {car.name: car.script.item_s * 1000 for car in world.cars}
    rows = db.execute("SELECT unit, vehicle, issued, busy_ms FROM attempt").fetchall()
    items: dict[int, set[int]] = {}
    for unit, _, issued, _ in rows:
        items.setdefault(unit, set()).update(_issued.decode(issued))
    for unit, vehicle, _, busy_ms in rows:
        most_ms = len(items[unit]) * item_ms[vehicle]
        if busy_ms > most_ms + 1:
            world.ledger.violated("S5", f"unit {unit}: {vehicle} has {busy_ms} of {most_ms} ms")


def s6_fences(world: World, db: sqlite3.Connection) -> None:
    """S6. No fence of a unit was given out twice, and each belongs to one car."""
    rows = db.execute(
        "SELECT epoch, counter, count(*) FROM attempt GROUP BY epoch, counter HAVING count(*) > 1"
    )
    for epoch, counter, count in rows:
        world.ledger.violated("S6", f"fence {epoch}.{counter} was given out {count} times")
    last = Fence(0, 0)
    for epoch, counter in db.execute("SELECT epoch, counter FROM attempt ORDER BY no"):
        fence = Fence(epoch, counter)
        if fence <= last:
            world.ledger.violated("S6", f"fence {fence} was given out after {last}")
        last = fence


def s6_cars_follow_the_newest_fence(world: World, db: sqlite3.Connection) -> None:
    """S6. A car never takes up an attempt of a unit after a newer one of that unit."""
    del db
    for car in world.cars:
        for unit, newer, older in car.host.went_back:
            world.ledger.violated("S6", f"{car.name} took unit {unit} at {older} after {newer}")


def s20_outputs_stay(world: World, db: sqlite3.Connection) -> None:
    """S20. What a result refers to is there, whole, and its job's, as long as the job is kept."""
    if world.ledger.has_gone_back:
        return
    rows = db.execute(
        "SELECT j.id, j.tenant, r.reference FROM result r JOIN job j ON j.no=r.job_no"
        " WHERE r.reference IS NOT NULL"
    ).fetchall()
    for job, tenant, blob in rows:
        ref = _reference.decode(blob)
        path = world.kept / tenant / ref.sha256
        data = path.read_bytes() if path.exists() else b""
        if len(data) != ref.length or hashlib.sha256(data).hexdigest() != ref.sha256:
            world.ledger.violated("S20", f"{job} refers to {ref.sha256[:8]}, which is not there")
        name = f"{tenant}/{ref.sha256}"
        record = db.execute(
            "SELECT body FROM record WHERE kind='object' AND id=? AND NOT is_open", (name,)
        ).fetchone()
        if record is None or job.encode() not in record[0]:
            world.ledger.violated("S20", f"{name} is not kept for {job}")


def l1_everything_ends(world: World, db: sqlite3.Connection) -> None:
    """L1. Once faults have stopped, every accepted job ends."""
    for job, state in db.execute("SELECT id, state FROM job"):
        if state not in _ENDED:
            world.ledger.violated("L1", f"{job} is still {state}")
    for planned in world.plan:
        if (planned.tenant, planned.key) not in world.ledger.keys:
            world.ledger.violated("L1", f"{planned.tenant}'s {planned.key} was never accepted")


def l1_engines_are_free(world: World, db: sqlite3.Connection) -> None:
    """L1. Long after the last reason to stop has passed no engine is frozen."""
    del db
    for car in world.cars:
        if car.engine is not None and car.engine.is_frozen:
            world.ledger.violated("L1", f"{car.name} keeps its engine frozen")


def l1_desired_models_are_held(world: World, db: sqlite3.Connection) -> None:
    """L1. A car that is told to hold a model ready fetches it, with work for it or without."""
    del db
    for car in world.cars:
        for digest in car.missing:
            world.ledger.violated("L1", f"{car.name} was told to hold {digest[:8]} and does not")


def l2_items_are_started_so_often(world: World, db: sqlite3.Connection) -> None:
    """L2. No item is begun for ever, whatever it does to the cars that try it."""
    del db
    for data, count in world.ledger.starts.items():
        if count > SIM_STARTS_PER_ITEM_MAX:
            world.ledger.violated("L2", f"item {data[-4:].hex()} was begun {count} times")


def l2_attempts_are_bounded(world: World, db: sqlite3.Connection) -> None:
    """L2. Nothing is tried for ever."""
    rows = db.execute(
        "SELECT unit, count(*) FROM attempt GROUP BY unit HAVING count(*) > ?",
        (SIM_ATTEMPTS_PER_UNIT_MAX,),
    )
    for unit, count in rows:
        world.ledger.violated("L2", f"unit {unit} had {count} attempts")


def l3_requesters_get_everything(world: World, db: sqlite3.Connection) -> None:
    """L3. A requester that returns, however late, reads its job to the end."""
    del db
    for submitted in world.ledger.jobs.values():
        if not submitted.is_done:
            world.ledger.violated("L3", f"{submitted.job} was not read to its end")


def journals_are_empty(world: World, db: sqlite3.Connection) -> None:
    """S12. No car keeps what nobody waits for: chunks and attempts of ended jobs are forgotten."""
    del db
    for car in world.cars:
        path = car.host.folder / "journal.db"
        if not path.exists():
            continue
        for table, count in kept_rows(path).items():
            if count:
                world.ledger.violated("S12", f"{car.name} still keeps {count} of {table}")


def kept_rows(journal: Path) -> dict[str, int]:
    """How many attempts, chunks and outputs a journal holds, by table."""
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        return {
            table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - constant names
            for table in ("attempt", "chunk", "output")
        }


def s12_chunks_wait_for_answers(world: World, db: sqlite3.Connection) -> None:
    """S12. A car lets go of a chunk only when the dispatcher has answered it.

    Or when its owner withdraws consent, who takes back what is not handed over.
    """
    del db
    for car in world.cars:
        for chunk, gone_s in sorted(car.host.let_go.items()):
            unit, epoch, counter, seq = chunk
            key = (car.name, unit, Fence(epoch, counter), seq)
            since_s = car.host.chunks_since_s.get(chunk, 0.0)
            if key not in world.ledger.answered and not car.has_withdrawn(since_s, gone_s):
                world.ledger.violated("S12", f"{key} was dropped unanswered")


def s13_interactive_leaves_no_trace(world: World, db: sqlite3.Connection) -> None:
    """S13. Of a request that somebody waited for nothing is kept.

    Not in the store, not in any journal, and its large outputs in nobody's memory.
    """
    for name in world.holders_of_answers:
        world.ledger.violated("S13", f"{name} holds outputs that nobody waits for")
    interactive = world.ledger.interactive
    kept = {unit for (unit,) in db.execute("SELECT unit FROM attempt")} & interactive
    for unit in sorted(kept):
        world.ledger.violated("S13", f"interactive unit {unit} is in the store")
    for car in world.cars:
        for unit in sorted({key[0] for key in car.host.has_held} & interactive):
            world.ledger.violated("S13", f"{car.name} wrote interactive unit {unit} down")


def l4_who_waits_is_answered(world: World, db: sqlite3.Connection) -> None:
    """L4. Once faults have stopped, who asks and waits is answered."""
    del db
    for name in world.ledger.unanswered:
        world.ledger.violated("L4", f"{name} asks, waits, and is not answered")


def _stored(db: sqlite3.Connection, job: str) -> list[tuple[int, int, int]]:
    """A job's results as (cursor, item, whether good), in order."""
    return db.execute(
        "SELECT r.cursor, r.item & 1048575, r.error IS NULL FROM result r"
        " JOIN job j ON j.no = r.job_no WHERE j.id = ? ORDER BY r.cursor",
        (job,),
    ).fetchall()


def _right(submitted: Submitted, index: int) -> bytes:
    return answer(Item(index=index, media_type="", data=submitted.data[index]))


AT_ONCE: Final = (
    "S1. What anybody is told is on its teller's disk before: jobs, offers, results, answers.",
    "S2. An item is struck only for a death at which it was in hand.",
    "S4. No cursor is ever published as two things.",
    "S6. No fence of a unit goes to two cars; no two dispatchers hold one store.",
    "S7. The chunks of an attempt are numbered from 0 without a gap.",
    "S8. One key of a tenant is one job: twins share it, another body under it is refused.",
    (
        "S9. No item starts without leave, a told sensor stops the engine at once, and no engine"
        " computes 5 s after its owner took the car; a drained car takes no new unit."
    ),
    "S10. No tenant can read, change or hear of another's jobs.",
    "S11. Nothing that arrives ends a program; an item that failed on a car is offered alone.",
    "S12. Whatever an outbox drops is counted.",
    (
        "S13. Who waits gets the answer to its own question or a reason, once; and when it has left"
        " no car computes for it."
    ),
    "S15. Of tenants that wait for the same cars none is passed over while its round lasts.",
    "S16. A dispatcher that is told to end gives out no attempt, and drains in time.",
    (
        "S17. What is read of a text is at every moment the beginning of the undisturbed one; one"
        " car at a time writes it, and it ends in one finish or one error."
    ),
    (
        "S18. A key is let in until somebody asks to revoke it, and never once that was answered;"
        " an operator is always left."
    ),
    (
        "S19. Every line of a batch that is over has one end, in its output or its error file, as"
        " it deserves; what was answered of it stays, and none of its jobs runs on."
    ),
    (
        "S20. A result refers to an output only when that is kept whole; cars lose none that they"
        " have room for."
    ),
    "L1. A program that is told to end does so.",
)
"""What is judged at once, a line each, for people."""

CHECKS: Final[tuple[Callable[[World, sqlite3.Connection], None], ...]] = (
    s1_durable_accept,
    s2_conservation,
    s2_failures_have_causes,
    s2_blame_has_grounds,
    s2_forgotten_jobs_stay_away,
    s2_cancelled_jobs_rest,
    s3_memory_and_store_agree,
    s4_exactly_once,
    s4_topics_skip_nothing,
    s4_statuses_are_retained,
    s4_feeds_are_whole,
    s4_third_parties,
    s5_no_fabrication,
    s5_work_is_counted_once,
    s6_fences,
    s6_cars_follow_the_newest_fence,
    s20_outputs_stay,
    l1_everything_ends,
    l1_engines_are_free,
    l1_desired_models_are_held,
    l2_items_are_started_so_often,
    l2_attempts_are_bounded,
    l3_requesters_get_everything,
    journals_are_empty,
    s12_chunks_wait_for_answers,
    s13_interactive_leaves_no_trace,
    s14_usage,
    s17_work_is_booked_once,
    l4_who_waits_is_answered,
)
