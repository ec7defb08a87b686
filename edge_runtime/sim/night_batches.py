"""A nemesis that leaves work for the night: files of requests, and batches of them.

Each person uploads a file in which some lines are wrong, asks for a batch over it, perhaps cancels
it, waits for its end over as many failures as there are, and reads its files.

S19 is judged here. A file, a batch and a cancel that were answered stay, whatever died since. Of a
batch that is over every line has exactly one end, in its output or its error file, as the line
deserves: of one that was cancelled or late every line up to one; and none of its jobs runs on.

What an older store says after it was put back is not judged: the person then begins anew.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from edge_runtime.client.transport import Interrupted
from edge_runtime.contract.reasons import ItemError
from edge_runtime.sim.nemesis import HALF
from edge_runtime.sim.texts import MODEL, Asked, Text
from edge_runtime.sim.web import exchange
from edge_runtime.sim.world import NIGHT, World

_CHAT: Final = "/v1/chat/completions"
_OK: Final = 200
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504, 507})
_OVER: Final = frozenset({"completed", "expired", "cancelled", "failed"})
_BOUNDARY: Final = "cut-here"
_FORM: Final = f"multipart/form-data; boundary={_BOUNDARY}"
_UPLOAD_PIECES: Final = 4
_AGAIN_S: Final = 2.0
_LOOK_S: Final = 8.0
_TOKENS: Final = 6
_CANCELS: Final = 0.3
_KILLED: Final = 0.4
_NOT_RUN: Final = {"expired": "batch_expired", "cancelled": "batch_cancelled"}
_UNLUCKY: Final = frozenset(
    {
        ItemError.ENGINE_KILLED.value,
        ItemError.ENGINE_HUNG.value,
        ItemError.CAR_REBOOTED.value,
        _NOT_RUN["expired"],
    }
)
"""What may end a good line in any batch: cars that die of it, and the end of its window."""


@dataclass
class _Line:
    """A line of a file, and what it deserves: the text of `question`, or the `fault`."""

    raw: bytes
    custom_id: str | None
    question: str = ""
    fault: str = ""


@dataclass
class _Night:
    """What one person left, and what he was told of it."""

    name: str
    lines: list[_Line]
    window: str
    file: str = ""
    batch: str = ""
    is_cancelled: bool = False


async def night_batches(world: World, rng: random.Random) -> None:
    """See the module."""
    unanswered = world.ledger.unanswered
    names = {f"night{number}" for number in range(rng.randint(1, 2))}
    unanswered |= names
    world.waits_for.append(lambda: not unanswered & names)
    for name in sorted(names):
        person = _Person(world, random.Random(rng.getrandbits(64)), name)  # noqa: S311 - a seeded world
        # They go on when faults have stopped.
        world.keepers.append(asyncio.ensure_future(person.live()))


class _Person:
    """See the module."""

    def __init__(self, world: World, rng: random.Random, name: str) -> None:
        self._world = world
        self._rng = rng
        self._name = name

    async def live(self) -> None:
        """One night, begun anew if an older store was put back."""
        await asyncio.sleep(self._rng.uniform(0, self._world.scale.faults_s / 2))
        while True:
            stores = self._world.ledger.fired["restored_backup"]
            night = self._plan(stores)
            if await self._spend(night) or stores == self._world.ledger.fired["restored_backup"]:
                break
        self._world.ledger.unanswered.discard(self._name)

    def _plan(self, stores: int) -> _Night:
        rng, name = self._rng, f"{self._name}.{stores}"
        lines: list[_Line] = []
        for number in range(rng.randint(2, 9)):
            known = [line.custom_id for line in lines if line.custom_id and not line.fault]
            lines.append(_line(rng, f"{name}.{number}", known))
        return _Night(name, lines, rng.choice(("12s", "1d", "1d")))

    async def _spend(self, night: _Night) -> bool:
        """From the upload to the files; whether nothing went back meanwhile."""
        while not night.file:
            await self._upload(night)
        while not night.batch:
            await self._begin(night)
        self._kill_soon()
        if self._rng.random() < _CANCELS:
            await asyncio.sleep(self._rng.choice((0.0, 0.5, 4.0)))
            await self._cancel(night)
        while True:
            status, batch = await self._ask("GET", f"/v1/batches/{night.batch}")
            if status == _NOT_FOUND:
                return self._lost(night.batch)
            if status == _OK and batch["status"] in _OVER:
                break
            await asyncio.sleep(_LOOK_S)
        return await self._judge(night, batch)

    # --- asking ---

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        media_type: str = "application/json",
        pieces: int = 1,
    ) -> tuple[int, Any]:
        """(status, content decoded); 0 where the connection broke. What passes is waited out."""
        world = self._world
        headers = {"x-tenant": NIGHT, "accept": "application/json", "content-type": media_type}
        try:
            status, said, content = await exchange(
                world.network, method, path, body, headers, pieces=pieces
            )
        except Interrupted as error:
            world.ledger.note(f"{self._name}: {error}")
            status, said, content = 0, {}, b""
        world.ledger.note(f"{self._name}: {method} {path} {status}")
        if status in _PASSING or not status:
            await asyncio.sleep(_AGAIN_S)
        is_json = said.get("content-type", "").startswith("application/json")
        return status, json.loads(content) if is_json else content

    async def _upload(self, night: _Night) -> None:
        world = self._world
        world.ledger.fault("upload", night.name)
        data = b"".join(line.raw + b"\n" for line in night.lines)
        status, file = await self._ask(
            "POST", "/v1/files", _form(data), media_type=_FORM, pieces=_UPLOAD_PIECES
        )
        if status == _OK:
            night.file = file["id"]
        else:
            self._must_pass(status, file, "upload")

    async def _begin(self, night: _Night) -> None:
        """Ask for the batch, unless it is there already: the answer may have been lost."""
        status, page = await self._ask("GET", "/v1/batches")
        if status != _OK:
            self._must_pass(status, page, "list batches")
            return
        for batch in page["data"]:
            if batch["metadata"] == {"night": night.name}:
                night.batch = batch["id"]
                return
        asked = {
            "input_file_id": night.file,
            "endpoint": _CHAT,
            "completion_window": night.window,
            "metadata": {"night": night.name},
        }
        status, batch = await self._ask("POST", "/v1/batches", json.dumps(asked).encode())
        if status == _OK:
            night.batch = batch["id"]
            self._world.ledger.fault("batch", night.name)
        elif status == _NOT_FOUND:
            self._lost(night.file)
            night.file = ""
            while not night.file:
                await self._upload(night)
        else:
            self._must_pass(status, batch, "begin a batch")

    async def _cancel(self, night: _Night) -> None:
        while True:
            status, batch = await self._ask("POST", f"/v1/batches/{night.batch}/cancel")
            if status == _OK:
                night.is_cancelled = True
                self._kill_soon()
                self._world.ledger.fault("batch_cancelled", night.name)
            if status in {_OK, _CONFLICT, _NOT_FOUND}:
                return
            self._must_pass(status, batch, "cancel a batch")

    def _kill_soon(self) -> None:
        """Often the dispatcher dies when it has hardly answered."""
        world, rng = self._world, self._rng
        after_s, back_s = rng.uniform(0, rng.choice((0.003, 0.1))), rng.choice((0.05, 3.0))
        if rng.random() < _KILLED and not world.is_healed:
            world.ledger.fault("batch_and_kill", self._name)
            world.loop.call_later(after_s, world.kill, world.dispatcher, back_s)

    def _must_pass(self, status: int, said: Any, what: str) -> None:
        if status and status not in _PASSING:
            self._wrong(f"{self._name} could not {what}: {status} {said}"[:300])

    def _lost(self, what: str) -> bool:
        if not self._world.ledger.has_gone_back:
            self._wrong(f"{what} was answered and is gone")
        return False

    def _wrong(self, what: str) -> None:
        self._world.ledger.violated("S19", what)

    # --- judging ---

    async def _judge(self, night: _Night, batch: Mapping[str, Any]) -> bool:
        """Read the files of a batch that is over, and compare them with its lines."""
        status, ledger = batch["status"], self._world.ledger
        ledger.fired[f"batch_ends_{status}"] += 1
        is_wrong = status == "failed" or (night.is_cancelled and status != "cancelled")
        if is_wrong and not ledger.has_gone_back:
            self._wrong(f"{night.name} is {status}, was cancelled: {night.is_cancelled}")
        found: list[tuple[bool, dict[str, Any]]] = []
        for name in ("output", "error"):
            file = batch[f"{name}_file_id"]
            if file is None:
                continue
            content = await self._content(file)
            if content is None:
                return self._lost(file)
            found += [(name == "output", json.loads(line)) for line in content.splitlines()]
        self._compare(night, status, found)
        good = sum(is_good for is_good, _ in found)
        counts = batch["request_counts"]
        if (counts["completed"], counts["failed"]) != (good, len(found) - good):
            self._wrong(f"{night.name} counts {counts}, has {good} of {len(found)} good lines")
        self._must_rest(night)
        return True

    async def _content(self, file: str) -> bytes | None:
        while True:
            status, content = await self._ask("GET", f"/v1/files/{file}/content")
            if status == _NOT_FOUND:
                return None
            if status == _OK:
                return bytes(content)
            self._must_pass(status, content, "read a file")

    def _compare(
        self, night: _Night, status: str, found: list[tuple[bool, dict[str, Any]]]
    ) -> None:
        """Each line is found once, as it deserves; none where the batch did not come so far."""
        left = list(found)
        is_read = True
        for number, line in enumerate(night.lines, 1):
            mine = [entry for entry in left if _is_of(line, number, *entry)]
            if len(mine) > 1 or (mine and not is_read) or (not mine and status == "completed"):
                self._wrong(f"{night.name} line {number} has {len(mine)} ends, in {status}: {mine}")
            is_read = bool(mine)
            for entry in mine:
                left.remove(entry)
                if not _is_deserved(line, status, *entry):
                    self._wrong(f"{night.name} line {number} {line} ended as {entry}")
        if left:
            self._wrong(f"{night.name} has what no line asked for: {left[0]}")

    def _must_rest(self, night: _Night) -> None:
        """When a batch is over nothing is computed for it."""
        service = self._world.service
        if service is None or not self._world.dispatcher.is_up:
            return
        for job in service.core.state.jobs.values():
            is_its = (job.spec.idempotency_key or "").startswith(f"{night.batch}/")
            if is_its and not job.is_over:  # a car may still be told that it is
                self._wrong(f"{night.batch} is over, and its job {job.spec.id} runs on")


def _line(rng: random.Random, name: str, known: list[str]) -> _Line:
    """A request, or what is none."""
    asked = {
        "custom_id": name,
        "method": "POST",
        "url": _CHAT,
        "body": {
            "model": rng.choice((MODEL, f"{MODEL}@1")),
            "messages": [{"role": "user", "content": f"line {name}"}],
            "max_tokens": _TOKENS,
        },
    }
    if rng.random() < HALF:
        return _Line(json.dumps(asked).encode(), name, question=f"line {name}")
    kind = rng.choice(("garbage", "twice", "no model", "no id", "good", "good"))
    if kind == "garbage":
        return _Line(b"{" + name.encode(), None, fault="invalid_json_line")
    if kind == "twice" and known:
        asked["custom_id"] = custom_id = rng.choice(known)
        return _Line(json.dumps(asked).encode(), custom_id, fault="duplicate_custom_id")
    if kind == "no model":
        asked["body"] = {**asked["body"], "model": "nobody"}  # type: ignore[dict-item]  # it is a dict
        return _Line(json.dumps(asked).encode(), name, fault="model_not_found")
    if kind == "no id":
        del asked["custom_id"]
        return _Line(json.dumps(asked).encode(), None, fault="invalid_json_line")
    return _Line(json.dumps(asked).encode(), name, question=f"line {name}")


def _is_of(line: _Line, number: int, is_output: bool, entry: Mapping[str, Any]) -> bool:
    """Whether an entry is this line's: broken ones are told by their number in the file."""
    if line.fault:
        return not is_output and entry["error"].get("line") == number
    told = entry["error"] or {}
    return entry["custom_id"] == line.custom_id and told.get("line") is None


def _is_deserved(line: _Line, status: str, is_output: bool, entry: Mapping[str, Any]) -> bool:
    if not is_output:
        code = entry["error"]["code"]
        if line.fault:
            return bool(code == line.fault and entry["custom_id"] == line.custom_id)
        return code in _UNLUCKY or code == _NOT_RUN.get(status)
    body = entry["response"]["body"]
    (choice,) = body["choices"]
    right = Text(Asked(prompt=line.question, max_tokens=_TOKENS))
    told = (choice["message"]["content"], choice["finish_reason"])
    return not line.fault and told == (right.whole, right.finish.value)


def _form(data: bytes) -> bytes:
    """As a browser, or OpenAI's client, sends a file."""
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    purpose = f'{head}"purpose"\r\n\r\nbatch\r\n'
    file = f'{head}"file"; filename="night.jsonl"\r\n\r\n'
    return purpose.encode() + file.encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()
