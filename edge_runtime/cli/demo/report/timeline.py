"""The timeline: one lane per car, bars for units, arcs for work that moved. Pure SVG.

The drawing is `PLOT_WIDTH` units wide; the page scales it, and lets it scroll on a phone.
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from html import escape
from typing import Final, assert_never

from edge_runtime.cli.demo.report.bars import Bar, Reissue, find_reissues, make_bars
from edge_runtime.cli.demo.report.data import FaultKind, FaultMark, ReportData, ResultMark
from edge_runtime.contract.http import AttemptEnd

PLOT_WIDTH: Final = 1060
LANE_HEIGHT: Final = 44
AXIS_HEIGHT: Final = 30
_BAR_HEIGHT: Final = 20
_RATE_HEIGHT: Final = 78
_BAR_WIDTH_LEAST: Final = 2.5
_LABEL_GAP: Final = 6
_TICKS: Final = 12
_RATE_BINS: Final = 80
_STEPS_S: Final = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)

_TIMELINE_ROLE: Final = 'role="img" aria-label="Timeline: what every car ran, and when"'
_RATE_ROLE: Final = 'role="img" aria-label="Results per second"'

_SYMBOLS: Final = {
    FaultKind.OWNER_RETURNED: ('<circle cy="-3" r="2.6"/><path d="M-5 6 a5 5.4 0 0 1 10 0 z"/>'),
    FaultKind.KILLED: '<path d="M1.5 -7 L-4.5 1.5 H-0.5 L-1.5 7 L4.5 -1.8 H0.6 Z"/>',
    FaultKind.OVERHEATED: (
        '<path d="M0 -7.5 C3 -3.5 5.2 -1 5.2 2.2 A5.2 5.2 0 0 1 -5.2 2.2 '
        'C-5.2 -0.3 -3.4 -1 -2.6 -3.4 C-1.4 -2.6 -0.6 -4 0 -7.5 Z"/>'
    ),
}


def fault_name(kind: FaultKind) -> str:
    """What happened, for people."""
    match kind:
        case FaultKind.OWNER_RETURNED:
            return "owner came back"
        case FaultKind.KILLED:
            return "process killed"
        case FaultKind.OVERHEATED:
            return "computer overheated"
        case _:
            assert_never(kind)


def fault_symbol(kind: FaultKind) -> str:
    """The sign of a fault, centred on 0 0."""
    return f'<g class="fault {kind.value}"><circle r="11"/><g>{_SYMBOLS[kind]}</g></g>'


class Scale:
    """Milliseconds since the jobs were submitted, to the drawing's x."""

    def __init__(self, span_ms: int) -> None:
        self.span_ms = max(span_ms, 1)

    def x(self, ms: float) -> float:
        """Where a moment is drawn."""
        return round(min(max(ms / self.span_ms, 0), 1) * PLOT_WIDTH, 1)


def render_timeline(data: ReportData) -> str:
    """The whole drawing."""
    bars = make_bars(data.attempts, data.started_ms, data.finished_ms, data.faults)
    # What was running is drawn over what was only waiting.
    reissues = sorted(find_reissues(bars), key=lambda reissue: reissue.before.has_run)
    scale = Scale(data.finished_ms - data.started_ms)
    lanes = {vehicle: index for index, vehicle in enumerate(data.cars)}
    jobs = {row.job: index for index, row in enumerate(data.jobs)}
    height = AXIS_HEIGHT + LANE_HEIGHT * len(lanes)
    parts = [
        f'<svg class="timeline" viewBox="0 0 {PLOT_WIDTH} {height}" {_TIMELINE_ROLE}>',
        _DEFINITIONS,
        _axis(scale, height),
        *(_lane(index) for index in lanes.values()),
        *(_hold_band(mark, lanes, scale, data.started_ms) for mark in data.faults),
        *(_bar(bar, lanes, jobs, scale, data) for bar in bars if bar.attempt.vehicle in lanes),
        *(_arc(reissue, lanes, scale) for reissue in reissues),
        *(_fault(mark, lanes, scale, data.started_ms) for mark in data.faults),
        "</svg>",
    ]
    return "".join(parts)


_DEFINITIONS: Final = (
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path d="M0 0V7" class="hatch"/></pattern>'
    '<marker id="tip" viewBox="0 0 8 8" refX="6.5" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0.8 L7 4 L0 7.2 Z" class="tip"/></marker></defs>'
)


def tick_step_s(span_s: float) -> float:
    """Seconds between two marks of the axis, so that there are few enough."""
    return next((step for step in _STEPS_S if span_s / step <= _TICKS), _STEPS_S[-1])


def _axis(scale: Scale, height: int) -> str:
    step_s = tick_step_s(scale.span_ms / 1000)
    parts = []
    tick = 0
    while tick * step_s * 1000 <= scale.span_ms:
        x = scale.x(tick * step_s * 1000)
        anchor = "start" if tick == 0 else "middle"
        if x > PLOT_WIDTH - 18:
            anchor = "end"
        parts.append(
            f'<path class="grid" d="M{x} {AXIS_HEIGHT - 6}V{height}"/>'
            f'<text class="tick" x="{x}" y="14" text-anchor="{anchor}">{tick * step_s:g} s</text>'
        )
        tick += 1
    return "".join(parts)


def _lane_middle(index: int) -> float:
    return AXIS_HEIGHT + LANE_HEIGHT * (index + 0.5)


def _lane(index: int) -> str:
    y = _lane_middle(index)
    return f'<path class="lane" d="M0 {y}H{PLOT_WIDTH}"/>'


def _hold_band(mark: FaultMark, lanes: dict[str, int], scale: Scale, started_ms: int) -> str:
    """The time a fault kept its car from working."""
    if mark.vehicle not in lanes:
        return ""
    left = scale.x(mark.at_ms - started_ms)
    until_ms = scale.span_ms if mark.recovered_ms is None else mark.recovered_ms - started_ms
    width = max(scale.x(until_ms) - left, 1)
    y = _lane_middle(lanes[mark.vehicle]) - LANE_HEIGHT / 2 + 3
    seconds = max(0, until_ms - (mark.at_ms - started_ms)) / 1000
    tip = f"{fault_name(mark.kind)}\n{mark.vehicle} took no work for {seconds:.1f} s"
    return (
        f'<rect class="band {mark.kind.value}" x="{left}" y="{y}" width="{width:.1f}" '
        f'height="{LANE_HEIGHT - 6}" rx="5" data-tip="{escape(tip)}"/>'
    )


def _bar(
    bar: Bar, lanes: dict[str, int], jobs: dict[str, int], scale: Scale, data: ReportData
) -> str:
    attempt = bar.attempt
    job = jobs.get(attempt.job, 0)
    y = _lane_middle(lanes[attempt.vehicle])
    taken, start = scale.x(bar.taken_ms), scale.x(bar.start_ms)
    stop, end = scale.x(bar.stop_ms), scale.x(bar.end_ms)
    top = y - _BAR_HEIGHT / 2
    parts = []
    if start - taken > 1:
        wait_y = y + _BAR_HEIGHT / 2 + 3
        parts.append(f'<path class="wait job{job}" d="M{taken} {wait_y}H{start}"/>')
    if bar.has_run or not bar.is_interrupted:
        width = max(stop - start - 0.8, _BAR_WIDTH_LEAST)
        parts.append(
            f'<rect class="bar job{job}" x="{start}" y="{top}" width="{width:.1f}" '
            f'height="{_BAR_HEIGHT}" rx="3.5"/>'
        )
        if attempt.items_done and width > 7 * len(str(attempt.items_done)) + _LABEL_GAP:
            middle = start + width / 2
            parts.append(
                f'<text class="count" x="{middle:.1f}" y="{y + 4}">{attempt.items_done}</text>'
            )
    if bar.is_interrupted and bar.has_run:
        parts.append(
            f'<rect class="frozen job{job}" x="{stop}" y="{top}" width="{max(end - stop, 0):.1f}" '
            f'height="{_BAR_HEIGHT}" rx="3.5"/>'
            f'<path class="cap" d="M{stop} {top - 3}v{_BAR_HEIGHT + 6}"/>'
        )
    return (
        f'<g class="unit" data-unit="{escape(attempt.job)}/{attempt.unit}" '
        f'data-tip="{escape(_bar_tip(bar, data))}">{"".join(parts)}</g>'
    )


def _bar_tip(bar: Bar, data: ReportData) -> str:
    attempt = bar.attempt
    label = next((row.label for row in data.jobs if row.job == attempt.job), attempt.job)
    lines = [
        f"{label} · unit {attempt.unit}",
        f"{attempt.vehicle}, attempt {attempt.epoch}.{attempt.counter}",
        f"{attempt.items_done} of {attempt.items} items, {bar.stop_ms - bar.start_ms} ms",
        f"from {bar.start_ms / 1000:.2f} s to {bar.stop_ms / 1000:.2f} s: {_end_of(bar)}",
    ]
    if attempt.stop_latency_ms is not None:
        lines.append(f"computing stopped {attempt.stop_latency_ms:.1f} ms after the event")
    return "\n".join(lines)


def _end_of(bar: Bar) -> str:
    attempt = bar.attempt
    match attempt.end:
        case None:
            return "running"
        case AttemptEnd.RELEASED:
            cause = attempt.hold or attempt.release_reason
            return f"released ({_spaced(cause)})" if cause else "released"
        case end:
            return _spaced(end)


def _spaced(member: Enum) -> str:
    return str(member.value).replace("_", " ")


def _arc(reissue: Reissue, lanes: dict[str, int], scale: Scale) -> str:
    """From where work stopped to where it ran next."""
    before, after = reissue.before, reissue.after
    if before.attempt.vehicle not in lanes or after.attempt.vehicle not in lanes:
        return ""
    x1, y1 = scale.x(before.end_ms), _lane_middle(lanes[before.attempt.vehicle])
    x2, y2 = scale.x(after.start_ms), _lane_middle(lanes[after.attempt.vehicle])
    bend = max(abs(x2 - x1) * 0.55, 16)
    tip = (
        f"given back by {before.attempt.vehicle} at {before.end_ms / 1000:.2f} s\n"
        f"run by {after.attempt.vehicle} from {after.start_ms / 1000:.2f} s"
    )
    path = f"M{x1} {y1} C{x1 + bend:.1f} {y1} {x2 - bend:.1f} {y2} {x2} {y2}"
    classes = "reissue" if before.has_run else "reissue waited"
    unit = escape(f"{after.attempt.job}/{after.attempt.unit}")
    return (
        f'<g class="{classes}" data-unit="{unit}" data-tip="{escape(tip)}">'
        f'<path class="touch" d="{path}"/>'
        f'<path class="arc" d="{path}" marker-end="url(#tip)"/></g>'
    )


def _fault(mark: FaultMark, lanes: dict[str, int], scale: Scale, started_ms: int) -> str:
    if mark.vehicle not in lanes:
        return ""
    x = min(max(scale.x(mark.at_ms - started_ms), 12), PLOT_WIDTH - 12)
    y = _lane_middle(lanes[mark.vehicle]) - 12
    tip = f"{fault_name(mark.kind)}\n{mark.vehicle} at {(mark.at_ms - started_ms) / 1000:.2f} s"
    return (
        f'<g transform="translate({x} {y})" data-tip="{escape(tip)}">{fault_symbol(mark.kind)}</g>'
    )


def render_rate(data: ReportData) -> str:
    """Results per second, stacked by job, on the timeline's own scale."""
    span_ms = max(data.finished_ms - data.started_ms, 1)
    bin_ms = span_ms / _RATE_BINS
    counts = [_histogram(data.results, row.job, data.started_ms, bin_ms) for row in data.jobs]
    peak = max((sum(column) for column in zip(*counts, strict=True)), default=0) or 1
    base = [0.0] * _RATE_BINS
    parts = [
        f'<svg class="rate" viewBox="0 0 {PLOT_WIDTH} {_RATE_HEIGHT}" {_RATE_ROLE}>',
    ]
    for index, column in enumerate(counts):
        top = [low + count for low, count in zip(base, column, strict=True)]
        parts.append(_area(base, top, peak, index))
        base = top
    per_second = peak / (bin_ms / 1000)
    parts.append(f'<text class="tick" x="4" y="12">up to {per_second:.0f} results/s</text></svg>')
    return "".join(parts)


def _histogram(
    results: Iterable[ResultMark], job: str, started_ms: int, bin_ms: float
) -> list[float]:
    counts = [0.0] * _RATE_BINS
    for result in results:
        if result.job == job:
            position = int((result.at_ms - started_ms) / bin_ms)
            counts[min(max(position, 0), _RATE_BINS - 1)] += 1
    return counts


def _area(low: Sequence[float], high: Sequence[float], peak: float, job: int) -> str:
    step = PLOT_WIDTH / _RATE_BINS

    def outline(values: Sequence[float]) -> list[str]:
        points = []
        for index, value in enumerate(values):
            y = round((1 - value / peak) * (_RATE_HEIGHT - 18) + 18, 1)
            points += [f"{index * step:.1f} {y}", f"{(index + 1) * step:.1f} {y}"]
        return points

    path = "L".join(outline(high) + outline(low)[::-1])
    return f'<path class="area job{job}" d="M{path}Z"/>'
