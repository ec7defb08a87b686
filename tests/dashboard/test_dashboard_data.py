"""What the dashboard is told: counts over all cars, why a car is held, why a job waits."""

import asyncio
import re

import aiohttp
import msgspec
import pytest
from dashboard_rig import Watched

from edge_runtime.contract import limits
from edge_runtime.contract.http import NewKey
from edge_runtime.contract.reasons import Availability, HoldReason
from edge_runtime.contract.topics import shard_of
from edge_runtime.dispatcher.api import build_app, open_door, serve
from edge_runtime.dispatcher.dashboard import mount_dashboard
from edge_runtime.dispatcher.dashboard.activity import Activity, Durations
from edge_runtime.dispatcher.dashboard.words import HOLD_WORDS

GUARDED = ("/dashboard/data/overview", "/dashboard/data/live", "/dashboard/data/cars", "/metrics")


async def test_every_car_is_counted_once_in_states_cells_and_regions(watched: Watched) -> None:
    for number in range(300):
        watched.put_car(f"car-{number}", region=f"r{number % 3}")
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    watched.put_car("away", Availability.DRIVING)
    shown = watched.overview()
    assert shown.cars == 302
    assert shown.by_hold == {"compute_hot": 1}
    assert sum(shown.by_availability.values()) == 302
    assert len(shown.cells) == 256
    assert [sum(cell[n] for cell in shown.cells) for n in range(5)] == [302, 300, 0, 2, 0]
    cell = shown.cells[int(shard_of("hot"), 16)]
    assert cell.held >= 1
    assert sum(row.counts.cars for row in shown.regions) == 302


async def test_a_car_says_why_it_is_held(watched: Watched) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    found = await watched.data("cars/hot")
    assert found["why"] == [f"compute_hot: {HOLD_WORDS[HoldReason.COMPUTE_HOT]}"]
    assert found["cell"] == shard_of("hot")
    await watched.desk.quarantine("hot", on=True)
    why = " ".join((await watched.data("cars/hot"))["why"])
    assert "quarantined" in why
    assert "compute_hot" in why


async def test_a_car_that_may_work_has_nothing_against_it(watched: Watched) -> None:
    watched.put_car("free")
    assert (await watched.data("cars/free"))["why"] == []


async def test_every_hold_reason_has_words() -> None:
    assert set(HOLD_WORDS) == set(HoldReason)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("hold=compute_hot", ["hot"]),
        ("availability=driving", ["away"]),
        ("availability=offline", []),
        ("region=harbour", ["boat"]),
        ("region=nowhere", []),
        (f"cell={shard_of('boat')}&availability=ready", ["boat"]),
        ("limit=1&offset=1", ["away"]),
    ],
)
async def test_cars_are_found_by_what_they_are(
    watched: Watched, query: str, names: list[str]
) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    watched.put_car("away", Availability.DRIVING)
    watched.put_car("boat", region="harbour")
    found = await watched.data(f"cars?{query}")
    assert [car["vehicle"] for car in found["cars"]] == names


async def test_a_job_says_why_it_waits(watched: Watched) -> None:
    watched.put_car("hot", Availability.HOLD, HoldReason.COMPUTE_HOT)
    job = await watched.submit(3)
    found = await watched.data(f"jobs/{job}")
    assert found["why"]["cars_excluded"] == {"held_or_driving": 1}
    assert found["status"]["items"] == 3
    assert found["model"].startswith("noop@")
    assert found["attempts"] == []
    (row,) = watched.overview().jobs
    assert (row.job, row.items, row.done, row.in_flight) == (job, 3, 0, 0)


async def test_the_last_jobs_that_ended_are_told_newest_first(watched: Watched) -> None:
    jobs = [await watched.submit(1) for _ in range(limits.DASHBOARD_ENDED_JOBS_MAX + 2)]
    for job in jobs:
        await watched.desk.cancel(None, job)
    ended = watched.overview().ended
    assert [row.job for row in ended] == jobs[:1:-1]
    assert {row.state for row in ended} == {"cancelled"}


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("cars/nobody", 404, "vehicle"),
        ("jobs/j0", 404, "job"),
        ("cars?cell=xyz", 422, "cell"),
        ("cars?cell=0", 422, "cell"),
        ("cars?hold=bored", 422, "hold"),
        ("cars?availability=asleep", 422, "availability"),
        ("cars?region=a%20b", 422, "region"),
        ("cars?limit=1001", 422, "limit"),
        ("cars?limit=-1", 422, "limit"),
        ("cars?limit=%F0%9F%98%80", 422, "limit"),
        ("cars?offset=1e3", 422, "offset"),
        ("cars?" + "a=1&" * 30, 422, "query"),
        ("cars/..%2f..%2fetc", 404, None),
        ("jobs/" + "x" * 70, 404, None),
        ("nothing", 404, None),
    ],
)
async def test_broken_questions_are_refused_by_field(
    watched: Watched, path: str, status: int, field: str | None
) -> None:
    assert (await watched.data(path, status)).get("field") == field


async def test_the_stream_is_one_picture_a_second_for_all_and_ends_with_the_server(
    watched: Watched,
) -> None:
    watched.put_car("one")
    async with watched.session.get(watched.url("/dashboard/data/live")) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        async with asyncio.timeout(10):
            event, data, gap = [await stream.content.readline() for _ in range(3)]
            assert (event, gap) == (b"event: overview\n", b"\n")
            assert msgspec.json.decode(data.removeprefix(b"data: "))["cars"] == 1
            watched.put_car("two")
            while b'"cars":2,' not in await stream.content.readline():
                pass
            await watched.server.close()
            assert await stream.content.read() is not None


async def test_more_dashboards_than_the_bound_are_refused(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DASHBOARD_STREAMS_MAX", 1)
    async with watched.session.get(watched.url("/dashboard/data/live")) as first:
        await first.content.readline()
        refused = await watched.data("live", 503)
        assert refused["limit"] == "DASHBOARD_STREAMS_MAX=1"
    async with asyncio.timeout(10):
        while True:
            async with watched.session.get(watched.url("/dashboard/data/live")) as again:
                if again.status == 200:
                    break


async def test_pages_allow_no_script_but_their_own(watched: Watched) -> None:
    async with watched.session.get(watched.url("/dashboard/")) as page:
        policy = page.headers["content-security-policy"]
        text = await page.text()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", text)
    assert not re.search(r"https?://", text), "works without a network"
    for name in re.findall(r'(?:src|href)="([\w.]+\.(?:js|css|svg))"', text):
        await watched.text(f"/dashboard/{name}")


async def test_pages_are_not_sent_again_unchanged(watched: Watched) -> None:
    async with watched.session.get(watched.url("/dashboard/main.js")) as first:
        etag = first.headers["etag"]
    assert await watched.text("/dashboard/main.js", 304, **{"If-None-Match": etag}) == ""


@pytest.mark.parametrize("path", ["/dashboard/x.js", "/dashboard/../app.py", "/dashboard/words"])
async def test_only_files_of_the_dashboard_are_served(watched: Watched, path: str) -> None:
    await watched.text(path, 404)


@pytest.mark.parametrize("path", ["/dashboard/", "/dashboard/data/overview", "/metrics"])
async def test_only_reading_is_answered(watched: Watched, path: str) -> None:
    async with watched.session.post(watched.url(path), data=b"x") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"


async def test_the_page_without_its_slash_leads_to_it(watched: Watched) -> None:
    async with watched.session.get(watched.url("/dashboard"), allow_redirects=False) as answer:
        assert (answer.status, answer.headers["location"]) == (308, "/dashboard/")


async def test_where_there_are_accounts_it_takes_an_operators_key(watched: Watched) -> None:
    door = await open_door(watched.service)
    operator = await door.accounts.create(NewKey(tenant="staff", is_operator=True))
    tenant = await door.accounts.create(NewKey(tenant="anna"))
    api = build_app(watched.desk, door=door)
    mount_dashboard(api, watched.service, watched.desk)
    server = await serve(api, port=0)
    try:
        async with aiohttp.ClientSession() as session:
            for path, key, status in (
                ("/dashboard/", "", 200),
                ("/dashboard/main.js", "", 200),
                *((path, "", 401) for path in GUARDED),
                *((path, "er_wrong", 401) for path in GUARDED),
                *((path, tenant.key, 403) for path in GUARDED),
                *((path, operator.key, 200) for path in GUARDED),
            ):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                async with session.get(server.url + path, headers=headers) as answer:
                    assert answer.status == status, (path, key)
    finally:
        await server.close()


# --- the recent past ------------------------------------------------------------------------


def test_stretches_without_anything_are_there() -> None:
    activity = Activity()
    bucket = limits.ACTIVITY_BUCKET_MS
    activity.add(10 * bucket, 5, 1, [100])
    history = activity.history(14 * bucket)
    assert [moment.done for moment in history] == [5, 0, 0, 0, 0]
    assert history[0].unit_p50_ms == pytest.approx(100, rel=0.12)
    assert history[1].unit_p50_ms is None


def test_the_past_is_bounded_and_survives_clocks_that_jump() -> None:
    activity = Activity()
    bucket = limits.ACTIVITY_BUCKET_MS
    for number in range(10_000):
        activity.add(number * bucket, 1, 0, [])
    assert len(activity.history(10_000 * bucket)) == limits.ACTIVITY_BUCKETS_MAX
    activity.add(0, 7, 0, [])  # set back
    assert activity.history(0)[-1].done == 7
    assert len(activity.history(10**9 * bucket)) == 1  # set far forward


def test_quantiles_are_within_a_step_of_the_histogram() -> None:
    durations = Durations()
    for value in range(1, 1001):
        durations.add(value)
    assert durations.quantile_ms(0.5) == pytest.approx(500, rel=0.13)
    assert durations.quantile_ms(0.95) == pytest.approx(950, rel=0.13)
    durations.add(1e12)
    assert durations.quantile_ms(1.0) is not None
