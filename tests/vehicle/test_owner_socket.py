"""The owner's socket and page: bounded, private, many at once, replaced when stale."""

import asyncio
import contextlib
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest
from car_bench import Bench

from edge_runtime.contract import limits
from edge_runtime.vehicle.owner import OwnerReport, Tally, report_running
from edge_runtime.vehicle.owner_decisions import decisions_path
from edge_runtime.vehicle.owner_page import OwnerPage
from edge_runtime.vehicle.owner_socket import (
    SOCKET_FILE,
    NoAnswer,
    NotRunning,
    OwnerSocket,
    ask_owner,
)
from edge_runtime.vehicle.policy_file import PolicyFile


@pytest.fixture
def report(tmp_path: Path) -> Callable[[], OwnerReport]:
    car = Bench().open()
    (tmp_path / "policy.toml").write_text("[consent]\ngiven = true\nversion = 1\n")
    file = PolicyFile(tmp_path / "policy.toml", decisions_path(tmp_path))
    file.read()
    return lambda: report_running("car-1", file, car.core, Tally(), car.now)


@pytest.fixture
async def looks(tmp_path: Path, report: Callable[[], OwnerReport]) -> AsyncIterator[list[int]]:
    seen: list[int] = []
    async with OwnerSocket(tmp_path, report, lambda: seen.append(1)):
        yield seen


async def say(folder: Path, line: bytes) -> bytes:
    """What the socket answers to any bytes."""
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET_FILE)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    return answer


async def test_the_report_is_answered_and_a_look_is_obeyed(
    tmp_path: Path, looks: list[int]
) -> None:
    answer = await asyncio.to_thread(ask_owner, tmp_path, "report")
    assert (answer.vehicle, answer.is_running, answer.why.availability) == ("car-1", True, "ready")
    assert answer.consent.given
    assert answer.consent.by == "policy"
    assert not looks
    await asyncio.to_thread(ask_owner, tmp_path, "look")
    assert looks == [1]


@pytest.mark.usefixtures("looks")
async def test_nobody_else_may_open_the_socket(tmp_path: Path) -> None:
    mode = (tmp_path / SOCKET_FILE).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert mode & 0o777 == 0o600


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b'{"ask":"money"}\n',
        b'{"ask":"report","more":1}\n',
        b"\xff\xfe\n",
        b"[" * 2_000 + b"\n",
        b"x" * (limits.OWNER_REQUEST_MAX_BYTES + 1),
    ],
)
async def test_what_is_no_question_is_told_so(tmp_path: Path, line: bytes) -> None:
    answer = msgspec.json.decode(await say(tmp_path, line))
    assert answer["error"].startswith("not a question")
    assert len(answer["error"]) <= limits.TEXT_MAX_CHARS
    assert (await asyncio.to_thread(ask_owner, tmp_path, "report")).vehicle == "car-1"


@pytest.mark.usefixtures("looks")
async def test_many_ask_at_once_and_one_too_many_is_told_so(tmp_path: Path) -> None:
    silent = [
        await asyncio.open_unix_connection(tmp_path / SOCKET_FILE)
        for _ in range(limits.OWNER_CLIENTS_MAX)
    ]
    with pytest.raises(NoAnswer, match="ask at once"):
        await asyncio.to_thread(ask_owner, tmp_path, "report")
    for _, writer in silent:
        writer.write(b'{"ask":"report"}\n')
    for reader, writer in silent:
        assert b'"report"' in await reader.read()
        writer.close()
    answers = await asyncio.gather(
        *(asyncio.to_thread(ask_owner, tmp_path, "report") for _ in range(8))
    )
    assert {answer.vehicle for answer in answers} == {"car-1"}


async def test_who_hangs_up_in_the_middle_harms_nobody(tmp_path: Path, looks: list[int]) -> None:
    for line in (b"", b'{"ask":', b'{"ask":"look"}\n'):
        _, writer = await asyncio.open_unix_connection(tmp_path / SOCKET_FILE)
        writer.write(line)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    assert (await asyncio.to_thread(ask_owner, tmp_path, "look")).vehicle == "car-1"
    assert looks


async def test_a_stale_socket_is_replaced_and_ones_own_is_removed(
    tmp_path: Path, report: Callable[[], OwnerReport]
) -> None:
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    left.bind(str(tmp_path / SOCKET_FILE))
    left.close()
    with pytest.raises(NotRunning):
        await asyncio.to_thread(ask_owner, tmp_path, "report")
    async with OwnerSocket(tmp_path, report, lambda: None):
        assert (await asyncio.to_thread(ask_owner, tmp_path, "report")).vehicle == "car-1"
    assert not (tmp_path / SOCKET_FILE).exists()
    with pytest.raises(NotRunning):
        ask_owner(tmp_path / "nowhere", "report")


async def test_a_folder_with_a_long_name_has_a_socket_too(
    tmp_path: Path, report: Callable[[], OwnerReport]
) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with OwnerSocket(folder, report, lambda: None):
        assert (await asyncio.to_thread(ask_owner, folder, "report")).vehicle == "car-1"


# --- the page -----------------------------------------------------------------------------------


async def fetch(port: int, request: str) -> tuple[str, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return status, dict(field.split(": ", 1) for field in fields), body


async def test_the_page_and_its_report_are_served_to_this_computer(
    report: Callable[[], OwnerReport],
) -> None:
    async with OwnerPage(0, report) as page:
        host = f"Host: 127.0.0.1:{page.port}\r\n\r\n"
        status, fields, body = await fetch(page.port, f"GET / HTTP/1.1\r\n{host}")
        assert status == "HTTP/1.1 200 OK"
        assert b"<!doctype html>" in body
        assert int(fields["Content-Length"]) == len(body)
        assert "default-src 'none'" in fields["Content-Security-Policy"]
        assert b"http://" not in body
        assert b"https://" not in body
        status, fields, body = await fetch(page.port, f"GET /report.json HTTP/1.1\r\n{host}")
        assert msgspec.json.decode(body, type=OwnerReport).vehicle == "car-1"
        assert fields["Cache-Control"] == "no-store"
        status, fields, body = await fetch(page.port, f"HEAD / HTTP/1.1\r\n{host}")
        assert (status, body) == ("HTTP/1.1 200 OK", b"")


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\n\r\n", "421"),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", "404"),
        ("POST / HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n", "405"),
        ("GET /\r\n\r\n", "400"),
        ("\x00\x01\x02\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nX: " + "x" * limits.OWNER_REQUEST_MAX_BYTES, "431"),
    ],
)
async def test_the_page_answers_nothing_else(
    report: Callable[[], OwnerReport], request_text: str, status: str
) -> None:
    async with OwnerPage(0, report) as page:
        line, _, _ = await fetch(page.port, request_text.replace("{port}", str(page.port)))
        assert line.split(" ")[1] == status
        host = f"Host: localhost:{page.port}\r\n\r\n"
        line, _, _ = await fetch(page.port, f"GET / HTTP/1.1\r\n{host}")
        assert line == "HTTP/1.1 200 OK"


async def test_the_page_is_on_loopback_only(report: Callable[[], OwnerReport]) -> None:
    async with OwnerPage(0, report) as page:
        table = await asyncio.to_thread(Path("/proc/net/tcp").read_text)
        listening = [line.split()[1] for line in table.splitlines()[1:]]
        mine = [address for address in listening if address.endswith(f":{page.port:04X}")]
        assert mine
        assert all(address.startswith("0100007F:") for address in mine)
