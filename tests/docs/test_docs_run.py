"""Every page, as a reader follows it: block by block, against processes that really run."""

import contextlib
import csv
import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final

import paho.mqtt.client as mqtt
import pytest
from doc_house import doc_house, real_model
from doc_pages import PAGES, ROOT, Block, blocks_of, inline_code_of, named
from doc_shell import DocShell, matches

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

SETUP: Final = "the set-up"
DAY_S: Final = 900.0


@dataclass(frozen=True)
class Setup:
    """What is there before a page's first block, and what its words mean here."""

    in_house: bool = False
    """Broker, dispatcher and a car run already."""
    prepare: Callable[[DocShell], None] = lambda _: None
    replace: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[pytest.MarkDecorator, ...] = ()

    @property
    def marks(self) -> tuple[pytest.MarkDecorator, ...]:
        """Under which its test may skip at home."""
        return (*self.needs, pytest.mark.models) if self.in_house else self.needs


def link_real_models(shell: DocShell) -> None:
    """The models that `make models` makes, where it puts them."""
    models = shell.clone / ".data" / "models"
    models.mkdir(parents=True)
    for name in ("minilm", "smollm2"):
        (models / name).symlink_to(real_model(name))


def shorten_days(shell: DocShell) -> None:
    """The first minutes of each recorded day, for days take most of a minute."""
    for trace in (shell.clone / "examples" / "traces").glob("*.csv"):
        header, *rows = csv.reader(trace.read_text().splitlines())
        place = header.index("utc_s")
        end_s = float(rows[0][place]) + DAY_S
        kept = [row for row in rows if float(row[place]) <= end_s]
        trace.write_text("".join(",".join(row) + "\n" for row in [header, *kept]))


def readme(shell: DocShell) -> None:
    link_real_models(shell)
    shorten_days(shell)
    # The owner's commands are for the car that the page has started.
    shell.sh(
        "".join(
            f"export EDGE_RUNTIME_OWNER_{word}_STATE_DIR=$PWD/car-1"
            f" EDGE_RUNTIME_OWNER_{word}_POLICY=$PWD/examples/policy.toml\n"
            for word in ("STATUS", "WHY", "PAUSE", "CONSENT", "LEDGER")
        ),
        SETUP,
    )


def no_models(shell: DocShell) -> None:
    """The dispatcher's folder of packages, empty."""
    (shell.clone / ".data" / "models").mkdir(parents=True)


def guarded(shell: DocShell) -> None:
    """A dispatcher of its own: with the first key its door is shut for ever."""
    no_models(shell)
    shell.stays("edge-runtime broker\nedge-runtime dispatcher", SETUP)


def with_certificates(shell: DocShell) -> None:
    """The README's authority, broker and dispatcher."""
    no_models(shell)
    shell.sh("edge-runtime pki init house", SETUP)
    shell.stays("mosquitto -c house/broker/mosquitto.conf", SETUP)
    shell.sh(f"mosquitto_pid={shell.started[-1][1].pid}", SETUP)
    shell.stays(
        "edge-runtime dispatcher --broker mqtts://localhost:8884 --identity house/dispatcher", SETUP
    )


def publishing(shell: DocShell) -> None:
    """A package of one's own, and a broker."""
    no_models(shell)
    write_synthetic("noop", shell.clone / "path" / "to")
    (shell.clone / "path" / "to" / "noop").rename(shell.clone / "path" / "to" / "package")
    shell.sh("export EDGE_RUNTIME_PASSPHRASE='of this test'", SETUP)
    shell.stays("edge-runtime broker", SETUP)


def requests_of_a_batch(shell: DocShell) -> None:
    line = '{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": %s}\n'
    body = '{"model": "minilm", "input": "a red car"}'
    (shell.clone / "requests.jsonl").write_text(line % body)


PAGE_SETUPS: Final[dict[str, Setup]] = {
    "README.md": Setup(
        prepare=readme,
        needs=(pytest.mark.models,),
        replace={"Tell me a story about a car.": "What is the capital of France?"},
    ),
    "docs/explanation/proof.md": Setup(replace={"0:500": "0:2"}),
    "docs/explanation/wear.md": Setup(in_house=True),
    "docs/how-to/mosquitto-in-production.md": Setup(
        prepare=no_models,
        replace={"broker.example": "localhost"},
        needs=(pytest.mark.mosquitto,),
    ),
    "docs/how-to/mtls.md": Setup(
        prepare=with_certificates,
        needs=(pytest.mark.mosquitto,),
        replace={
            "HOUSE": "house",
            "/var/lib/edge-runtime": "on-the-car",
            "--csr request.pem": "--csr on-the-car/identity/request.pem",
            "broker.example": "localhost",
            # Never all the brokers of this machine.
            "$(pidof mosquitto)": "$mosquitto_pid",
            "retire OLD": 'retire "$(ls house/authority/signing | head -1 | cut -d. -f1)"',
        },
    ),
    "docs/how-to/publish-models.md": Setup(
        prepare=publishing,
        replace={
            "--models-root root.json": "--models-root model-repository/v1/metadata/1.root.json",
            "DIGEST": "$(edge-runtime models published | grep -Eo '[0-9a-f]{64}')",
            "--replace 1a2b": '--replace "$(ls model-keys/root.* | head -1 | cut -d. -f2)"',
        },
    ),
    "docs/how-to/overnight-batch.md": Setup(in_house=True),
    "docs/how-to/understand-a-day.md": Setup(prepare=shorten_days),
    "docs/tutorial/first-job.md": Setup(prepare=link_real_models, needs=(pytest.mark.models,)),
    "docs/reference/accounts.md": Setup(
        prepare=guarded,
        replace={
            "er_k5x2v7q4m3na": "$(edge-runtime accounts list | grep acme | grep -o 'er_[a-z0-9]*')"
        },
    ),
    "docs/reference/http.md": Setup(in_house=True),
    "docs/reference/openai.md": Setup(in_house=True, prepare=requests_of_a_batch),
    "docs/reference/open-inference.md": Setup(in_house=True),
    "docs/reference/signals.md": Setup(in_house=True),
    "examples/traces/README.md": Setup(in_house=True),
}


def setup_of(page: Path) -> Setup:
    return PAGE_SETUPS.get(named(page), Setup())


RUN = [page for page in PAGES if any(block.is_run for block in blocks_of(page))]


@pytest.fixture(scope="module")
def house_ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    with doc_house(tmp_path_factory.mktemp("house")) as ports:
        yield ports


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=setup_of(page).marks, id=named(page)) for page in RUN]
)
def test_every_block_of_the_page_works(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    setup = setup_of(page)
    ports = dict(request.getfixturevalue("house_ports")) if setup.in_house else {}
    shell = DocShell(tmp_path, setup.replace, ports)
    try:
        setup.prepare(shell)
        follow(shell, blocks_of(page))
    finally:
        shell.kill()
    assert not shell.bad_ends, shell.logs()


def follow(shell: DocShell, blocks: list[Block]) -> None:
    """Run what is to be run, in order, and compare what is shown."""
    printed = ""
    for block in blocks:
        if block.mark == "stays":
            shell.stays(block.text, block.where)
        elif block.is_run:
            printed = shell.run(block)
        elif block.mark == "output":
            assert matches(block.text, printed), f"{block.where}: printed was\n{printed}"


# --- what the reference says about what runs ----------------------------------------------------

ROUTE: Final = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/[^ ?]*)(?:\?\S*)?")
HTTP_PAGES: Final = [
    ROOT / "docs" / "reference" / f"{name}.md"
    for name in ("http", "accounts", "objects", "open-inference", "openai", "metrics")
]
NO_SUCH_PATH: Final = ('"message":"Not Found"', "no path /", "no such path")


def documented_routes() -> set[tuple[str, str]]:
    matches = [ROUTE.fullmatch(code) for page in HTTP_PAGES for code in inline_code_of(page)]
    return {(match[1], match[2]) for match in matches if match}


def asked(ports: dict[str, int], method: str, path: str) -> tuple[int, str, str]:
    """Status, the header Allow, body."""
    connection = http.client.HTTPConnection("127.0.0.1", ports["8080"], timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Tus-Resumable": "1.0.0"})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Allow", ""), answer.read().decode()


def fetched(ports: dict[str, int], path: str) -> str:
    status, _, body = asked(ports, "GET", path)
    assert status == HTTPStatus.OK, body
    return body


@pytest.mark.models
def test_every_route_of_the_pages_is_served(house_ports: dict[str, int]) -> None:
    for method, path in sorted(documented_routes()):
        filled = re.sub(r"\{sha256\}", "a" * 64, path)
        filled = re.sub(r"\{[a-z]+\}", "nobody", filled)
        status, _, body = asked(house_ports, method, filled)
        assert status != HTTPStatus.METHOD_NOT_ALLOWED, (method, path)
        assert not any(words in body for words in NO_SUCH_PATH), (method, path, body)
        status, allow, _ = asked(house_ports, "TRACE", filled)
        assert status != HTTPStatus.METHOD_NOT_ALLOWED or method in allow, (method, path, allow)


@pytest.mark.models
def test_every_route_that_describes_itself_is_on_a_page(house_ports: dict[str, int]) -> None:
    described = json.loads(fetched(house_ports, "/openapi.json"))["paths"]
    # Other conventions' routes are on their pages in short, many in one line.
    served = {
        (method.upper(), path)
        for path, methods in described.items()
        for method, operation in methods.items()
        if not {"openai", "open-inference"} & set(operation["tags"])
    }
    assert len(served) > 20
    assert served <= documented_routes()


@pytest.mark.models
def test_the_metrics_are_those_of_the_page(house_ports: dict[str, int]) -> None:
    told = set(re.findall(r"^# HELP (\S+)", fetched(house_ports, "/metrics"), re.MULTILINE))
    page = (ROOT / "docs/reference/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE))
    assert {name for name in told if not name.startswith(("process_", "python_"))} == listed


@pytest.mark.models
def test_every_topic_in_use_is_in_the_table(house_ports: dict[str, int], tmp_path: Path) -> None:
    """A job is done, and everything on the bus meanwhile is looked at."""
    table = (ROOT / "schemas" / "topics.md").read_text()
    templates = re.findall(r"^\| `(\S+?)`", table, re.MULTILINE)
    known = {
        template: re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)))
        for template in templates
    }
    shell = DocShell(tmp_path, {}, dict(house_ports))
    seen: set[str] = set()
    wanted = {"up/state", "up/ack", "up/result", "dn/work", "dn/control", "results", "status"}
    with listening(house_ports["1883"], seen) as changed:
        shell.sh("echo hello > lines.txt", SETUP)
        shell.sh("edge-runtime submit --model minilm --text-lines lines.txt", SETUP)
        with changed:
            assert changed.wait_for(
                lambda: all(any(one.endswith(end) for one in seen) for end in wanted), 30
            ), seen
    strangers = {one for one in seen if not any(form.fullmatch(one) for form in known.values())}
    assert not strangers


@contextlib.contextmanager
def listening(port: int, seen: set[str]) -> Iterator[threading.Condition]:
    """Collect every topic; the condition is notified at each message."""
    changed, subscribed = threading.Condition(), threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)

    def note(_client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        with changed:
            seen.add(message.topic)
            changed.notify_all()

    client.on_message = note
    client.on_connect = lambda *_: client.subscribe("er/#")
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert subscribed.wait(20)
        yield changed
    finally:
        client.disconnect()
        client.loop_stop()


# --- the runner itself --------------------------------------------------------------------------


def block(text: str, mark: str = "", language: str = "sh") -> Block:
    return Block(ROOT / "docs" / "planted-page.md", 1, language, text, True, mark, "")


def test_a_page_is_one_terminal(tmp_path: Path) -> None:
    shell = DocShell(tmp_path)
    first = "word=here\nmkdir one\ncd one\n"
    show = "printf '%s\\n' $word ${PWD##*/} $EDGE_RUNTIME_SUBMIT_URL"
    url = f"http://127.0.0.1:{shell.ports['8080']}"
    follow(shell, [block(first), block(show), block(f"here\none\n{url}\n", "output", "text")])


@pytest.mark.parametrize(
    "blocks",
    [
        [block("false\ntrue\n")],
        [block("false | cat\n")],
        [block("edge-runtime fly\n")],
        [block("raise SystemExit(1)\n", language="python")],
        [block("echo one\n"), block("two\n", "output", "text")],
        [block("edge-runtime broker --port -1\n", "stays")],
    ],
)
def test_a_block_that_does_not_work_is_seen(blocks: list[Block], tmp_path: Path) -> None:
    shell = DocShell(tmp_path)
    try:
        with pytest.raises(AssertionError, match=r"planted-page\.md:1"):
            follow(shell, blocks)
    finally:
        shell.kill()


def test_every_setup_is_of_a_page_that_is_run() -> None:
    assert PAGE_SETUPS.keys() <= {named(page) for page in RUN}


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n", "a", True),
        ("a … c\n", "a b c\n", True),
        ("…\nz\n", "x\ny\nz\n", True),
        ("a\n…\n", "a\n", True),
        ("a\n", "a\nb\n", False),
        ("a … c\n", "a b\nc\n", False),
        ("a.c\n", "abc\n", False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) is same
