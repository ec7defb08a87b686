"""An answer names the chunks it covers; the car forgets those and no others."""

from edge_runtime.contract.messages import AttemptId, Chunk, Fence
from edge_runtime.vehicle.core.outbox import Outbox


def _outbox_with(seqs: range) -> tuple[Outbox, AttemptId]:
    outbox = Outbox()
    key = AttemptId(7, Fence(1, 1))
    for seq in seqs:
        chunk = Chunk(job="j", unit=7, fence=key.fence, model="0" * 64, seq=seq, items=())
        outbox.add(chunk, b"", None)
        outbox.committed(key, seq)
    return outbox, key


def test_an_answer_out_of_order_forgets_nothing_before_it() -> None:
    outbox, key = _outbox_with(range(3))
    outbox.answer(key, 1, 2)
    assert outbox.count == 1
    outbox.answer(key, 0, 0)
    assert outbox.count == 0
