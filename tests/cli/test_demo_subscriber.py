"""The subscriber's count: repeats are none of its business, gaps and second results are."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgpack
import pytest

from edge_runtime.cli.demo.subscriber import JobCount, Subscriber


def results(*pairs: tuple[int, int], job: str = "j") -> bytes:
    entries = [{"cursor": cursor, "item": item, "at_ms": 1} for cursor, item in pairs]
    return bytes(msgpack.packb({"type": "results", "job": job, "results": entries}))


def status(state: str, last_cursor: int, job: str = "j") -> bytes:
    return bytes(
        msgpack.packb({"type": "status", "job": job, "state": state, "last_cursor": last_cursor})
    )


@pytest.fixture
def subscriber(tmp_path: Path) -> Subscriber:
    made = Subscriber("http://127.0.0.1:9", "demo", tmp_path / "cursors.json")
    made.job("j").submitted = 3
    return made


def test_each_item_once_is_a_clean_count(subscriber: Subscriber, tmp_path: Path) -> None:
    subscriber.on_payload(results((1, 2), (2, 0)))
    subscriber.on_payload(results((3, 1)))
    assert not subscriber.is_complete
    subscriber.on_payload(status("done", 3))
    assert subscriber.is_complete
    report = subscriber.report()
    assert (report["items"], report["results"], report["lost"], report["duplicates"]) == (
        3,
        3,
        0,
        0,
    )
    assert (tmp_path / "cursors.json").read_text() == '{"j": 3}'


def test_a_repeat_is_counted_and_is_no_duplicate(subscriber: Subscriber) -> None:
    for _ in range(2):
        subscriber.on_payload(results((1, 0), (2, 1)))
    report = subscriber.report()
    assert (report["repeats"], report["duplicates"], report["lost"]) == (2, 0, 1)


def test_a_second_result_of_an_item_under_another_cursor_is_a_duplicate(
    subscriber: Subscriber,
) -> None:
    subscriber.on_payload(results((1, 0), (2, 0), (3, 1)))
    report = subscriber.report()
    assert (report["results"], report["duplicates"], report["lost"]) == (2, 1, 1)


def test_two_truths_under_one_cursor_are_a_duplicate() -> None:
    count = JobCount(submitted=2)
    count.take(1, 0)
    count.take(1, 1)
    assert count.duplicates == 1


def test_a_result_of_an_item_that_nobody_submitted_is_a_duplicate() -> None:
    count = JobCount(submitted=1)
    count.take(1, 0)
    count.take(2, 7)
    assert count.duplicates == 1


class Results(BaseHTTPRequestHandler):
    """A dispatcher's results, from the cursor asked for."""

    def do_GET(self) -> None:
        after = int(self.path.partition("cursor=")[2])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(msgpack.packb(None))
        for cursor in range(after + 1, 4):
            self.wfile.write(msgpack.packb({"cursor": cursor, "item": cursor - 1, "at_ms": 1}))
        self.wfile.write(msgpack.packb({"status": {"state": "done"}}))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def results_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Results) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_gap_is_fetched_from_the_api_once_it_has_lasted(results_url: str, tmp_path: Path) -> None:
    subscriber = Subscriber(results_url, "demo", tmp_path / "cursors.json")
    subscriber.job("j").submitted = 3
    subscriber.on_payload(results((1, 0), (3, 2)))
    subscriber.fetch_gaps(10.0)
    assert subscriber.report()["fetched"] == 0
    subscriber.fetch_gaps(20.0)
    report = subscriber.report()
    assert (report["fetched"], report["lost"], report["duplicates"]) == (1, 0, 0)


def test_a_tail_that_never_came_by_mqtt_is_fetched(results_url: str, tmp_path: Path) -> None:
    subscriber = Subscriber(results_url, "demo", tmp_path / "cursors.json")
    subscriber.job("j").submitted = 3
    subscriber.on_payload(status("done", 3))
    assert not subscriber.is_complete
    subscriber.fetch_gaps(1.0, patience_s=0)
    assert subscriber.is_complete
    assert subscriber.report()["results"] == 3


def test_it_imports_nothing_of_edge_runtime() -> None:
    source = Path(__file__).parents[2] / "edge_runtime/cli/demo/subscriber.py"
    assert "edge_runtime" not in source.read_text()
