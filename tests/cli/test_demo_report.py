"""The report is a pure function of its data, loads nothing and shows what happened."""

import re
from html.parser import HTMLParser

import msgspec
import pytest

from edge_runtime.cli.demo.report import (
    Box,
    FaultKind,
    FaultMark,
    JobRow,
    PictureAnswer,
    ReportData,
    ResultMark,
    SimilarAnswer,
    Summary,
    render_report,
)
from edge_runtime.cli.demo.report.bars import find_reissues, make_bars
from edge_runtime.cli.demo.report.timeline import tick_step_s
from edge_runtime.contract.http import AttemptEnd, AttemptView
from edge_runtime.contract.reasons import HoldReason, ReleaseReason, StopTier

START = 1_700_000_000_000


def attempt(vehicle: str, counter: int, taken: int, ended: int, **fields: object) -> AttemptView:
    values: dict[str, object] = {
        "job": "job-1",
        "unit": 1,
        "epoch": 5,
        "counter": counter,
        "vehicle": vehicle,
        "offered_ms": START + taken - 10,
        "taken_ms": START + taken,
        "ended_ms": START + ended,
        "end": AttemptEnd.COMPLETED,
        "items": 8,
        "items_done": 8,
    }
    return AttemptView(**{**values, **fields})  # type: ignore[arg-type] # a test's shorthand


RELEASED = attempt(
    "car-1",
    1,
    100,
    900,
    end=AttemptEnd.RELEASED,
    items_done=3,
    hold=HoldReason.OCCUPIED,
    release_reason=ReleaseReason.HOLD,
    stop_tier=StopTier.FREEZE,
    stop_latency_ms=1.25,
)
RERUN = attempt("car-2", 2, 950, 2_000, items=5, items_done=5)


def report_data(**fields: object) -> ReportData:
    values: dict[str, object] = {
        "summary": Summary(
            cars=2,
            jobs=1,
            items=8,
            results=8,
            lost=0,
            duplicate_results=0,
            attempts=2,
            released=1,
            reissued=1,
            killed_cars=0,
            stop_latency_ms_max=1.25,
            wall_s=2.0,
            broker="embedded",
        ),
        "started_ms": START,
        "finished_ms": START + 2_000,
        "cars": ("car-1", "car-2"),
        "jobs": (
            JobRow(
                job="job-1", label="faces", model="centerface", task="object-detection", items=8
            ),
        ),
        "attempts": (RELEASED, RERUN),
        "results": tuple(ResultMark(job="job-1", at_ms=START + 200 * n) for n in range(8)),
        "faults": (
            FaultMark(
                kind=FaultKind.OWNER_RETURNED,
                vehicle="car-1",
                at_ms=START + 890,
                recovered_ms=START + 1_500,
            ),
        ),
    }
    return ReportData(**{**values, **fields})  # type: ignore[arg-type] # a test's shorthand


class Resources(HTMLParser):
    """Everything that a browser would load, and every open tag."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [v for n, v in attrs if n in {"src", "href", "xlink:href"} and v is not None]
        if tag not in {"meta", "link", "img", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(page: str) -> Resources:
    parser = Resources()
    parser.feed(page)
    parser.close()
    return parser


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    page = render_report(report_data())
    parser = parse(page)
    assert parser.open == []
    assert [url for url in parser.loaded if not url.startswith(("data:", "#"))] == []
    assert "http://" not in page
    assert "https://" not in page


def test_the_page_is_the_same_for_the_same_data() -> None:
    assert render_report(report_data()) == render_report(report_data())


def test_a_lane_for_every_car_a_bar_for_every_attempt_and_an_arc_for_moved_work() -> None:
    page = render_report(report_data())
    assert len(re.findall(r'class="lane"', page)) == 2
    assert len(re.findall(r'class="bar job0"', page)) == 2
    assert len(re.findall(r'class="frozen job0"', page)) == 1
    assert len(re.findall(r'<g class="reissue"', page)) == 1
    assert "car-1 took no work for 0.6 s" in page
    assert "computing stopped 1.2 ms after the event" in page
    assert "5 unfinished items moved to car-2" in page


def test_words_and_pictures_from_outside_are_escaped_and_embedded() -> None:
    box = Box(
        corners=((1, 1), (9, 1), (9, 9), (1, 9)), label="<script>alert(1)</script>", score=0.9
    )
    picture = PictureAnswer(
        caption="a & b <i>",
        media_type="image/png",
        picture=b"\x89PNG",
        width=10,
        height=10,
        boxes=(box,),
        vehicle="car-2",
        hides=True,
    )
    similar = SimilarAnswer(first="a < b", second="b > a", similarity=0.5)
    page = render_report(report_data(pictures=(picture,), similar=(similar,)))
    parse(page)
    assert "<script>alert" not in page
    assert "a &lt; b" in page
    assert "data:image/png;base64,iVBORw==" in page
    assert 'class="blurred"' in page


def test_a_picture_of_another_kind_is_left_out() -> None:
    svg = PictureAnswer(
        caption="x",
        media_type="image/svg+xml",
        picture=b"<svg/>",
        width=1,
        height=1,
        boxes=(),
        vehicle="c",
    )
    assert "image/svg+xml" not in render_report(report_data(pictures=(svg,)))


@pytest.mark.parametrize(("lost", "duplicates"), [(2, 0), (0, 1)])
def test_a_bad_run_is_not_told_as_a_good_one(lost: int, duplicates: int) -> None:
    summary = msgspec.structs.replace(
        report_data().summary, lost=lost, duplicate_results=duplicates
    )
    page = render_report(report_data(summary=summary))
    assert "Nothing was lost" not in page
    assert f"{lost} were lost, {duplicates} came twice" in page


def test_an_empty_run_still_renders() -> None:
    empty = report_data(attempts=(), results=(), faults=(), jobs=(), cars=(), finished_ms=START)
    assert parse(render_report(empty)).open == []


def test_queued_units_run_one_after_the_other() -> None:
    first = attempt("car-1", 1, 0, 1_000)
    queued = attempt("car-1", 2, 100, 1_800, unit=2)
    bars = make_bars([queued, first], START, START + 2_000)
    assert [(bar.taken_ms, bar.start_ms, bar.end_ms) for bar in bars] == [
        (0, 0, 1_000),
        (100, 1_000, 1_800),
    ]


def test_a_stop_ends_what_ran_at_once_and_what_waited_never_ran() -> None:
    waiting = attempt("car-1", 2, 150, 905, unit=2, end=AttemptEnd.RELEASED, items_done=0)
    bars = make_bars([waiting, RELEASED], START, START + 2_000, report_data().faults)
    assert [(bar.attempt.unit, bar.start_ms, bar.stop_ms, bar.end_ms) for bar in bars] == [
        (1, 100, 890, 900),
        (2, 890, 890, 905),
    ]
    assert [bar.has_run for bar in bars] == [True, False]


def test_only_interrupted_work_counts_as_moved() -> None:
    finished_first = attempt("car-1", 1, 0, 900)
    assert find_reissues(make_bars([finished_first, RERUN], START, START + 2_000)) == []
    (moved,) = find_reissues(make_bars([RERUN, RELEASED], START, START + 2_000))
    assert (moved.before.attempt.vehicle, moved.after.attempt.vehicle) == ("car-1", "car-2")


def test_an_attempt_that_still_runs_reaches_to_the_end() -> None:
    running = attempt("car-1", 1, 500, 0, ended_ms=None, end=None)
    (bar,) = make_bars([running], START, START + 2_000)
    assert (bar.start_ms, bar.end_ms) == (500, 2_000)


@pytest.mark.parametrize(("span", "step"), [(0.1, 0.5), (14, 2), (38, 5), (115, 10), (9_000, 300)])
def test_the_axis_has_a_dozen_marks_at_most(span: float, step: float) -> None:
    assert tick_step_s(span) == step
