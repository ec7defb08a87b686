"""The plots of a day, one above the other on one axis of time. Pure: SVG and HTML out of a record.

A drawing is stretched to the width it gets, so its words are HTML beside it and stay readable on a
phone; its lines keep their width. Heights are percent of the plot.

Invariants
- A reading that is missing or impossible is a gap, never a line across.
- Every drawing has a text that says the same in words (`aria-label`).
"""

import datetime as dt
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from edge_runtime.cli.day.words import clock, duration, energy, moment, short_words, state_words
from edge_runtime.cli.demo.report.timeline import PLOT_WIDTH, Scale
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.signals import SIGNALS
from edge_runtime.sim.day import DayRecord, Span

_BY_NAME: Final = {signal.name: signal for signal in SIGNALS}
_POINTS_MAX: Final = 2 * PLOT_WIDTH
_SLOTS: Final = 144
_TICKS: Final = 9
_Y_TICKS: Final = 5
_LABEL_SHARE: Final = 0.06
_EDGE_SHARE: Final = 0.02
_STEPS_H: Final = (0.25, 0.5, 1, 2, 3, 4, 6, 12, 24, 48)
_NICE: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_HELD_COLOURS: Final = 8
_S_PER_H: Final = 3_600
_PPM_PER_PERCENT: Final = 10_000


class Line(NamedTuple):
    """One curve: what it is called, its colour's class, and (seconds, value) with gaps as None."""

    name: str
    css: str
    points: Sequence[tuple[float, float | None]]


class Limit(NamedTuple):
    """A level of the owner's policy."""

    name: str
    value: float
    css: str = "limit"


class Sheet:
    """One day's axis of time, and what is drawn the same in every plot."""

    def __init__(self, day: DayRecord, zone: dt.tzinfo) -> None:
        self.day = day
        self.zone = zone
        self._scale = Scale(round(day.length_s * 1000))
        self.reasons = _longest_first(day.spans)
        self._grid = "".join(
            f'<path class="grid" d="M{self.x(at_s)} 0V100"/>' for at_s, _ in self._ticks()
        )
        self._slots = "".join(self._slot(number) for number in range(_SLOTS))

    def x(self, at_s: float) -> float:
        """Where a moment is drawn."""
        return self._scale.x(at_s * 1000)

    def axis(self) -> str:
        """The times of day under a plot."""
        ticks = "".join(
            f'<span class="{_edge(at_s / self.day.length_s)}" '
            f'style="left:{at_s / self.day.length_s * 100:.2f}%">{label}</span>'
            for at_s, label in self._ticks()
        )
        return f'<div class="times" aria-hidden="true">{ticks}</div>'

    def _ticks(self) -> Iterator[tuple[float, str]]:
        """Round hours of the owner's day."""
        hours = self.day.length_s / _S_PER_H
        step_s = next((s for s in _STEPS_H if hours / s <= _TICKS), _STEPS_H[-1]) * _S_PER_H
        began = moment(self.day, 0, self.zone)
        midnight_s = (began.hour * 60 + began.minute) * 60 + began.second
        at_s = math.ceil(midnight_s / step_s) * step_s - midnight_s
        while at_s <= self.day.length_s:
            yield at_s, clock(self.day, at_s, self.zone)
            at_s += step_s

    # --- plots ---

    def availability(self) -> str:
        """What the car did, as one strip of colours."""
        parts, labels = [], []
        for span in self.day.spans:
            left, right = self.x(span.from_s), self.x(span.to_s)
            css = self.colour(span)
            width = max(right - left, 0.6)
            parts.append(f'<rect class="{css}" x="{left}" width="{width:.1f}" height="100"/>')
            share = (right - left) / PLOT_WIDTH
            if share >= _LABEL_SHARE:
                place = f"left:{left / PLOT_WIDTH * 100:.2f}%;width:{share * 100:.2f}%"
                labels.append(f'<b style="{place}">{escape(short_words(span))}</b>')
        said = "; ".join(
            f"{duration(total_s)} {words}" for words, total_s in _totals(self.day.spans).items()
        )
        return self._plot("strip", "".join(parts), f"What the car did: {said}", "".join(labels))

    def colour(self, span: Span) -> str:
        """The class of a span's colour."""
        if span.hold is not None:
            return held_colour(self.reasons.index(span.hold))
        return "working" if span.availability is Availability.WORKING else "ready"

    def curves(
        self,
        name: str,
        unit: str,
        lines: Sequence[Line],
        limits: Sequence[Limit],
        *,
        scale: tuple[float, ...] = (),
        extra: str = "",
    ) -> str:
        """Lines and the owner's levels, on a scale that holds them all, and all of `scale`."""
        values = [value for line in lines for _, value in line.points if value is not None]
        if not values:
            return f'<p class="none">The recording has no {escape(name)}.</p>'
        shown = [*values, *scale, *(level.value for level in limits)]
        low, high, step = _span_of(min(shown), max(shown))
        drawn = [self._grid, extra]
        for level in limits:
            y = _y(level.value, low, high)
            drawn.append(f'<path class="{level.css}" d="M0 {y}H{PLOT_WIDTH}"/>')
        drawn += [
            f'<path class="line {line.css}" d="{self._path(line.points, low, high)}"/>'
            for line in lines
        ]
        said = f"{name}: " + "; ".join(self._extremes(line, unit) for line in lines)
        labels = _y_labels(low, high, step, unit)
        return self._plot("curve", "".join(drawn), said, labels)

    def areas(self, name: str, unit: str, lines: Sequence[Line], limits: Sequence[Limit]) -> str:
        """Amounts that add up, one on the other."""
        base = [0.0] * len(lines[0].points)
        tops: list[tuple[Line, list[float], list[float]]] = []
        for line in lines:
            top = [low + (value or 0) for low, (_, value) in zip(base, line.points, strict=True)]
            tops.append((line, base, top))
            base = top
        most = max(base, default=0.0)
        if most <= 0:
            return f'<p class="none">No {escape(name)}.</p>'
        _, high, step = _span_of(0.0, max([most, *(level.value for level in limits)]))
        drawn = [self._grid]
        for line, lower, upper in tops:
            moments = [at_s for at_s, _ in line.points]
            there = [f"{self.x(t)} {_y(v, 0, high)}" for t, v in zip(moments, upper, strict=True)]
            back = [f"{self.x(t)} {_y(v, 0, high)}" for t, v in zip(moments, lower, strict=True)]
            drawn.append(f'<path class="area {line.css}" d="M{"L".join(there + back[::-1])}Z"/>')
        for level in limits:
            y = _y(level.value, 0, high)
            drawn.append(f'<path class="{level.css}" d="M0 {y}H{PLOT_WIDTH}"/>')
        ends = ", ".join(f"{line.name} {line.points[-1][1] or 0:.3g} {unit}" for line in lines)
        labels = _y_labels(0, high, step, unit)
        return self._plot("curve", "".join(drawn), f"{name} by the end: {ends}", labels)

    def plugged(self) -> str:
        """When the car was plugged in and when it charged, at the foot of a plot."""
        signals = self.day.signals
        bands = ("is_plugged", "plugged", 97), ("is_charging", "charging", 94)
        return "".join(
            f'<rect class="{css}" x="{self.x(from_s)}" y="{y}" height="{100 - y}" '
            f'width="{max(0.5, self.x(to_s) - self.x(from_s)):.1f}"/>'
            for name, css, y in bands
            for from_s, to_s in self._while_true(signals.get(name, ()))
        )

    def _while_true(self, column: Sequence[object]) -> Iterator[tuple[float, float]]:
        since_s = None
        for at_s, value in zip(self.day.times_s, column, strict=False):
            if value is True and since_s is None:
                since_s = at_s
            elif value is not True and since_s is not None:
                yield since_s, at_s
                since_s = None
        if since_s is not None:
            yield since_s, self.day.length_s

    # --- parts ---

    def _plot(self, css: str, drawn: str, said: str, around: str) -> str:
        return (
            f'<div class="plot {css}"><svg viewBox="0 0 {PLOT_WIDTH} 100" '
            f'preserveAspectRatio="none" role="img" aria-label="{escape(said)}">{drawn}'
            f'{self._slots}</svg><div class="around" aria-hidden="true">{around}</div></div>'
        )

    def _path(self, points: Iterable[tuple[float, float | None]], low: float, high: float) -> str:
        parts, is_down = [], False
        for at_s, value in points:
            if value is None:
                is_down = False
                continue
            parts.append(f"{'L' if is_down else 'M'}{self.x(at_s)} {_y(value, low, high)}")
            is_down = True
        return "".join(parts)

    def _extremes(self, line: Line, unit: str) -> str:
        known = [(value, at_s) for at_s, value in line.points if value is not None]
        if not known:
            return f"{line.name} unknown"
        (low, low_s) = min(known)
        (high, high_s) = max(known, key=lambda entry: (entry[0], -entry[1]))
        low_at, high_at = (clock(self.day, at_s, self.zone) for at_s in (low_s, high_s))
        return f"{line.name} from {low:.3g} {unit} at {low_at} to {high:.3g} {unit} at {high_at}"

    def _slot(self, number: int) -> str:
        """A part of the day to point at: what is known of its middle."""
        width = PLOT_WIDTH / _SLOTS
        at_s = (number + 0.5) / _SLOTS * self.day.length_s
        tip = escape("\n".join(self._facts(at_s)))
        return (
            f'<rect class="slot" x="{number * width:.1f}" width="{width:.1f}" height="100" '
            f'data-tip="{tip}"/>'
        )

    def _facts(self, at_s: float) -> Iterator[str]:
        span = next((s for s in self.day.spans if s.from_s <= at_s < s.to_s), None)
        what = "" if span is None else f", {state_words(span)}"
        yield f"{clock(self.day, at_s, self.zone)}{what}"
        for name, words, unit in (
            ("charge_percent", "charge", "%"),
            ("battery_temperature_c", "battery", "°C"),
            ("compute_temperature_c", "computer", "°C"),
        ):
            value = _at(self.day, name, at_s)
            if value is not None:
                yield f"{words} {value:.1f} {unit}"
        mark = next((m for m in reversed(self.day.marks) if m.at_s <= at_s), None)
        if mark is not None:
            yield f"so far {energy(mark.grid_wh)} from the grid, {energy(mark.pack_wh)} battery"


def line_of(day: DayRecord, name: str, words: str, css: str) -> Line:
    """A signal's curve, no denser than can be drawn; where it is not recorded, without points."""
    column = day.signals.get(name, ())
    step = max(1, math.ceil(len(column) / _POINTS_MAX))
    points = [
        (at_s, _possible(name, value))
        for at_s, value in list(zip(day.times_s, column, strict=False))[::step]
    ]
    if points:
        points.append((day.length_s, points[-1][1]))
    return Line(words, css, points)


def took_lines(day: DayRecord) -> list[Line]:
    """Energy by source, in Wh so far."""
    return [
        Line("from the grid", "grid-energy", [(m.at_s, m.grid_wh) for m in day.marks]),
        Line("from the battery", "pack-energy", [(m.at_s, m.pack_wh) for m in day.marks]),
    ]


def wear_line(day: DayRecord) -> Line:
    """Wear so far, in millionths of the battery's capacity."""
    points = [(m.at_s, m.wear_percent * _PPM_PER_PERCENT) for m in day.marks]
    return Line("wear", "wear", points)


def held_colour(number: int) -> str:
    """The class of the colour of the reason with this number."""
    return f"held held{number % _HELD_COLOURS}"


def _edge(share: float) -> str:
    """How a tick's label is set, so that the ends of the axis do not cut it."""
    if share < _EDGE_SHARE:
        return "first"
    return "last" if share > 1 - _EDGE_SHARE else "inner"


def _longest_first(spans: Iterable[Span]) -> list[HoldReason]:
    totals: dict[HoldReason, float] = {}
    for span in spans:
        if span.hold is not None:
            totals[span.hold] = totals.get(span.hold, 0.0) + span.to_s - span.from_s
    return sorted(totals, key=lambda reason: (-totals[reason], reason.value))


def _totals(spans: Iterable[Span]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for span in spans:
        words = state_words(span)
        totals[words] = totals.get(words, 0.0) + span.to_s - span.from_s
    return totals


def _at(day: DayRecord, name: str, at_s: float) -> float | None:
    """A signal's value at a moment: that of the newest row."""
    column = day.signals.get(name)
    if column is None:
        return None
    place = max(0, bisect_right(day.times_s, at_s) - 1)
    return _possible(name, column[place])


def _possible(name: str, value: object) -> float | None:
    signal = _BY_NAME[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if signal.minimum <= value <= signal.maximum else None


def _span_of(low: float, high: float) -> tuple[float, float, float]:
    """A round scale that holds both, and its step."""
    reach = max(high - low, 1e-9) / _Y_TICKS
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(power * nice for nice in _NICE if power * nice >= reach * 0.999)
    return math.floor(low / step) * step, math.ceil(high / step) * step, step


def _y(value: float, low: float, high: float) -> float:
    return round((1 - (value - low) / (high - low)) * 100, 2)


def _y_labels(low: float, high: float, step: float, unit: str) -> str:
    count = round((high - low) / step)
    return "".join(
        f'<i style="top:{_y(low + n * step, low, high)}%">{low + n * step:g} {unit}</i>'
        for n in range(count + 1)
    )
