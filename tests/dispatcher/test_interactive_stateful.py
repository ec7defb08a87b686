"""Any order of requests, cars, answers, failures and time: one end each, nothing out for nobody."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from interactive_rig import Rig, lent

from edge_runtime.contract import limits
from edge_runtime.contract.messages import Tokens
from edge_runtime.contract.reasons import Availability, HoldReason, ItemError, RefusalReason
from edge_runtime.dispatcher.core import interactive_parts as p

CARS = ("car-1", "car-2", "car-3")
cars = st.sampled_from(CARS)


def resume(ids: tuple[int, ...]) -> bytes:
    return f"after {len(ids)}".encode()


class Interactive(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.asked: dict[int, bytes] = {}
        self.left: set[int] = set()
        self.streams: set[int] = set()
        self.boots = dict.fromkeys(CARS, 0)
        for car in CARS[:2]:
            self.born(car)

    @rule(tenant=st.sampled_from("ab"), rows=st.integers(1, 9), ms=st.integers(1, 9_000))
    def ask(self, tenant: str, rows: int, ms: int) -> None:
        number = self.rig.ask(tenant, rows, deadline_ms=self.rig.boot_ms + ms)
        self.asked[number] = f"item {number}".encode()

    @rule(length=st.integers(1, limits.OBJECT_MAX_BYTES))
    def ask_by_reference(self, length: int) -> None:
        number = self.rig.ask(**lent(len(self.asked) + len(self.streams) + 1, length))
        self.asked[number] = f"item {number}".encode()

    @rule()
    def ask_for_tokens(self) -> None:
        self.streams.add(self.rig.ask(resume=resume, item=resume(())))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        open_ones = [n for n in (*self.asked, *self.streams) if n not in self.rig.ended]
        if open_ones:
            number = data.draw(st.sampled_from(open_ones))
            self.left.add(number)
            self.rig.leave(number)

    @rule(car=cars)
    def born(self, car: str) -> None:
        self.boots[car] += 1
        self.rig._seqs.pop(car, None)
        self.rig.car(car, boot=self.boots[car])
        self.forget_dead()

    @rule(car=cars, is_ready=st.booleans())
    def changes(self, car: str, is_ready: bool) -> None:
        if self.boots[car]:
            how = (
                (Availability.READY, None)
                if is_ready
                else (
                    Availability.HOLD,
                    HoldReason.OCCUPIED,
                )
            )
            self.rig.says(car, *how, boot=self.boots[car])

    def forget_dead(self) -> None:
        live = set(self.rig.core._units)
        self.rig.out = {unit: entry for unit, entry in self.rig.out.items() if unit in live}

    @precondition(lambda self: self.rig.units)
    @rule(data=st.data())
    def a_car_speaks(self, data: st.DataObject) -> None:
        r = self.rig
        unit = data.draw(st.sampled_from(r.units))
        vehicle, offer = r.out[unit]
        indexes = [item.index for item in offer.items]
        match data.draw(st.sampled_from(["done", "part", "fail", "give", "refuse", "tokens"])):
            case "done":
                r.answer(unit)
            case "part":
                r.answer(unit, data.draw(st.sampled_from(indexes)), ends=False)
            case "fail":
                code = data.draw(st.sampled_from([ItemError.MODEL_ERROR, ItemError.WRONG_SHAPE]))
                r.fail(
                    unit, data.draw(st.sampled_from(indexes)), code, ends=data.draw(st.booleans())
                )
            case "give":
                r.release(unit)
            case "refuse":
                r.refuse(unit, data.draw(st.sampled_from([RefusalReason.HOLD, RefusalReason.BUSY])))
            case _:
                offset = data.draw(st.integers(0, 6))
                piece = Tokens(index=0, offset=offset, ids=(offset, offset + 1), text="x")
                r.chunk(unit, tokens=(piece,), offer=offer, vehicle=vehicle)
        self.forget_dead()

    @rule(ms=st.sampled_from([1, 3, 60, 700, 2_500, 12_000]))
    def time_passes(self, ms: int) -> None:
        self.rig.wait(ms)
        for car, boot in self.boots.items():
            if boot and ms > limits.STATE_STALE_MS // 4:
                self.rig.says(car, boot=boot)
        self.forget_dead()

    @invariant()
    def answers_are_the_requests_own(self) -> None:
        for number, end in self.rig.ended.items():
            if isinstance(end, p.Answered) and number in self.asked:
                assert end.output.endswith(self.asked[number])

    @invariant()
    def who_left_is_told_nothing(self) -> None:
        assert not self.left & set(self.rig.ended)

    @invariant()
    def streams_have_no_gap_and_no_repeat(self) -> None:
        for pieces in self.rig.streamed.values():
            expected = 0
            for piece in pieces:
                assert piece.offset == expected
                expected += len(piece.ids)

    def teardown(self) -> None:
        for _ in range(40):
            self.rig.wait(2_000)
        waiting = set(self.asked) | self.streams
        assert waiting - self.left <= set(self.rig.ended), "somebody waits for ever"
        assert not self.rig.core.computing
        assert not self.rig.core.waiting


TestInteractive = Interactive.TestCase
TestInteractive.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
