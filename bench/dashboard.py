"""The dashboard with 10,000 cars: how soon it is painted, and what it costs the dispatcher.

A real broker, a dispatcher and `_crowd.py`: every car says how it is each 10 s, jobs run on some.
The dispatcher's processor time is measured in turns with and without an open dashboard (a real
headless Chromium reads it); the figure is the difference of the medians. First paint is the
browser's own `first-contentful-paint`, in a new context with nothing cached; `drawn` is until live
figures stand.
"""

import base64
import json
import shutil
import sys
import threading
import time
import urllib.request
from typing import Any, Final

from _rig import Load, Rig, cpu_s, figure, median, say, tensor_item, wait_for
from playwright.sync_api import Browser, sync_playwright

CARS: Final = 10_000
TURNS: Final = 4
TURN_S: Final = 12.0
OPENINGS: Final = 7
JOB_ITEMS: Final = 300
JOB_EVERY_S: Final = 3.0


def submit(url: str) -> None:
    """One job for the crowd."""
    item = {"data": base64.b64encode(tensor_item(1.0)).decode()}
    body = json.dumps({"model": "noop", "items": [item] * JOB_ITEMS}).encode()
    request = urllib.request.Request(  # noqa: S310 - http only
        f"{url}/v1/jobs", data=body, headers={"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=10).close()  # noqa: S310 - http only


def keep_busy(url: str, stop: threading.Event) -> None:
    """A job every few seconds until told to stop."""
    while not stop.wait(JOB_EVERY_S):
        submit(url)


def open_once(browser: Browser, url: str) -> tuple[float, float]:
    """(first contentful paint, live figures drawn), ms since the navigation began."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{url}/dashboard/")
    page.wait_for_selector("body[data-drawn]")
    drawn_ms: float = page.evaluate("performance.now()")
    paint_ms: float = page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    context.close()
    return paint_ms, drawn_ms


def cores_during(pid: int, seconds: float) -> float:
    """Processor time of a process over real time."""
    before = cpu_s(pid)
    started_s = time.monotonic()
    time.sleep(seconds)
    return (cpu_s(pid) - before) / (time.monotonic() - started_s)


def measure_cost(browser: Browser, url: str, pid: int) -> tuple[list[float], list[float]]:
    """Cores of the dispatcher, without and with an open dashboard, in turns."""
    without, with_one = [], []
    for _ in range(TURNS):
        without.append(cores_during(pid, TURN_S))
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/dashboard/")
        page.wait_for_selector("body[data-drawn]")
        with_one.append(cores_during(pid, TURN_S))
        context.close()
        say(f"dispatcher: {without[-1]:.3f} cores alone, {with_one[-1]:.3f} looked at")
    return without, with_one


def main() -> None:
    """Measure and print."""
    chromium = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if chromium is None:
        raise SystemExit("no Chromium; run: apt-get install chromium")
    stop = threading.Event()
    with Rig() as rig, sync_playwright() as playwright:
        rig.start_broker()
        dispatcher = rig.start_dispatcher()
        argv = [sys.executable, "bench/_crowd.py", f"--broker={rig.broker_url}", f"--cars={CARS}"]
        crowd = rig.process("crowd", argv)
        wait_for("crowd", lambda: crowd.check() and b"ready" in crowd.log.read_bytes(), 120)
        busy = threading.Thread(target=keep_busy, args=(rig.url, stop))
        busy.start()
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            with Load() as load:
                open_once(browser, rig.url)  # the browser's own first start
                opened = [open_once(browser, rig.url) for _ in range(OPENINGS)]
                without, with_one = measure_cost(browser, rig.url, dispatcher.pid)
        finally:
            stop.set()
            busy.join()
            browser.close()
    shared = f"2 cores: {rig.broker_kind}, dispatcher, crowd, Chromium"
    facts: dict[str, Any] = {"shared": shared, "cars": CARS, **load.facts()}
    paints, drawn = [paint for paint, _ in opened], [ms for _, ms in opened]
    figure(
        "dashboard_first_paint_ms",
        median(paints),
        "ms",
        "<= 1000",
        **facts,
        worst=round(max(paints)),
        drawn=round(median(drawn)),
    )
    figure(
        "dashboard_cores",
        median(with_one) - median(without),
        "cores",
        "<= 0.05",
        digits=4,
        **facts,
        without=round(median(without), 3),
        looked_at=round(median(with_one), 3),
    )


if __name__ == "__main__":
    main()
