"""The page around the plots: one HTML document that loads nothing, for an owner and a phone."""

import datetime as dt
from html import escape
from importlib import resources
from typing import Final

from edge_runtime.cli.day.plots import (
    Limit,
    Line,
    Sheet,
    held_colour,
    line_of,
    took_lines,
    wear_line,
)
from edge_runtime.cli.day.words import (
    WORKED,
    HoldRow,
    clock,
    cost_of,
    duration,
    energy,
    headline,
    hold_rows,
    moment,
    short_words,
    state_words,
)
from edge_runtime.contract.reasons import HoldReason
from edge_runtime.sim.day import ITEM_S, DayRecord

_REPORT: Final = "edge_runtime.cli.demo.report"
_LEAST_S: Final = 60.0
_S_PER_DAY: Final = 86_400


def render_day(day: DayRecord, name: str, policy: str, zone: dt.tzinfo) -> str:
    """The whole page. `name` is the recording's, `policy` the file's, `zone` the owner's."""
    sheet = Sheet(day, zone)
    return _PAGE.format(
        title=escape(f"Your car's day: {name}"),
        css=_asset(_REPORT, "page.css") + _asset(__package__, "page.css"),
        js=_asset(_REPORT, "page.js"),
        headline=escape(headline(day)),
        lead=escape(_lead(day, zone)),
        note=_note(day),
        tiles=_tiles(day),
        panels=_panels(sheet),
        holds=_holds(sheet),
        assumed="".join(f"<li>{line}</li>" for line in _assumed(sheet, name, policy)),
        spans=_spans(sheet),
    )


def _asset(package: str, name: str) -> str:
    return (resources.files(package) / name).read_text(encoding="utf-8")


def _lead(day: DayRecord, zone: dt.tzinfo) -> str:
    began, ended = moment(day, 0, zone), moment(day, day.length_s, zone)
    when = f"{began:%A, %-d %B %Y, %H:%M} to {ended:%A, %-d %B, %H:%M} ({began:%Z})."
    rows = [row for row in hold_rows(day) if row.minutes * 60 >= _LEAST_S]
    if not rows:
        return f"{when} Nothing kept it from work for longer than a minute."
    reasons = [f"{row.words} ({duration(row.minutes * 60)})" for row in rows[:3]]
    more = f", and {len(rows) - 3} more reasons" if len(rows) > len(reasons) else ""
    return f"{when} What kept it from work: {', '.join(reasons)}{more}."


def _note(day: DayRecord) -> str:
    if not day.assumed_consent:
        return ""
    return (
        '<p class="note">You have not consented yet. This page shows what this policy would '
        "allow if you did; nothing runs without <code>edge-runtime owner consent</code>.</p>"
    )


def _tiles(day: DayRecord) -> str:
    took, cost = day.took, cost_of(day)
    held_s = sum(span.to_s - span.from_s for span in day.spans if span.hold is not None)
    tiles = [
        (duration(day.seconds_in(*WORKED)), "worked for others"),
        (duration(held_s), "held, for the reasons below"),
        (energy(took.grid_wh), "from the grid"),
        (energy(took.pack_wh), "from the battery"),
        (f"{took.items:,}", "pieces of work finished"),
        (duration(took.battery_hot_min * 60), "of it with a warm battery"),
    ]
    if cost is not None:
        tiles.insert(3, (f"{cost:.2f}", "paid for that, at the prices in your policy"))
    return "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{label}</span></div>'
        for value, label in tiles
    )


# --- plots ----------------------------------------------------------------------------------------


def _panels(sheet: Sheet) -> str:
    day = sheet.day
    panels = [
        ("What the car did", _state_legend(sheet), sheet.availability()),
        ("Charge of the battery", *_charge(sheet)),
        ("Temperature of the battery", *_battery(sheet)),
        ("Temperature of the computer", *_computer(sheet)),
        ("Energy for others", *_energy(sheet)),
    ]
    if day.took.wear_percent > 0:
        panels.append(("Wear of the battery", *_wear(sheet)))
    return "".join(
        f'<section class="panel"><h2>{title}</h2><ul class="legend">{legend}</ul>'
        f"{plot}{sheet.axis()}</section>"
        for title, legend, plot in panels
    )


def _state_legend(sheet: Sheet) -> str:
    states = dict.fromkeys((sheet.colour(span), short_words(span)) for span in sheet.day.spans)
    order = sorted(states, key=lambda entry: (entry[0] != "working", entry[0] != "ready", entry[0]))
    return "".join(_swatch(css, words) for css, words in order)


def _swatch(css: str, words: str, kind: str = "swatch") -> str:
    return f'<li><i class="{kind} {css}"></i>{escape(words)}</li>'


def _level(limit: Limit) -> str:
    return _swatch(limit.css, limit.name, "dash")


def _charge(sheet: Sheet) -> tuple[str, str]:
    policy = sheet.day.policy
    charge, departure = policy.charge, policy.departure
    limits = [
        Limit(f"work begins at {charge.start_percent:g} %", charge.start_percent, "limit begins"),
        Limit(f"work stops below {charge.stop_percent:g} %", charge.stop_percent, "limit ends"),
    ]
    if departure.reserve_hours > 0:
        reserve = departure.reserve_stop_percent
        words = f"reserve {departure.reserve_hours:g} h before a departure: {reserve:g} %"
        limits.append(Limit(words, reserve, "limit reserve"))
    line = line_of(sheet.day, "charge_percent", "charge", "charge")
    legend = _swatch("charge", "charge", "bar") + "".join(map(_level, limits))
    legend += _swatch("plugged", "plugged in") + _swatch("charging", "charging")
    plugged = sheet.plugged()
    return legend, sheet.curves("charge", "%", [line], limits, scale=(0, 100), extra=plugged)


def _battery(sheet: Sheet) -> tuple[str, str]:
    window = sheet.day.policy.battery_temperature
    limits = [
        Limit(
            f"work begins from {window.start_min_c:g} to {window.start_max_c:g} °C",
            window.start_min_c,
            "limit begins",
        ),
        Limit(
            f"work stops outside {window.stop_min_c:g} to {window.stop_max_c:g} °C",
            window.stop_min_c,
            "limit ends",
        ),
        Limit("", window.start_max_c, "limit begins"),
        Limit("", window.stop_max_c, "limit ends"),
    ]
    lines = [
        line_of(sheet.day, "battery_temperature_c", "battery", "battery"),
        line_of(sheet.day, "ambient_temperature_c", "air outside", "air"),
    ]
    legend = _swatch("battery", "battery", "bar") + _swatch("air", "air outside", "bar")
    legend += "".join(_level(limit) for limit in limits if limit.name)
    return legend, sheet.curves("battery temperature", "°C", _drawn(lines), limits)


def _computer(sheet: Sheet) -> tuple[str, str]:
    rule = sheet.day.policy.compute_temperature
    limits = [
        Limit(f"work begins up to {rule.start_c:g} °C", rule.start_c, "limit begins"),
        Limit(f"nothing new above {rule.continue_c:g} °C", rule.continue_c, "limit reserve"),
        Limit(f"all stops at {rule.stop_c:g} °C", rule.stop_c, "limit ends"),
    ]
    lines = [
        line_of(sheet.day, "compute_temperature_c", "computer", "computer"),
        line_of(sheet.day, "cabin_temperature_c", "cabin", "air"),
    ]
    legend = _swatch("computer", "computer", "bar") + _swatch("air", "cabin", "bar")
    legend += "".join(map(_level, limits))
    return legend, sheet.curves("computer temperature", "°C", _drawn(lines), limits)


def _drawn(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.points]


def _energy(sheet: Sheet) -> tuple[str, str]:
    budget = sheet.day.policy.energy.budget_wh_per_day
    limits = (
        [] if budget is None else [Limit(f"budget {budget:g} Wh a UTC day", budget, "limit ends")]
    )
    legend = _swatch("grid-energy", "from the grid, so far")
    if sheet.day.took.pack_wh > 0:
        legend += _swatch("pack-energy", "from the battery, so far")
    legend += "".join(map(_level, limits))
    return legend, sheet.areas("energy", "Wh", took_lines(sheet.day), limits)


def _wear(sheet: Sheet) -> tuple[str, str]:
    legend = _swatch("wear", "millionths of the battery's capacity, so far")
    return legend, sheet.areas("wear", "ppm", [wear_line(sheet.day)], [])


# --- tables and words -----------------------------------------------------------------------------


def _holds(sheet: Sheet) -> str:
    rows = "".join(_hold(sheet, row) for row in hold_rows(sheet.day))
    if not rows:
        return "<p>Nothing: it could work all day.</p>"
    return (
        '<table><thead><tr><th scope="col">Reason</th><th scope="col">How long</th>'
        '<th scope="col">Times</th><th scope="col">What you can change in policy.toml</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _hold(sheet: Sheet, row: HoldRow) -> str:
    css = held_colour(sheet.reasons.index(HoldReason(row.reason)))
    is_use = row.reason == HoldReason.NOT_PARKED.value
    limits = "" if is_use else "".join(f"<code>{escape(limit)}</code> " for limit in row.limits)
    return (
        f'<tr><th scope="row"><i class="swatch {css}"></i>{escape(row.words)}</th>'
        f'<td data-name="How long">{duration(row.minutes * 60)}</td>'
        f'<td data-name="Times">{row.times}</td>'
        f'<td data-name="What you can change">{limits}<span>{escape(row.change)}</span></td></tr>'
    )


def _assumed(sheet: Sheet, name: str, policy: str) -> list[str]:
    day = sheet.day
    settings = day.settings
    recording = (
        f"The recording is <b>{escape(name)}</b>, the policy <b>{escape(policy)}</b>. Charge and "
        "temperatures are as recorded: what this work would have drawn and warmed is not in them."
    )
    power = (
        f"While it works its computer draws {settings.compute_power_w:g} W. One piece of work "
        f"takes {ITEM_S:g} s. Power drawn while it waits is not counted."
    )
    wear = (
        f"Wear is that of a {settings.pack_kwh:g} kWh battery, cells <b>{escape(settings.cell)}</b>"
        ", from published models of ageing: by the energy taken from it, and by warmth."
    )
    program = (
        "Rules, energy and wear were reckoned by the program that runs in the car. The network "
        "never failed."
    )
    supply = (
        "There was always work: on a real day there may be less, and the car then waits, ready."
    )
    lines = [recording, supply, power, wear, program]
    midnight_s = -day.start_utc_s % _S_PER_DAY
    if day.policy.has_budgets and 0 < midnight_s < day.length_s:
        at = clock(day, midnight_s, sheet.zone)
        lines.append(f"Budgets count UTC days and months: a new UTC day begins at {at}.")
    return lines


def _spans(sheet: Sheet) -> str:
    day = sheet.day
    lines = []
    for span in day.spans:
        from_, to = (clock(day, at_s, sheet.zone) for at_s in (span.from_s, span.to_s))
        why = "" if span.hold in {None, HoldReason.DWELL} else f" {escape(span.why)}."
        needs = f" To work: {escape(span.needs)}." if span.needs else ""
        lines.append(
            f'<li><i class="swatch {sheet.colour(span)}"></i><span><b>{from_} to {to}</b> '
            f"({duration(span.to_s - span.from_s)}), {escape(state_words(span))}."
            f"<small>{why}{needs}</small></span></li>"
        )
    return "".join(lines)


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head><body>
<main class="day">
<header><p class="brand">edge-runtime</p>
<h1>{headline}</h1><p class="lead">{lead}</p>{note}</header>
<section class="tiles" aria-label="The day in numbers">{tiles}</section>
<div class="board">{panels}</div>
<section><h2>Why it did not work, and what you can change</h2>{holds}</section>
<section><h2>Hour by hour</h2><details><summary>Everything the car did, in words</summary>
<ol class="spans">{spans}</ol></details></section>
<section><h2>What is assumed</h2><ul class="assumed">{assumed}</ul></section>
</main><div id="tooltip" role="status"></div><script>{js}</script></body></html>
"""
