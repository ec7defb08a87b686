"""An independent subscriber on the broker itself: every published result, every offer.

paho and the contract's decoder, on a thread of paho's own; nothing of the bus adapters that are
on trial. What it misses while the broker is down it misses: the raw topics promise no more.
"""

import threading
from collections import deque
from typing import Any

import msgspec
from history import Entry, Fence, Issued, Published
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from requester import TENANT
from workload import digest_of, digest_of_raw

from edge_runtime.contract.messages import JobResults, ResultEntry, Signed, WorkOffer
from edge_runtime.contract.topics import Topics

TOPICS = Topics()

_signed = msgspec.msgpack.Decoder(Signed)
_work = msgspec.msgpack.Decoder(WorkOffer)
_results = msgspec.msgpack.Decoder(JobResults)


class Observer:
    """Collects until closed. `unreadable` messages of ours are a fault of the run."""

    def __init__(self, port: int) -> None:
        self.published: set[Published] = set()
        self.heard = 0
        self.offers: set[Issued] = set()
        self.unreadable: list[str] = []
        self._recent: deque[Issued] = deque(maxlen=100)
        self._lock = threading.Lock()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id="observer", protocol=mqtt.MQTTv5
        )
        self._client.on_connect = self._connected
        self._client.on_message = self._message
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def recent_offers(self) -> list[Issued]:
        with self._lock:
            return list(self._recent)

    def _connected(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(TOPICS.tenant_all(TENANT), 1), ("er/1/+/v/+/dn/work", 1)])

    def _message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            try:
                if message.topic.endswith("/dn/work"):
                    self._offer(message.payload)
                elif message.topic.endswith("/results"):
                    self._take_results(message.payload)
            except msgspec.DecodeError as error:
                self.unreadable.append(f"{message.topic}: {error}")

    def _offer(self, payload: bytes | bytearray) -> None:
        offer = _work.decode(_signed.decode(payload).body)
        for unit in offer.units:
            items = frozenset(item.index for item in unit.items)
            fence = Fence(unit.fence.epoch, unit.fence.counter)
            issued = Issued(unit.job, unit.unit, fence, offer.vehicle, items, unit.model)
            self.offers.add(issued)
            self._recent.append(issued)

    def _take_results(self, payload: bytes | bytearray) -> None:
        message = _results.decode(payload)
        for result in message.results:
            self.heard += 1
            entry = Entry(result.cursor, result.item, _digest(result))
            self.published.add(Published(message.job, entry))


def _digest(result: ResultEntry) -> str:
    if result.error is not None:
        return digest_of(None, result.error)
    return digest_of_raw(bytes(result.output))
