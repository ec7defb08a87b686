"""Recorded days: reading them, refusing wrong ones by line and column, replaying them."""

import asyncio
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from sensor_rig import Listener

from edge_runtime.contract import limits
from edge_runtime.contract.clock import Now
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.vehicle.core.readings import Quality, Readings
from edge_runtime.vehicle.sensors.replay import TraceSensors
from edge_runtime.vehicle.sensors.traces import Trace, read_trace

SHIPPED = sorted((Path(__file__).parents[3] / "examples/traces").glob("*.csv"))
S = 1_000_000_000
HEADER = "utc_s,is_parked,charge_percent,power_saving_level,departure_utc_s\n"
DAY = HEADER + (
    "1800000000,true,80.5,0,1800000030\n"
    "1800000010,false,,1,\n"
    "1800000020.5, TRUE ,79,10,1800000030\n"
)


def read(folder: Path, text: str | bytes, name: str = "day.csv") -> Trace:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_trace(path)


# --- reading ---------------------------------------------------------------------------------


def test_a_row_holds_until_the_next(tmp_path: Path) -> None:
    trace = read(tmp_path, DAY)
    assert trace.start_utc_s == 1_800_000_000
    assert trace.times_ns == (0, 10 * S, 20 * S + S // 2)
    assert trace.duration_ns == 31 * S
    assert trace.at(-1) == trace.at(0) == trace.at(10 * S - 1)
    assert trace.at(10 * S) == {
        "is_parked": False,
        "charge_percent": None,
        "power_saving_level": 1,
        "departure_utc_s": None,
    }
    assert trace.at(10**18)["power_saving_level"] == 10


def test_moments_are_every_row_and_with_a_period_none_is_far_from_the_next(tmp_path: Path) -> None:
    trace = read(tmp_path, DAY)
    assert [time_ns for time_ns, _ in trace.moments()] == list(trace.times_ns)
    times = [time_ns for time_ns, _ in trace.moments(4 * S)]
    assert times == [
        0,
        4 * S,
        8 * S,
        10 * S,
        14 * S,
        18 * S,
        *(20 * S + S // 2 + n for n in (0, 4 * S, 8 * S)),
    ]


def test_types_are_those_of_the_signals(tmp_path: Path) -> None:
    trace = read(tmp_path, DAY)
    readings, now = Readings(), Now(0, 0)
    readings.update(trace.at(0), 0)
    assert all(readings.quality(name, now) is Quality.GOOD for name in trace.names)


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    trace = read(tmp_path, DAY)
    columns: dict[str, Any] = {
        "utc_s": [1_800_000_000.0, 1_800_000_010.0, 1_800_000_020.5],
        "is_parked": [True, False, True],
        "charge_percent": [80.5, None, 79.0],
        "power_saving_level": [0, 1, 10],
        "departure_utc_s": [1_800_000_030, None, 1_800_000_030],
    }
    parquet.write_table(pa.table(columns), tmp_path / "day.parquet")
    assert read_trace(tmp_path / "day.parquet") == trace


def test_parquet_may_have_points_in_time(tmp_path: Path) -> None:
    for zone in (None, "UTC"):
        times = pa.array([1_800_000_000_000, 1_800_000_010_000], pa.timestamp("ms", zone))
        table = pa.table({"utc_s": times, "is_parked": [True, False]})
        parquet.write_table(table, tmp_path / "day.parquet")
        trace = read_trace(tmp_path / "day.parquet")
        assert (trace.start_utc_s, trace.times_ns) == (1_800_000_000, (0, 10 * S))


ROWS = "1800000000,true,80,0,\n1800000010,true,80,0,\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: utc_s and each signal must be there once"),
        (HEADER, "0 rows, at least 2"),
        (HEADER + "1800000000,true,80,0,\n", "1 rows, at least 2"),
        ("time,is_parked\n1,true\n2,true\n", "line 1: 'time' is no signal"),
        ("utc_s,mood\n1,true\n2,true\n", "line 1: 'mood' is no signal"),
        ("utc_s,utc_s\n1,1\n2,2\n", "line 1: utc_s and each signal must be there once"),
        ("utc_s,is_parked,is_parked\n", "line 1: utc_s and each signal must be there once"),
        ("is_parked\ntrue\n", "line 1: utc_s and each signal must be there once"),
        (HEADER + ROWS + "1800000020,true\n", "line 4: 2 cells, not 5"),
        (HEADER + ROWS + "1800000010,true,80,0,\n", "line 4, utc_s: 1.8e.09 is not after"),
        (HEADER + ROWS + "1799999999,true,80,0,\n", "line 4, utc_s: .* is not after"),
        (HEADER + "nan,true,80,0,\n", "line 2, utc_s: 'nan' is no time"),
        (HEADER + "-1,true,80,0,\n", "line 2, utc_s: '-1' is no time"),
        (HEADER + ",true,80,0,\n", "line 2, utc_s: '' is no time"),
        (HEADER + "1e300,true,80,0,\n", "line 2, utc_s: '1e300' is no time"),
        (HEADER + ROWS + "1800000020,maybe,80,0,\n", "line 4, is_parked: 'maybe' is not true or"),
        (HEADER + ROWS + "1800000020,true,warm,0,\n", "line 4, charge_percent: 'warm' is no num"),
        (HEADER + ROWS + "\n\n1800000020,true,warm,0,\n", "line 6, charge_percent"),
        (HEADER + ROWS + '1800000020,"true,80,0,\n', "line 4: "),
        (HEADER + ROWS + "x" * 5000, "line 4: over 4096 characters"),
        (HEADER.encode() + b"\xff\xfe", "not UTF-8 at byte"),
        (b"PK\x03\x04\x00\x00", "line 1: "),
    ],
)
def test_a_wrong_file_is_refused_by_line_and_column(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    with pytest.raises(ConfigError, match=rf"day\.csv: {says}"):
        read(tmp_path, text)


def test_a_wrong_parquet_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"day\.parquet: "):
        read(tmp_path, b"PAR1 nothing of the kind PAR1", "day.parquet")
    wrong = pa.table({"utc_s": [1, 2, 3], "is_parked": [1.5, 1.5, 1.5]})
    parquet.write_table(wrong, tmp_path / "day.parquet")
    with pytest.raises(ConfigError, match=r"line 2, is_parked: 1\.5 is not true or false"):
        read_trace(tmp_path / "day.parquet")
    nested = pa.table({"utc_s": [1, 2], "charge_percent": [[1], [2]]})
    parquet.write_table(nested, tmp_path / "day.parquet")
    with pytest.raises(ConfigError, match=r"line 2, charge_percent: \[1\] is no number"):
        read_trace(tmp_path / "day.parquet")


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match=r"a \.csv or a \.parquet file"):
        read(tmp_path, DAY, "day.json")
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(limits.TRACE_MAX_BYTES + 1)
    with pytest.raises(ConfigError, match="at most"):
        read_trace(huge)


CELLS = st.one_of(
    st.sampled_from(["", "true", "false", "1", "0", "nan", "inf", "1e400", "9" * 400, '"', "\x00"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)


@given(
    st.lists(st.lists(CELLS, max_size=5), max_size=6),
    st.sampled_from(["", HEADER, "utc_s,is_parked\n"]),
)
@settings(max_examples=300, deadline=None)
def test_any_file_is_a_trace_or_a_clear_refusal(rows: list[list[str]], head: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.csv"
        path.write_text(head + "\n".join(map(",".join, rows)), errors="surrogateescape")
        refusal = ""
        try:
            trace = read_trace(path)
        except ConfigError as error:
            refusal = str(error)
        if refusal:
            assert refusal.startswith(f"{path}: ")
        else:
            assert all(early < late for early, late in pairwise(trace.times_ns))
            assert all(set(values) == set(trace.names) for _, values in trace.moments())


def test_recorded_absurdities_are_replayed_and_not_believed(tmp_path: Path) -> None:
    trace = read(tmp_path, HEADER + "1,true,nan,-5,\n2,true,1e9,99999999999999999999,\n")
    for time_ns, values in trace.moments():
        readings = Readings()
        readings.update(values, time_ns)
        now = Now(time_ns, 0)
        assert readings.quality("charge_percent", now) is Quality.INVALID
        assert readings.quality("power_saving_level", now) is Quality.INVALID


# --- replaying ---------------------------------------------------------------------------------


@dataclass
class Clock:
    """Real time, `speed` times as fast, from a moment of our choice."""

    start_ns: int = 7 * 3600 * S

    def __call__(self) -> Now:
        boot_ns = self.start_ns + round(asyncio.get_running_loop().time() * 1e9)
        return Now(boot_ns, 1_900_000_000_000 + (boot_ns - self.start_ns) // 1_000_000)


async def replayed(sensors: TraceSensors) -> Listener:
    listener = Listener()
    async with asyncio.timeout(20):
        await sensors.run(listener)
    return listener


async def test_a_day_is_replayed_at_speed_and_ends_in_silence(tmp_path: Path) -> None:
    trace = read(tmp_path, DAY)
    started_s = asyncio.get_running_loop().time()
    listener = await replayed(TraceSensors(trace, speed=62.0, clock=Clock()))
    took_s = asyncio.get_running_loop().time() - started_s
    assert 0.5 <= took_s < 5
    levels = [event.values["power_saving_level"] for event in listener.said]
    assert levels == sorted(levels)
    assert set(levels) == {0, 1, 10}
    assert all(a.at_ns < b.at_ns for a, b in pairwise(listener.said))


async def test_a_day_that_loops_begins_again(tmp_path: Path) -> None:
    sensors = TraceSensors(read(tmp_path, DAY), speed=310.0, loops=True, clock=Clock())
    listener = Listener()
    task = asyncio.create_task(sensors.run(listener))
    await listener.hears_value("power_saving_level", 10)
    await listener.hears_value("power_saving_level", 0, after=len(listener.said))
    assert not task.done()
    task.cancel()


async def test_a_departure_lies_as_far_ahead_as_it_did(tmp_path: Path) -> None:
    clock = Clock()
    trace = read(tmp_path, DAY)
    now_s = clock().utc_ms / 1000
    for speed in (1.0, 10.0):
        sensors = TraceSensors(trace, speed=speed, clock=clock)
        listener = Listener()
        task = asyncio.create_task(sensors.run(listener))
        event = await listener.hears(lambda _: True)
        task.cancel()
        departure = event.values["departure_utc_s"]
        assert isinstance(departure, int)
        assert departure == pytest.approx(now_s + 30 / speed, abs=2)


async def test_a_computer_that_slept_skips_rows_instead_of_telling_them_at_once(
    tmp_path: Path,
) -> None:
    """The clock has jumped 15 s ahead between the first and the second look."""
    clock, looks = Clock(), [0]

    def jumping() -> Now:
        looks[0] += 1
        now = clock()
        return now if looks[0] <= 2 else Now(now.boot_ns + 21 * S, now.utc_ms)

    sensors = TraceSensors(read(tmp_path, DAY), speed=1.0, clock=jumping)
    listener = Listener()
    task = asyncio.create_task(sensors.run(listener))
    await listener.hears_value("power_saving_level", 10)
    task.cancel()
    assert [event.values["power_saving_level"] for event in listener.said] == [0, 10]


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf"), 1e7])
def test_an_impossible_speed_is_refused(tmp_path: Path, speed: float) -> None:
    with pytest.raises(ConfigError, match="speed is over 0 and at most 1e\\+06"):
        TraceSensors(read(tmp_path, DAY), speed=speed)


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_day_is_whole_plausible_and_small(path: Path) -> None:
    trace = read_trace(path)
    assert trace.times_ns[-1] == 24 * 3600 * S
    assert path.stat().st_size < 200_000
    assert set(trace.names) <= {signal.name for signal in SIGNALS}
    assert {"charge_percent", "is_parked", "departure_utc_s", "cabin_temperature_c"} <= set(
        trace.names
    )
    for time_ns, values in trace.moments():
        readings, now = Readings(), Now(time_ns, 0)
        readings.update(values, time_ns)
        for name, value in values.items():
            wanted = Quality.ABSENT if value is None else Quality.GOOD
            assert readings.quality(name, now) is wanted, (time_ns, name, value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_day_makes_sense(path: Path) -> None:
    days = [values for _, values in read_trace(path).moments()]
    assert {values["is_parked"] for values in days} == {True, False}
    for before, after in pairwise(days):
        if not after["is_parked"]:
            assert after["is_occupied"]
            assert not after["is_plugged"]
        if after["is_charging"]:
            assert after["is_plugged"]
        assert abs(after["charge_percent"] - before["charge_percent"]) < 4
        assert abs(after["battery_temperature_c"] - before["battery_temperature_c"]) < 1


def test_three_days_are_shipped() -> None:
    assert [path.stem for path in SHIPPED] == ["commute", "long-trip", "winter"]
