"""A nemesis that listens: texts, streamed through OpenAI's API, while cars come and go.

Every question has a number that no other has, so that its one right text (`sim.texts`) is known to
whoever hears which seed the dispatcher gave it. Some listeners hang up; somebody sends tokens
under the name of a car that had the text before, or of one that never had it.

S17 is judged here, at every piece: what a listener has read is a prefix of the undisturbed text,
no token lost or repeated; a stream ends in one finish or one error; only one unit at a time
extends it, whose offer says what is known.
"""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edge_runtime.bus import Message
from edge_runtime.bus.memory import Partition
from edge_runtime.client.transport import Interrupted
from edge_runtime.contract import codec
from edge_runtime.contract.errors import Rejected
from edge_runtime.contract.messages import Chunk, Fence, Results, Tokens, UnitOffer
from edge_runtime.contract.topics import Down, Up
from edge_runtime.sim.nemesis import often
from edge_runtime.sim.texts import LONG, MODEL, Asked, Text, read_asked
from edge_runtime.sim.web import Exchange, opened
from edge_runtime.sim.world import LISTENER, Car, World

_CHAT: Final = "/v1/chat/completions"
_COMPLETIONS: Final = "/v1/completions"
_HEADERS: Final = {"x-tenant": LISTENER, "content-type": "application/json"}
_OK: Final = 200
_MAY_FAIL: Final = frozenset({500, 503, 504})
"""A car that fails, no car, no time. Anything else would blame the question."""
_WORK: Final = f"/dn/{Down.WORK.value}"
_DONE: Final = b"[DONE]"
_LEAVES: Final = 0.2
_DISTURBED: Final = 0.6
_AGAIN_S: Final = 1.0
_IDLE_BOUND_S: Final = 3.0
_LONG_TOKENS: Final = 200
"""Far more than are written in `_IDLE_BOUND_S`."""
_STRAY_SEQ: Final = 950


async def conversations(world: World, rng: random.Random) -> None:
    """See the module."""
    talks = _Talks(world, rng)
    world.ledger.witnesses.append(talks.heard)
    world.ledger.unanswered.add(LISTENER)
    world.waits_for.append(lambda: LISTENER not in world.ledger.unanswered)
    # It goes on when faults have stopped.
    world.keepers.append(asyncio.ensure_future(talks.after()))

    async def strike() -> None:
        await talks.listen()

    await often(world, rng, 7, strike)


@dataclass
class _Offered:
    """Who was last offered a text, and as what."""

    vehicle: str
    unit: int
    fence: Fence


class _Reading:
    """What one listener has read, judged as it comes."""

    def __init__(self, talks: "_Talks", question: str, asked: Asked) -> None:
        self._talks = talks
        self._question = question
        self._asked = asked
        self.text = ""
        self.finishes: list[str] = []
        self.errors = 0
        self.tokens: int | None = None
        self.is_done = False

    def take(self, data: bytes) -> None:
        """One event of the stream."""
        if self.is_done:
            self._wrong(f"goes on after its end with {data[:80]!r}")
        if data == _DONE:
            self.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.errors += 1
            return
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        for choice in event["choices"]:
            self._add(choice.get("text") or choice.get("delta", {}).get("content") or "")
            if choice["finish_reason"] is not None:
                self.finishes.append(choice["finish_reason"])

    def _add(self, more: str) -> None:
        if more and (self.finishes or self.errors):
            self._wrong(f"goes on with {more!r} after its end")
        self.text += more
        whole = self._right().whole
        if not whole.startswith(self.text):
            self._wrong(f"was told {self.text!r}, which is not the beginning of {whole!r}")

    def ended(self) -> None:
        """The stream is over, and nothing was cut."""
        if not self.is_done or len(self.finishes) + self.errors != 1:
            self._wrong(
                f"was told {len(self.finishes)} ends and {self.errors} errors,"
                f" {'and' if self.is_done else 'and not'} that it is done"
            )
        elif self.finishes:
            self.judge_whole(self.text, self.finishes[0], self.tokens)

    def judge_whole(self, text: str, finish: str, tokens: int | None) -> None:
        """An answer is all that an undisturbed car would have written."""
        right = self._right()
        if (text, finish, tokens) != (right.whole, right.finish.value, right.length):
            self._wrong(f"was told {(text, finish, tokens)} for {right.whole!r} {right.length}")

    def _right(self) -> Text:
        return Text(self._talks.with_seed(self._question, self._asked))

    def _wrong(self, what: str) -> None:
        self._talks.world.ledger.violated("S17", f"who asked {self._question!r} {what}")


class _Talks:
    """Asks, listens and judges."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self._rng = rng
        self._number = 0
        self._seeds: dict[str, int] = {}
        self._offered: dict[str, _Offered] = {}
        self._signed = codec.signed_decoder()
        self._work = codec.work_decoder()

    def with_seed(self, question: str, asked: Asked) -> Asked:
        """What was asked, with the seed that the dispatcher gave it, if it has."""
        return msgspec.structs.replace(asked, seed=self._seeds.get(question, asked.seed))

    # --- listening ---

    async def listen(self) -> None:
        """Ask once, and listen to the end; or not so long."""
        rng = self._rng
        kind = rng.choice(("chat", "chat", "completion", "whole"))
        is_leaving = rng.random() < _LEAVES
        self.world.ledger.fault("listener_leaves" if is_leaving else "conversation", kind)
        patience_s = rng.uniform(0.01, 3.0) if is_leaving else None
        try:
            async with asyncio.timeout(patience_s):
                await self._ask(kind)
        except TimeoutError:
            self.world.ledger.note("a listener hangs up")

    async def _ask(self, kind: str) -> int | None:
        """Ask once; the status of a text that came to an end, None for any other."""
        self._number += 1
        question = f"question {self._number}"
        asked = Asked(
            prompt=question,
            max_tokens=self._rng.choice((4, 30, 30)),
            temperature=self._rng.choice((0.0, 0.8)),
        )
        body: dict[str, Any] = {
            "model": MODEL,
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
            **_words(kind, question),
        }
        path = _COMPLETIONS if kind == "completion" else _CHAT
        reading = _Reading(self, question, asked)
        try:
            async with opened(
                self.world.network, "POST", path, json.dumps(body).encode(), _HEADERS
            ) as one:
                await one.started()
                if one.status == _OK and kind != "whole":
                    return await self._follow(one, reading, question)
                return await self._take_whole(one, reading)
        except Interrupted as error:
            self.world.ledger.note(f"listener of {question}: {error}")
            return None

    async def _take_whole(self, one: Exchange, reading: _Reading) -> int:
        """A text in one answer, or a refusal; the status."""
        ledger, content = self.world.ledger, await one.body()
        ledger.note(f"a text: {one.status}")
        answer = json.loads(content)
        if one.status == _OK:
            (choice,) = answer["choices"]
            tokens = answer["usage"]["completion_tokens"]
            reading.judge_whole(choice["message"]["content"], choice["finish_reason"], tokens)
        elif one.status not in _MAY_FAIL or not answer["error"]["message"]:
            ledger.violated("S17", f"refused: {one.status} {content[:200]!r}")
        return one.status

    async def _follow(self, one: Exchange, reading: _Reading, question: str) -> int | None:
        """A text as it comes, to its end."""
        held, has_begun = b"", False
        while piece := await one.piece():
            *events, held = (held + piece).split(b"\n\n")
            for event in events:
                reading.take(event.removeprefix(b"data: "))
            if reading.text and not has_begun:
                has_begun = True
                self._disturb(question)
        reading.ended()
        self.world.ledger.note(f"a text of {len(reading.text)} characters")
        return _OK if reading.finishes else None

    def _disturb(self, question: str) -> None:
        """Often something happens to the car that has begun to write."""
        world, rng = self.world, self._rng
        offered = self._offered.get(question)
        if world.is_healed or offered is None or rng.random() > _DISTURBED:
            return
        (car,) = [car for car in world.cars if car.name == offered.vehicle]
        way = rng.choice(("dies", "stands still", "is cut off", "is needed"))
        for_s = rng.choice((0.5, 2.0, 8.0))
        world.ledger.fault("text_disturbed", f"{car.name} {way}")
        match way:
            case "dies":
                world.kill(car.host, for_s)
            case "stands still":
                car.host.pause(for_s)
            case "is cut off":
                faults = world.all_faults[car.name]
                faults.set_partition(Partition.BOTH)
                world.loop.call_later(for_s, faults.set_partition, Partition.NONE)
            case _:
                _occupy(car, True)
                world.loop.call_later(for_s, _occupy, car, False)

    # --- what cars are offered, and strays ---

    def heard(self, message: Message) -> None:
        """A message reached the broker."""
        if not message.topic.endswith(_WORK):
            return
        try:
            work = self._work.decode(self._signed.decode(message.payload).body)
        except Rejected:
            return  # garbage, of which the ledger knows
        for unit in work.units:
            if unit.interactive and unit.task == "text-generation":
                self._hear(work.vehicle, unit)

    def _hear(self, vehicle: str, unit: UnitOffer) -> None:
        asked = read_asked(unit.items[0].data)
        question = asked.question
        seed = self._seeds.setdefault(question, asked.seed)
        ledger = self.world.ledger
        known = asked.generated
        if seed != asked.seed or known != Text(asked).after((), len(known)):
            ledger.violated("S17", f"{vehicle} is to go on with {question!r} after what is not it")
        if self.world.service is not None:
            try:
                self.world.service.interactive.core.check()
            except AssertionError as error:
                ledger.violated("S17", f"the interactive core: {error}")
        before = self._offered.get(question)
        if before is not None and unit.unit <= before.unit:
            return  # one that the broker repeats, or that was overtaken
        now = self._offered[question] = _Offered(vehicle, unit.unit, unit.fence)
        if known:
            ledger.fired["text_moved"] += 1
        if before is not None:
            self._stray("tokens_of_old_fence", before.vehicle, before, unit, len(known))
        others = [car.name for car in self.world.cars if car.name != vehicle]
        if others:
            self._stray("tokens_of_other_car", self._rng.choice(others), now, unit, len(known))

    def _stray(
        self, kind: str, vehicle: str, claimed: _Offered, unit: UnitOffer, offset: int
    ) -> None:
        """Soon, this car sends tokens for an attempt that is not, or no longer, its own."""
        tokens = Tokens(index=0, offset=offset, ids=(1,), text=" a lie")
        chunk = Chunk(
            job=unit.job,
            unit=claimed.unit,
            fence=claimed.fence,
            model=unit.model,
            seq=_STRAY_SEQ,
            items=(),
            tokens=(tokens,),
        )
        payload = codec.encode(Results(vehicle=vehicle, boot=1, chunks=(chunk,)))
        topic = self.world.topics.up(vehicle, Up.RESULT)

        def send() -> None:
            world = self.world
            if not world.is_healed and world.broker.is_running:
                world.ledger.fault(kind, vehicle)
                world.ledger.lies.add(payload)
                world.broker.publish(Message(topic, payload))

        self.world.loop.call_later(self._rng.uniform(0.001, 0.3), send)

    # --- when faults have stopped ---

    async def after(self) -> None:
        """Ask until a text has come to its end; then leave in the middle of one."""
        world = self.world
        while not world.is_healed:  # noqa: ASYNC110 - virtual time; healing has no event
            await asyncio.sleep(_AGAIN_S)
        while await self._ask("chat") != _OK:  # noqa: ASYNC110 - the question is the wait
            await asyncio.sleep(_AGAIN_S)
        await self._leave_in_the_middle()
        world.ledger.unanswered.discard(LISTENER)

    async def _leave_in_the_middle(self) -> None:
        """Hang up on a long text, and see that its car stops long before its end."""
        world, question = self.world, f"{LONG}, please"
        body = {"model": MODEL, "max_tokens": _LONG_TOKENS, **_words("completion", question)}
        try:
            async with opened(
                world.network, "POST", _COMPLETIONS, json.dumps(body).encode(), _HEADERS
            ) as one:
                await one.started()
        except Interrupted as error:
            world.ledger.note(f"listener: {error}")
            return
        world.ledger.note("a listener hangs up in the middle")
        await asyncio.sleep(_IDLE_BOUND_S)
        for car in world.cars:
            in_hand = b"" if car.engine is None else car.engine.in_hand
            if car.is_computing and question.encode() in in_hand:
                world.ledger.violated(
                    "S13", f"{car.name} writes {_IDLE_BOUND_S:g} s after its listener has left"
                )


def _occupy(car: Car, is_there: bool) -> None:
    car.truth.signals["is_occupied"] = is_there
    car.changed()


def _words(kind: str, question: str) -> dict[str, Any]:
    """How a question is put."""
    how: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    if kind == "whole":
        how = {}
    if kind == "completion":
        return {"prompt": question, **how}
    return {"messages": [{"role": "user", "content": question}], **how}
