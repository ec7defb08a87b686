"""The page around the timeline. Pure: everything it shows is in `ReportData`."""

import base64
import time
from html import escape
from importlib import resources
from typing import Final

from edge_runtime.cli.demo.report.bars import find_reissues, make_bars
from edge_runtime.cli.demo.report.data import (
    Box,
    FaultKind,
    FaultMark,
    PictureAnswer,
    ReportData,
    SimilarAnswer,
)
from edge_runtime.cli.demo.report.timeline import (
    AXIS_HEIGHT,
    LANE_HEIGHT,
    fault_name,
    fault_symbol,
    render_rate,
    render_timeline,
)

_WORDS: Final = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
_MEDIA_TYPES: Final = frozenset({"image/jpeg", "image/png"})


def render_report(data: ReportData) -> str:
    """The whole page as one HTML document that loads nothing."""
    return _PAGE.format(
        title="edge-runtime: demo report",
        css=_asset("page.css"),
        js=_asset("page.js"),
        headline=escape(_headline(data)),
        lead=escape(_lead(data)),
        tiles=_tiles(data),
        legend=_legend(data),
        labels=_labels(data),
        timeline=render_timeline(data),
        rate=render_rate(data),
        stories="".join(_story(data, mark) for mark in data.faults) or _NO_FAULTS,
        answers=_answers(data),
        footer=escape(_footer(data)),
    )


def _asset(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _headline(data: ReportData) -> str:
    summary = data.summary
    ending = "Nothing was lost."
    if summary.lost or summary.duplicate_results:
        ending = f"{summary.lost} were lost, {summary.duplicate_results} came twice."
    return f"{_word(summary.cars)} parked cars answered {summary.results} questions. {ending}"


def _word(count: int) -> str:
    return _WORDS[count] if 0 < count < len(_WORDS) else str(count)


def _lead(data: ReportData) -> str:
    summary = data.summary
    faults = [fault_name(mark.kind) for mark in data.faults]
    what = ", ".join(row.label for row in data.jobs)
    text = (
        f"{_word(summary.jobs)} jobs ({what}) ran on cars that have something better to do when "
        f"their owners need them. The last answer came {summary.wall_s:.0f} seconds after the "
        f"first question."
    )
    if faults:
        text += (
            f" {_word(len(faults))} cars dropped out on the way; what they had not finished was "
            f"run by others."
        )
    return text


def _tiles(data: ReportData) -> str:
    summary = data.summary
    stop = summary.stop_latency_ms_max
    bad = "bad" if summary.lost else "good"
    twice = "bad" if summary.duplicate_results else "good"
    tiles = [
        (f"{summary.results}<small>/{summary.items}</small>", "items answered", ""),
        (str(summary.lost), "lost", bad),
        (str(summary.duplicate_results), "answered twice", twice),
        (
            "none" if stop is None else f"{stop:.1f}<small> ms</small>",
            "slowest stop for an owner",
            "",
        ),
        (str(len(data.faults)), "cars interrupted while computing", ""),
        (str(summary.reissued), "units taken over by other attempts", ""),
        (f"{summary.wall_s:.1f}<small> s</small>", "from first question to last answer", ""),
    ]
    return "".join(
        f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>'
        for value, label, kind in tiles
    )


def _legend(data: ReportData) -> str:
    jobs = "".join(
        f'<li><i class="swatch job{index}"></i>{escape(row.label)} '
        f"<em>{escape(row.model)}, {row.items} items</em></li>"
        for index, row in enumerate(data.jobs)
    )
    kinds = "".join(
        f'<li><svg viewBox="-12 -12 24 24">{fault_symbol(kind)}</svg>{fault_name(kind)}</li>'
        for kind in FaultKind
    )
    return (
        f"{jobs}{kinds}"
        '<li><svg viewBox="0 0 30 14"><path class="cap" d="M4 0V14"/>'
        '<path class="arc" d="M4 7H24" marker-end="url(#tip)"/></svg>'
        "stopped, and run elsewhere; pale: units that had only waited</li>"
        '<li><svg viewBox="0 0 30 14"><path class="wait job0" d="M2 10H28"/></svg>'
        "waiting on the car</li>"
    )


def _labels(data: ReportData) -> str:
    done = dict.fromkeys(data.cars, 0)
    for attempt in data.attempts:
        if attempt.vehicle in done:
            done[attempt.vehicle] += attempt.items_done
    rows = "".join(
        f'<li style="height:{100 / len(done):.4f}%"><b>{escape(vehicle)}</b>'
        f"<span>{count} items</span></li>"
        for vehicle, count in done.items()
    )
    share = AXIS_HEIGHT / (AXIS_HEIGHT + LANE_HEIGHT * len(done)) * 100
    return f'<ul class="labels" style="--axis:{share:.4f}%">{rows}</ul>'


_NO_FAULTS: Final = '<li class="story"><p>No car was disturbed in this run.</p></li>'


def _story(data: ReportData, mark: FaultMark) -> str:
    bars = make_bars(data.attempts, data.started_ms, data.finished_ms, data.faults)
    moved = [
        reissue
        for reissue in find_reissues(bars)
        if reissue.before.attempt.vehicle == mark.vehicle
        and reissue.before.end_ms >= mark.at_ms - data.started_ms
        and (
            mark.recovered_ms is None
            or reissue.before.end_ms <= mark.recovered_ms - data.started_ms
        )
    ]
    at_s = (mark.at_ms - data.started_ms) / 1000
    sentences = [f"<b>{escape(mark.vehicle)}</b>, {at_s:.1f} s: {_what_happened(mark.kind)}"]
    latencies = [
        reissue.before.attempt.stop_latency_ms
        for reissue in moved
        if reissue.before.attempt.stop_latency_ms is not None
    ]
    if latencies:
        sentences.append(f"Its computer was still after <b>{max(latencies):.1f} ms</b>.")
    if moved:
        left = sum(r.before.attempt.items - r.before.attempt.items_done for r in moved)
        takers = sorted({r.after.attempt.vehicle for r in moved})
        where = takers[0] if len(takers) == 1 else f"{', '.join(takers[:-1])} and {takers[-1]}"
        sentences.append(f"{left} unfinished items moved to {escape(where)}.")
    if mark.recovered_ms is not None:
        away_s = (mark.recovered_ms - mark.at_ms) / 1000
        sentences.append(f"Back at work {away_s:.1f} s later.")
    return (
        f'<li class="story"><svg viewBox="-12 -12 24 24">{fault_symbol(mark.kind)}</svg>'
        f"<p>{' '.join(sentences)}</p></li>"
    )


def _what_happened(kind: FaultKind) -> str:
    return {
        FaultKind.OWNER_RETURNED: "the owner got in while it was computing.",
        FaultKind.KILLED: "its process was killed with SIGKILL in the middle of a unit.",
        FaultKind.OVERHEATED: "its computer reported 97 °C.",
    }[kind]


def _answers(data: ReportData) -> str:
    cards = [_picture_card(answer, index) for index, answer in enumerate(data.pictures)]
    cards += [_similar_card(answer) for answer in data.similar]
    if not cards:
        return ""
    return (
        f'<section><h2>A few of the answers</h2><div class="cards">{"".join(cards)}</div></section>'
    )


def _picture_card(answer: PictureAnswer, index: int) -> str:
    if answer.media_type not in _MEDIA_TYPES:
        return ""
    source = f"data:{answer.media_type};base64,{base64.b64encode(answer.picture).decode()}"
    image = f'<image href="{source}" width="{answer.width}" height="{answer.height}"'
    stroke = max(answer.width, answer.height) / 220
    marks = "".join(_box(box, stroke) for box in answer.boxes)
    blurred = ""
    if answer.hides:
        holes = "".join(f'<polygon points="{_points(box)}"/>' for box in answer.boxes)
        blurred = (
            f'<clipPath id="hole{index}">{holes}</clipPath>'
            f'<filter id="blur{index}" x="0" y="0" width="1" height="1">'
            f'<feGaussianBlur stdDeviation="{answer.width / 22:.1f}"/></filter>'
            f'<g class="blurred" clip-path="url(#hole{index})">'
            f'{image} filter="url(#blur{index})"/></g>'
        )
    found = "".join(
        f"<li><b>{escape(box.label)}</b><span>{box.score:.2f}</span></li>"
        for box in answer.boxes[:8]
    )
    hint = '<em class="hint">point at the picture to hide the face</em>' if answer.hides else ""
    return (
        f'<figure class="card"><svg class="picture" viewBox="0 0 {answer.width} {answer.height}">'
        f"{image}/>{blurred}{marks}</svg><figcaption><p>{escape(answer.caption)}</p>"
        f"<ul>{found}</ul>{hint}<em>answered by {escape(answer.vehicle)}</em></figcaption></figure>"
    )


def _points(box: Box) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in box.corners)


def _box(box: Box, stroke: float) -> str:
    tip = escape(f"{box.label}  {box.score:.2f}")
    style = f'stroke-width="{stroke:.2f}" data-tip="{tip}"'
    return f'<polygon class="box" points="{_points(box)}" {style}/>'


def _similar_card(answer: SimilarAnswer) -> str:
    share = min(max(answer.similarity, 0), 1) * 100
    return (
        '<figure class="card text"><figcaption><p>The closest two of the sentences</p>'
        f"<blockquote>{escape(answer.first)}</blockquote>"
        f'<div class="meter"><i style="width:{share:.0f}%"></i><b>{answer.similarity:.2f}</b></div>'
        f"<blockquote>{escape(answer.second)}</blockquote>"
        "<em>cosine similarity of their embeddings</em></figcaption></figure>"
    )


def _footer(data: ReportData) -> str:
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(data.finished_ms / 1000))
    return (
        f"edge-runtime demo, {day}. Broker: {data.summary.broker}. {data.machine} Lost and doubled "
        f"items were counted by a separate subscriber on the MQTT topics."
    )


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head><body>
<main>
<header><p class="brand">edge-runtime</p><h1>{headline}</h1><p class="lead">{lead}</p></header>
<section class="tiles">{tiles}</section>
<section class="board"><ul class="legend">{legend}</ul>
<div class="lanes">{labels}<div class="scroll"><div class="plot">{timeline}</div></div></div>
<div class="lanes"><p class="labels rate-label"><b>results</b><span>all cars</span></p>
<div class="scroll"><div class="plot">{rate}</div></div></div></section>
<section><h2>What happened on the way</h2><ul class="stories">{stories}</ul></section>
{answers}
<footer>{footer}</footer>
</main><div id="tooltip" role="status"></div><script>{js}</script></body></html>
"""
