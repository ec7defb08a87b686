"""The AsyncAPI document before its own parser, and its page in a browser."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from node_tools import REPOSITORY, node, node_modules

from edge_runtime.cli.asyncapi_page import asyncapi_page
from edge_runtime.cli.schemas import write_page
from edge_runtime.contract.schemas import CHANNELS, asyncapi

DOCUMENT = asyncapi()
PAGE = asyncapi_page(DOCUMENT)
OLDER_THAN_NEWEST = "asyncapi-latest-version"


def test_the_official_parser_finds_no_fault(tmp_path: Path) -> None:
    modules = node_modules("tests/node")
    shutil.copy(REPOSITORY / "tests" / "node" / "validate-asyncapi.js", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)

    def parsed(file: Path) -> dict[str, object]:
        done = subprocess.run(
            [node(), "validate-asyncapi.js", str(file)],
            cwd=tmp_path, check=True, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        told: dict[str, object] = json.loads(done.stdout)
        return told

    told = parsed(REPOSITORY / "schemas" / "asyncapi.json")
    assert told["isValid"]
    assert [f for f in told["found"] if f["code"] != OLDER_THAN_NEWEST] == []  # type: ignore[attr-defined]  # JSON
    assert set(told["channels"]) == {channel.name for channel in CHANNELS}  # type: ignore[call-overload]  # JSON
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**DOCUMENT, "channels": {"x": {"address": 7}}}))
    assert not parsed(broken)["isValid"]


def test_the_page_is_the_documents() -> None:
    assert write_page(REPOSITORY / "schemas", check=True) == [], "run `edge-runtime schemas write`"


def test_the_page_is_written_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    schemas = tmp_path / "schemas"
    assert write_page(schemas, check=False) == []
    (tmp_path / "docs" / "asyncapi").mkdir(parents=True)
    assert "differs" in write_page(schemas, check=True)[0]
    assert write_page(schemas, check=False) == []
    assert write_page(schemas, check=True) == []


class Reading(HTMLParser):
    """Ids, links, and whether every element is closed."""

    VOID = frozenset({"meta"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.links += [values["href"] or ""] if "href" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_topic_message_and_form_is_on_the_page_and_every_link_leads_somewhere() -> None:
    read = Reading(PAGE)
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    for channel in CHANNELS:
        assert f"topic-{channel.name}" in read.ids
        assert channel.is_reply or f"<h3><code>{channel.address}</code></h3>" in PAGE
    for kind in ("messages", "schemas"):
        for name in DOCUMENT["components"][kind]:
            assert f"{'form' if kind == 'schemas' else 'message'}-{name}" in read.ids
    inner = [link[1:] for link in read.links if link.startswith("#")]
    assert set(inner) <= set(read.ids)
    for link in set(read.links) - {f"#{name}" for name in inner}:
        assert (REPOSITORY / "docs" / "asyncapi" / link).exists()


def test_nothing_is_loaded_and_nothing_runs() -> None:
    assert not Reading(PAGE).tags & {"script", "img", "link", "iframe", "object"}
    assert "@import" not in PAGE
    assert "url(" not in PAGE
    assert len(PAGE) < 200_000


def test_what_the_document_says_is_text() -> None:
    text = json.dumps(DOCUMENT).replace("Half", "<script>alert(1)</script>")
    hostile = json.loads(text.replace("A car's runtime", "<b>&</b> `<i>`"))
    hostile["info"]["title"] = '"><script>'
    page = asyncapi_page(hostile)
    assert "<script" not in page
    assert "&lt;b&gt;&amp;&lt;/b&gt; <code>&lt;i&gt;</code>" in page


def test_a_browser_shows_it_without_sideways_scrolling(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    if browser is None:
        message = "Chromium is missing; run `make chromium`"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    # A copy that measures itself: the page's own policy lets no script run.
    measure = "<script>document.title=document.documentElement.scrollWidth+' '+innerWidth</script>"
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", PAGE)
    (tmp_path / "page.html").write_text(bare.replace("</body>", f"{measure}</body>"))
    frame = '<iframe src="page.html" style="width:{width}px;height:900px"></iframe>'
    for width in (360, 1200):
        (tmp_path / "frame.html").write_text(
            "<body>"
            + frame.format(width=width)
            + "<script>onload=()=>{document.title=frames[0].document.title}</script>"
        )
        done = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
                (tmp_path / "frame.html").as_uri(),
            ],
            check=True, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        shown = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
        assert shown is not None, done.stdout[:500]
        scroll, inner = map(int, shown.groups())
        assert inner == width
        assert scroll <= inner
