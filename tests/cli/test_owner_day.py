"""`owner day` as an owner runs it: a page that explains the day, clear words for wrong files."""

import datetime as dt
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import edge_runtime

from edge_runtime.cli.day import render_day, summary_of
from edge_runtime.cli.day.words import REASONS, duration, energy, limit
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import Value
from edge_runtime.sim.campaign import silence
from edge_runtime.sim.day import DayRecord, live_day
from edge_runtime.vehicle.policy import OwnerPolicy, load_policy
from edge_runtime.vehicle.sensors.traces import Trace

START_UTC_S = 1_773_010_800
POLICY = """plugged_only = false
dwell_s = 5
time_zone = "Europe/Berlin"
[consent]
given = true
version = 1
[energy]
budget_wh_per_day = 400
price_per_kwh = 0.5
[departure]
reserve_hours = 1
"""
GOOD: dict[str, Value] = {
    "charge_percent": 80.0,
    "battery_temperature_c": 20.0,
    "ambient_temperature_c": 10.0,
    "compute_temperature_c": 40.0,
    "is_plugged": True,
    "is_charging": False,
    "is_parked": True,
    "is_occupied": False,
}
CHANGES: tuple[tuple[int, dict[str, Value]], ...] = (
    (0, {}),
    (600, {"is_plugged": False}),
    (1_200, {"is_occupied": True}),
    (1_260, {"is_occupied": True, "is_parked": False, "battery_temperature_c": None}),
    (1_800, {"battery_temperature_c": 900.0}),
    (2_400, {"is_charging": True, "charge_percent": 45.0}),
    (3_000, {}),
)


def recorded() -> Trace:
    """An hour in which an owner does this and that."""
    rows = tuple(tuple((GOOD | change).values()) for _, change in CHANGES)
    times_ns = tuple(at_s * 1_000_000_000 for at_s, _ in CHANGES)
    return Trace(tuple(GOOD), float(START_UTC_S), times_ns, rows)


def write_csv(path: Path) -> Path:
    trace = recorded()
    lines = [",".join(("utc_s", *trace.names))]
    for time_ns, row in zip(trace.times_ns, trace.rows, strict=True):
        cells = ("" if cell is None else str(cell).lower() for cell in row)
        lines.append(",".join((str(START_UTC_S + time_ns // 1_000_000_000), *cells)))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> DayRecord:
    silence()
    policy = tmp_path_factory.mktemp("policy") / "policy.toml"
    policy.write_text(POLICY)
    return live_day(recorded(), policy)


class Page(HTMLParser):
    """What a page shows and what it asks for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.labels: list[str] = []
        self.asks: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.asks += [f"{tag} {name}" for name in named if name in {"src", "href", "srcset"}]
        if tag == "svg":
            self.labels.append(named.get("aria-label") or "")
        if tag not in {"meta", "path", "rect", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_says_what_happened_in_words_and_loads_nothing(day: DayRecord) -> None:
    html = render_day(day, "<b>&.csv", "policy.toml", dt.UTC)
    page = Page(html)
    assert not page.open
    assert not page.asks
    assert "url(" not in html.replace("url(#", "")
    assert "@import" not in html
    assert "<b>&.csv" not in html
    assert page.text.count("Your car worked 3") == 1, page.text[:300]
    for words in ("somebody sat in the car", "you were driving", "too little charge"):
        assert words in page.text
    assert "a reading was impossible" in page.text
    assert "charge.stop_percent = 50" in page.text
    assert "there was always work" in page.text.lower()
    assert "40 W" in page.text
    assert len(page.labels) == 6, "availability, charge, battery, computer, energy, wear"
    assert all(page.labels)
    assert "charge from 45 % at 23:40 to 80 % at 23:00" in page.labels[1]


def test_a_gap_in_the_readings_is_a_gap_in_the_curve(day: DayRecord) -> None:
    html = render_day(day, "day.csv", "policy.toml", dt.UTC)
    curve = html.partition('class="line battery" d="')[2].partition('"')[0]
    assert curve.count("M") == 2, "before and after what was missing or impossible"
    assert "900" not in Page(html).labels[2]


def test_the_summary_adds_up(day: DayRecord) -> None:
    summary = summary_of(day)
    assert summary.worked_min + summary.ready_min + summary.held_min == pytest.approx(60, abs=0.5)
    assert summary.held_min == pytest.approx(sum(row.minutes for row in summary.holds), abs=0.5)
    assert summary.pack_wh > 0
    assert summary.cost == pytest.approx(summary.grid_wh / 1000 * 0.5, abs=1e-3)
    assert summary.worked_min == pytest.approx(day.seconds_in(Availability.WORKING) / 60, abs=0.1)
    by_reason = {row.reason: row for row in summary.holds}
    assert by_reason["sensor_invalid"].minutes == pytest.approx(10, abs=0.1)
    assert by_reason["occupied"].limits == ("empty_only = true",)
    assert [row.minutes for row in summary.holds] == sorted(
        (row.minutes for row in summary.holds), reverse=True
    )


def test_every_reason_has_words_and_an_answer() -> None:
    assert set(REASONS) == set(HoldReason)
    assert all(words and change for words, change in REASONS.values())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "none"), (40, "40 s"), (90, "2 min"), (3_600, "1 h"), (18_720, "5 h 12 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_amounts_and_limits() -> None:
    assert [energy(wh) for wh in (0, 4.2, 600, 4_100)] == [
        "nothing", "4.2 Wh", "0.60 kWh", "4.10 kWh",
    ]  # fmt: skip
    policy = OwnerPolicy()
    assert limit(policy, "charge.stop_percent") == "charge.stop_percent = 50"
    assert limit(policy, "network.metered") == 'network.metered = "stop"'
    assert limit(policy, "schedule") == "schedule"
    assert limit(policy, "no.such_key") == "no.such_key"


# --- the command ----------------------------------------------------------------------------------


def test_a_day_by_command(tmp_path: Path) -> None:
    trace, page = write_csv(tmp_path / "day.csv"), tmp_path / "day.html"
    (tmp_path / "policy.toml").write_text(POLICY)
    done = edge_runtime(
        "owner", "day", str(trace), "--policy", "policy.toml", "--html", str(page), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Your car worked 3")
    assert "times real time" in done.stdout
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "day.csv", "day.html", "policy.toml",
    ]  # fmt: skip
    assert load_policy(tmp_path / "policy.toml").consent.version == 1


def test_a_day_as_json_from_parquet_under_the_shipped_policy(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    trace = recorded()
    columns = dict(zip(trace.names, zip(*trace.rows, strict=True), strict=True))
    times = [START_UTC_S + time_ns // 1_000_000_000 for time_ns in trace.times_ns]
    table = pa.table({"utc_s": times, **{name: list(cells) for name, cells in columns.items()}})
    parquet.write_table(table, tmp_path / "day.parquet")
    done = edge_runtime("owner", "day", str(tmp_path / "day.parquet"), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["pack_wh"] == 0
    assert said["times_real_time"] > 0
    assert {row["reason"] for row in said["holds"]} >= {"not_plugged", "not_parked"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("utc_s,speed_of_light\n0,1\n1,1\n", ("line 1", "speed_of_light")),
        ("utc_s,charge_percent\n0,50\n0,50\n", ("line 3", "not after")),
        ("utc_s,charge_percent\n0,much\n1,50\n", ("line 2", "charge_percent", "no number")),
        ("utc_s,charge_percent\n0,50\n", ("1 rows, at least 2",)),
        ("utc_s,charge_percent\n0,50\n9e5,50\n", ("hours, at most 192",)),
        ("", ("utc_s",)),
    ],
)
def test_a_broken_trace_is_one_clear_line(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    trace = tmp_path / "broken.csv"
    trace.write_text(text)
    done = edge_runtime("owner", "day", str(trace))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


def test_a_wrong_policy_zone_or_setting_is_one_clear_line(tmp_path: Path) -> None:
    trace = write_csv(tmp_path / "day.csv")
    (tmp_path / "wrong.toml").write_text("dwell_s = -1\n")
    for arguments, word in (
        (("--policy", str(tmp_path / "wrong.toml")), "dwell_s"),
        (("--policy", str(tmp_path / "none.toml")), "none.toml"),
        (("--time-zone", "Mars/Olympus"), "Mars/Olympus"),
        (("--cell", "lead"), "lead"),
        (("--pack-kwh", "0"), "pack_kwh"),
        (("--html", str(tmp_path)), "it is a folder"),
        (("--html", str(tmp_path / "none" / "day.html")), "there is no folder"),
    ):
        done = edge_runtime("owner", "day", str(trace), *arguments)
        assert done.returncode == 2, done.stderr
        assert word in done.stderr.splitlines()[-1]
