"""The agent with everything real but the car around it: offers in, answers out, stops at once."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from agent_rig import Garage, is_ready, until
from scripted_dispatcher import row, tensor, unit_offer
from structlog.testing import capture_logs

from edge_runtime.bus import Message
from edge_runtime.contract import codec, limits
from edge_runtime.contract.errors import ConfigError, RejectionReason
from edge_runtime.contract.messages import (
    Birth,
    Cancel,
    Cancelled,
    Chunk,
    Control,
    Drain,
    Fence,
    ItemDone,
    ItemFailed,
    Offline,
    Rebirth,
    Refused,
    Results,
    Taken,
)
from edge_runtime.contract.package import Package
from edge_runtime.contract.reasons import (
    Availability,
    CancelReason,
    HoldReason,
    ItemError,
    Outcome,
    RefusalReason,
    ReleaseReason,
    StopTier,
)
from edge_runtime.contract.topics import Down
from edge_runtime.vehicle.agent import VehicleSettings
from edge_runtime.vehicle.inference.options import EngineOptions
from edge_runtime.vehicle.journal import JournalHeld
from edge_runtime.vehicle.outgoing import EncodedResults

Make = Callable[[str], Package]
F1 = Fence(1, 1)


def rows_in(garage: Garage, table: str) -> int:
    with closing(sqlite3.connect(garage.state_dir / "journal.db")) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - the test's own names
    return count


async def test_a_unit_is_taken_computed_reported_answered_and_forgotten(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    async with garage.both(noop) as (agent, peer):
        peer.offer(unit_offer(noop, [tensor(1), tensor(2), tensor(3)]))
        chunk = await peer.ending()
        assert peer.verdicts == [Taken(unit=1, fence=F1)]
        assert chunk.ending is not None
        assert chunk.ending.outcome is Outcome.COMPLETED
        assert chunk.load_ms > 0
        results = peer.results()
        assert sorted(results) == [0, 1, 2]
        assert all(isinstance(item, ItemDone) for item in results.values())
        await until(lambda: agent.core.work.outbox.count == 0)
        await until(lambda: rows_in(garage, "chunk") == 0)
    assert rows_in(garage, "attempt") == 0


async def test_two_hundred_units_through_one_car(garage: Garage, synthetic: Make) -> None:
    noop = synthetic("noop")
    garage.units_max = limits.CAR_UNITS_MAX
    async with garage.both(noop) as (agent, peer):
        offers = [unit_offer(noop, [tensor(unit)], unit) for unit in range(1, 201)]
        done: set[int] = set()
        for start in range(0, 200, 50):
            peer.offer(*offers[start : start + 50])
            await peer.until(lambda end=start + 50: len({c.unit for c in peer.chunks}) >= end)
        done = {chunk.unit for chunk in peer.chunks}
        assert done == set(range(1, 201))
        assert len(peer.chunks) == 200
        await until(lambda: agent.core.work.ledger.is_empty)


async def test_the_owners_return_freezes_the_engine_and_gives_the_work_back(
    garage: Garage, synthetic: Make
) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (_, peer):
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        garage.sensors.command(b'{"is_occupied": true}')
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.HOLD
        assert chunk.ending.hold is HoldReason.OCCUPIED
        assert chunk.ending.stop is not None
        assert chunk.ending.stop.tier is StopTier.FREEZE
        assert chunk.ending.stop.latency_ms < 1_000
        await peer.until(lambda: peer.states[-1].availability is Availability.HOLD)
        assert peer.states[-1].free_units == 0
        finished = len(peer.results())
        assert 0 < finished < 100
        garage.sensors.command(b'{"release": ["is_occupied"]}')
        await peer.until(lambda: is_ready(peer))


async def test_a_short_visit_loses_nothing(garage: Garage, synthetic: Make) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (_, peer):
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        garage.sensors.command(b'{"is_occupied": true}')
        await peer.until(lambda: peer.states[-1].availability is Availability.STOPPING)
        garage.sensors.command(b'{"is_occupied": false}')
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.outcome is Outcome.COMPLETED
        assert len(peer.results()) == 100


async def test_driving_off_gives_everything_back_without_a_grace(
    garage: Garage, synthetic: Make
) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (_, peer):
        peer.offer(*(unit_offer(chain, [row(160)] * 100, unit) for unit in (1, 2, 3)))
        await peer.until(peer.of)
        left = time.monotonic()
        garage.sensors.command(b'{"is_parked": false}')
        endings = [await peer.ending(unit) for unit in (1, 2, 3)]
        assert time.monotonic() - left < limits.THAW_GRACE_MS / 1000
        assert {c.ending.hold for c in endings if c.ending} == {HoldReason.NOT_PARKED}
        await peer.until(lambda: peer.states[-1].availability is Availability.DRIVING)


async def test_an_item_that_never_ends_is_given_up_and_the_rest_is_done(
    garage: Garage, synthetic: Make
) -> None:
    package = synthetic("loop-when-positive")
    garage.engine = EngineOptions(hang_ms=500)
    async with garage.both(package) as (_, peer):
        peer.offer(unit_offer(package, [tensor(-1), tensor(1), tensor(-1)]))
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.outcome is Outcome.COMPLETED
        results = peer.results()
        bad = results[1]
        assert isinstance(bad, ItemFailed)
        assert bad.code is ItemError.ENGINE_HUNG
        assert isinstance(results[0], ItemDone)
        assert isinstance(results[2], ItemDone)


async def test_an_engine_killed_from_outside_costs_one_item(
    garage: Garage, synthetic: Make
) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (agent, peer):
        peer.offer(unit_offer(chain, [row(160)] * 20))
        await peer.until(peer.of)
        engine = agent.engine
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await peer.ending()
        results = peer.results()
        failed = [item for item in results.values() if isinstance(item, ItemFailed)]
        assert len(results) == 20
        assert [item.code for item in failed] in ([], [ItemError.ENGINE_KILLED])


async def test_a_running_unit_is_cancelled(garage: Garage, synthetic: Make) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (_, peer):
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        peer.order(Cancel(unit=1, fence=F1, reason=CancelReason.JOB_CANCELLED))
        await peer.until(lambda: Cancelled(unit=1, fence=F1) in peer.verdicts)
    assert rows_in(garage, "attempt") == 0


async def test_a_model_that_no_host_has_is_refused_or_given_back(
    garage: Garage, synthetic: Make
) -> None:
    async with garage.both() as (_, peer):
        peer.offer(unit_offer(synthetic("noop"), [tensor(1)]))
        await peer.until(lambda: peer.chunks or any(isinstance(v, Refused) for v in peer.verdicts))
        peer.offer(unit_offer(synthetic("noop"), [tensor(1)], unit=2))
        await peer.until(lambda: any(v.unit == 2 for v in peer.verdicts))
        (late,) = [v for v in peer.verdicts if v.unit == 2]
        assert isinstance(late, Refused)
        assert late.reason is RefusalReason.MODEL_UNAVAILABLE


async def test_leaving_gives_back_says_goodbye_and_is_quick(
    garage: Garage, synthetic: Make
) -> None:
    chain = synthetic("chain")
    await garage.stock(chain)
    async with garage.dispatcher() as peer:
        async with garage.car():
            await peer.until(lambda: is_ready(peer))
            peer.offer(unit_offer(chain, [row(160)] * 100))
            await peer.until(peer.of)
            left = time.monotonic()
        assert time.monotonic() - left < limits.CAR_CLOSE_MAX_S
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.DRAINING
        await peer.until(lambda: isinstance(peer.statuses[-1], Offline))


async def test_the_next_life_has_a_greater_boot_and_reports_what_was_not_answered(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    async with garage.dispatcher() as peer:
        await garage.stock(noop)
        peer.answers_chunks = False
        async with garage.car() as agent:
            first = agent.boot
            await peer.until(lambda: is_ready(peer))
            peer.offer(unit_offer(noop, [tensor(1)]))
            await peer.ending()
        peer.chunks.clear()
        peer.answers_chunks = True
        async with garage.car() as agent:
            assert agent.boot > first
            chunk = await peer.ending()
            assert [item.index for item in chunk.items] == [0]
            await until(lambda: agent.core.work.outbox.count == 0)


async def test_a_broker_that_forgets_everything_is_told_everything_again(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    async with garage.both(noop) as (_, peer):
        peer.answers_chunks = False
        peer.offer(unit_offer(noop, [tensor(1)]))
        await peer.ending()
        peer.chunks.clear()
        births = len(peer.statuses)
        garage.broker.kill()
        garage.broker.start()
        peer.answers_chunks = True
        await peer.ending()
        await peer.until(lambda: len(peer.statuses) > births)


BAD = [
    (b"", RejectionReason.MALFORMED),
    (b"\xc1", RejectionReason.MALFORMED),
    (b"\x91" * 100_000, RejectionReason.WRONG_TYPE),
    (codec.encode_signed(["mystery", 1]), RejectionReason.UNKNOWN_TAG),
    (codec.encode_signed(Control(vehicle="car-2", orders=())), RejectionReason.WRONG_VEHICLE),
    (codec.encode(Control(vehicle="car-1", orders=())), RejectionReason.UNKNOWN_TAG),
    (b"x" * (limits.MESSAGE_MAX_BYTES), RejectionReason.MALFORMED),
]


async def test_bad_messages_are_counted_and_the_service_goes_on(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    async with garage.both(noop) as (agent, peer):
        for payload, _ in BAD:
            for kind in Down:
                await peer.bus.publish(Message(peer.topics.down("car-1", kind), payload))
        await peer.bus.publish(Message(peer.topics.host("evil"), b"\xc1"))
        peer.offer(unit_offer(noop, [tensor(1)]))
        await peer.ending()
        assert sum(agent.rejected.values()) >= len(Down) * (len(BAD) - 1) + 1
        assert {reason for _, reason in BAD} <= set(agent.rejected) | {RejectionReason.WRONG_TYPE}


async def test_a_policy_that_changes_takes_effect_within_moments(garage: Garage) -> None:
    async with garage.both() as (_, peer):
        garage.policy.write_text("dwell_s = 0\n[consent]\ngiven = false\nversion = 2\n")
        await peer.until(lambda: peer.states[-1].hold is HoldReason.CONSENT_WITHDRAWN)
        garage.policy.write_text("dwell_s = nonsense")
        await peer.until(lambda: peer.states[-1].hold is HoldReason.POLICY_INVALID)
        garage.policy.unlink()
        await peer.until(lambda: peer.states[-1].hold is HoldReason.CONSENT_MISSING)


async def test_draining_is_said_and_ends(garage: Garage) -> None:
    async with garage.both() as (_, peer):
        peer.order(Drain(active=True))
        await peer.until(lambda: peer.states[-1].hold is HoldReason.DRAINING)
        peer.order(Drain(active=False))
        await peer.until(lambda: is_ready(peer))


async def test_one_canonical_line_per_unit_without_payloads(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    with capture_logs() as logs:
        async with garage.both(noop) as (_, peer):
            peer.offer(unit_offer(noop, [tensor(1), tensor(2)]))
            await peer.ending()
    (line,) = [entry for entry in logs if entry["event"] == "unit"]
    assert (line["unit"], line["fence"], line["outcome"]) == (1, "1.1", "completed")
    assert (line["items"], line["done"], line["failed"]) == (2, 2, 0)
    assert not any(isinstance(value, bytes | list | tuple) for value in line.values())


async def test_a_second_agent_on_the_same_journal_is_refused(garage: Garage) -> None:
    async with garage.both():
        with pytest.raises(JournalHeld, match=f"held by process {os.getpid()}"):
            async with garage.car():
                pass


async def test_a_defect_ends_the_agent_with_its_cause(garage: Garage) -> None:
    class BrokenSensors:
        async def run(self, emit: object) -> None:
            raise RuntimeError(f"no bus for {emit is None}")

        def note_load(self, *, is_busy: bool) -> None:
            del is_busy

    with capture_logs() as logs:
        async with garage.car() as agent:
            pass
        garage.sensors = BrokenSensors()  # type: ignore[assignment]  # that is the point
        with pytest.raises(RuntimeError, match="no bus"):
            async with garage.car() as agent:
                await agent.wait_ended()
    assert "vehicle_broke" in {entry["event"] for entry in logs}


@pytest.mark.parametrize(
    "changes", [{"vehicle": "a car"}, {"region": ""}, {"units_max": 0}, {"units_max": 257}]
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = VehicleSettings(
        vehicle="car-1", broker_url="mqtt://x", state_dir=tmp_path, policy=tmp_path
    )
    with pytest.raises(ConfigError):
        replace(settings, **changes)  # type: ignore[arg-type]  # wrong on purpose


def test_an_idle_car_loads_no_numpy_and_no_onnxruntime() -> None:
    script = (
        "import sys, edge_runtime.vehicle.agent, edge_runtime.vehicle.inference.engine,"
        " edge_runtime.vehicle.models.store, edge_runtime.vehicle.sensors.simulated,"
        " edge_runtime.bus.mqtt;"
        "print(sorted({'numpy', 'onnxruntime', 'cv2', 'litestar'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_the_wrapped_chunks_are_what_the_contract_says() -> None:
    chunk = Chunk(job="j", unit=1, fence=F1, model="a" * 64, seq=0, items=())
    ours = EncodedResults(vehicle="c", boot=3, chunks=(msgspec.Raw(codec.encode(chunk)),))
    assert codec.encode(ours) == codec.encode(Results(vehicle="c", boot=3, chunks=(chunk,)))


async def test_sensor_edges_do_not_wait_for_messages(garage: Garage, synthetic: Make) -> None:
    """A flood of offers is on its way in; the engine is frozen before most of it is read."""
    chain = synthetic("chain")
    async with garage.both(chain) as (agent, peer):
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        for unit in range(2, 500):
            peer.offer(unit_offer(chain, [row(160)] * 20, unit))
        await asyncio.sleep(0)
        garage.sensors.command(b'{"is_parked": false}')
        assert agent.core.availability is Availability.STOPPING
        await peer.ending()


async def test_work_that_comes_while_the_engine_is_being_killed_waits_for_the_next(
    garage: Garage, synthetic: Make
) -> None:
    chain = synthetic("chain")
    async with garage.both(chain) as (_, peer):
        peer.offer(unit_offer(chain, [row(160)] * 100))
        await peer.until(peer.of)
        garage.sensors.command(b'{"is_parked": false}')
        garage.sensors.command(b'{"is_parked": true}')
        peer.offer(unit_offer(chain, [row(160)] * 2, unit=2))
        await peer.until(lambda: any(v.unit == 2 for v in peer.verdicts))
        (verdict,) = [v for v in peer.verdicts if v.unit == 2]
        if isinstance(verdict, Taken):
            chunk = await peer.ending(2)
            assert chunk.ending is not None
            assert chunk.ending.outcome is Outcome.COMPLETED
        await peer.ending(1)


async def test_a_package_that_was_removed_is_fetched_again_or_the_unit_given_back(
    garage: Garage, synthetic: Make
) -> None:
    noop = synthetic("noop")
    async with garage.both(noop) as (agent, peer):
        peer.offer(unit_offer(noop, [tensor(1)]))
        await peer.ending()
        await agent.packages.remove(noop.digest)
        peer.offer(unit_offer(noop, [tensor(1)], unit=2))
        chunk = await peer.ending(2)
        assert chunk.ending is not None
        assert chunk.ending.reason is ReleaseReason.MODEL_UNAVAILABLE


class PackageHandler(BaseHTTPRequestHandler):
    """Serves one package as a dispatcher does."""

    package: Package

    def do_GET(self) -> None:
        prefix = f"/v1/models/{self.package.digest}/"
        if self.path == prefix + "manifest":
            body = self.package.manifest.canonical_bytes()
        elif self.path.startswith(prefix + "files/"):
            body = (self.package.folder / self.path.removeprefix(prefix + "files/")).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args


@pytest.fixture
def package_url(synthetic: Make) -> Iterator[str]:
    handler = type("Handler", (PackageHandler,), {"package": synthetic("noop")})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_packages_come_from_the_host_that_says_it_has_them(
    garage: Garage, synthetic: Make, package_url: str
) -> None:
    noop = synthetic("noop")
    garage.models_url = None
    async with garage.both() as (agent, peer):
        peer.offer(unit_offer(noop, [tensor(1)]))
        peer.host(package_url)
        chunk = await peer.ending()
        assert chunk.ending is not None
        assert chunk.ending.outcome is Outcome.COMPLETED
        assert agent.packages.get(noop.digest) is not None


async def test_a_desired_model_is_there_before_it_is_needed(
    garage: Garage, synthetic: Make, package_url: str
) -> None:
    noop = synthetic("noop")
    garage.models_url = package_url
    async with garage.both() as (agent, peer):
        peer.desire(noop.digest)
        await until(lambda: noop.digest in agent.packages.digests())
        births = len(peer.statuses)
        peer.order(Rebirth())
        await peer.until(lambda: len(peer.statuses) > births)
        birth = peer.statuses[-1]
        assert isinstance(birth, Birth)
        assert birth.resident == (noop.digest,)
