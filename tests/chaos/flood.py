"""One car that lies: what a stolen identity may write under its own topics, as fast as it can."""

import random
import time
from typing import Any

import msgspec
import numpy as np
from history import Issued
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.contract.messages import (
    Acks,
    Cancelled,
    Chunk,
    Ending,
    Fence,
    ItemDone,
    ItemFailed,
    Offline,
    Refused,
    Results,
    Taken,
    VehicleState,
)
from edge_runtime.contract.reasons import (
    Availability,
    ItemError,
    Outcome,
    RefusalReason,
)
from edge_runtime.contract.signals import Signals
from edge_runtime.contract.tensors import from_numpy
from edge_runtime.contract.topics import Topics, Up

MESSAGES = 400
OVERSIZE_BYTES = 300 * 1024
SEND_S = 10.0
OLD_BOOT = 1
FAR_BOOT = 2**40

_encode = msgspec.msgpack.encode
FORGED = msgspec.Raw(_encode([from_numpy("y", np.array([666.0], np.float32))]))


def flood(port: int, car: str, cars: list[str], offers: list[Issued], seed: int) -> int:
    """Send garbage as `car`; `offers` are other cars', forged answers to them. Messages sent."""
    dice = random.Random(seed)
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2, client_id=f"liar-{seed}", protocol=mqtt.MQTTv5
    )
    try:
        client.connect("127.0.0.1", port)
    except OSError:
        return 0
    client.loop_start()
    topics = Topics()
    sent = []
    for _ in range(MESSAGES):
        kind = dice.choice(list(Up))
        other = dice.choice([name for name in cars if name != car])
        offer = dice.choice(offers) if offers else None
        if offer is not None and kind in {Up.ACK, Up.RESULT} and dice.random() < 0.4:
            # Under its own name, about what another was given.
            payload = _encode(_message(dice, kind, car, OLD_BOOT, offer))
        else:
            payload = _payload(dice, kind, other, offer)
        sent.append(client.publish(topics.up(car, kind), payload, qos=1))
    deadline_s = time.monotonic() + SEND_S
    for info in sent:
        if time.monotonic() > deadline_s or not client.is_connected():
            break
        info.wait_for_publish(1.0)
    # Over the broker's limit: it ends this connection, which is all that may happen.
    client.publish(topics.up(car, Up.RESULT), bytes(OVERSIZE_BYTES), qos=0)
    client.disconnect()
    client.loop_stop()
    return len(sent)


def _payload(dice: random.Random, kind: Up, other: str, offer: Issued | None) -> bytes:
    share = dice.random()
    if share < 0.3:
        return dice.randbytes(dice.randrange(2_000))
    body = _encode(_message(dice, kind, other, FAR_BOOT, offer))
    if share < 0.5:
        at = dice.randrange(len(body))
        return body[:at] + dice.randbytes(1) + body[at + 1 :]
    if share < 0.6:
        return body[: dice.randrange(len(body))]
    return body


def _message(dice: random.Random, kind: Up, name: str, boot: int, offer: Issued | None) -> Any:
    unit, fence, job, items = 1, Fence(epoch=1, counter=1), "nobody", [0]
    model = "0" * 64
    if offer is not None:
        unit, job, items = offer.unit, offer.job, sorted(offer.items)
        model = offer.model or model
        fence = Fence(epoch=offer.fence.epoch, counter=offer.fence.counter)
    match kind:
        case Up.STATUS:
            return Offline(vehicle=name, boot=boot, connection=1)
        case Up.STATE:
            return VehicleState(
                vehicle=name,
                boot=boot,
                seq=1,
                at_ms=0,
                availability=Availability.READY,
                hold=None,
                free_units=60_000,
                energy_budget_wh=None,
                signals=Signals(),
            )
        case Up.ACK:
            refused = Refused(
                unit=unit, fence=fence, reason=RefusalReason.MODEL_INVALID, retry_after_ms=10_000
            )
            verdicts = (
                dice.choice(
                    (Taken(unit=unit, fence=fence), Cancelled(unit=unit, fence=fence), refused)
                ),
            )
            return Acks(vehicle=name, boot=boot, verdicts=verdicts)
        case Up.RESULT:
            results = [ItemDone(index=index, output=FORGED) for index in items]
            failed = [ItemFailed(index=index, code=ItemError.WRONG_SHAPE) for index in items]
            chunk = Chunk(
                job=job,
                unit=unit,
                fence=fence,
                model=model,
                seq=dice.randrange(3),
                items=tuple(dice.choice((results, failed))),
                ending=Ending(outcome=Outcome.COMPLETED),
            )
            return Results(vehicle=name, boot=boot, chunks=(chunk,))
