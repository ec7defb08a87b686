"""What the engine wants ended; told by a thread of its own while the main one computes.

A stop takes effect on the computation that it was looked up for and on no later one: each item,
and each step that items share, has its own. The order of writes makes sure that none is missed:
the thread notes the stop and then looks at the computation; the main one shows the computation
and then looks for a stop.
"""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, assert_never

import msgspec

from edge_runtime.contract import limits
from edge_runtime.vehicle.inference import protocol


class Computation(Protocol):
    """What can be stopped from another thread."""

    def stop(self) -> None:
        """End it at the next graph node."""
        ...


@dataclass(frozen=True, slots=True)
class _At:
    """What is being computed: for which runs, the item that is named, and how to stop it."""

    tickets: frozenset[int]
    item: tuple[int, int]
    computation: Computation


class Stops:
    """See the module; `begin` makes the computation that a stop stops."""

    def __init__(self, channel: socket.socket, begin: Callable[[], Computation]) -> None:
        self._begin = begin
        self._channel = channel
        self._lock = threading.Lock()
        self._runs: set[int] = set()
        self._items: set[tuple[int, int]] = set()
        self._at: _At | None = None
        threading.Thread(target=self._listen, name="stops", daemon=True).start()

    def begin(self, ticket: int, index: int) -> None:
        """Show which item comes; a stop that is already here takes effect at its first run."""
        self.begin_step(frozenset({ticket}), (ticket, index))

    def begin_step(self, tickets: frozenset[int], item: tuple[int, int]) -> None:
        """Show whose step comes: it stops when all these runs are to end, or this item is."""
        at = self._at = _At(tickets, item, self._begin())
        self._look(at)

    def _look(self, at: "_At") -> None:
        if at.tickets <= self._runs or at.item in self._items:
            at.computation.stop()

    def end(self) -> None:
        """No item is being computed."""
        self._at = None

    def wants_run(self, ticket: int) -> bool:
        """Whether this run is to end."""
        return ticket in self._runs

    def wants_item(self, ticket: int, index: int) -> bool:
        """Whether this item is to end."""
        return (ticket, index) in self._items

    def forget(self, ticket: int) -> None:
        """This run is over."""
        if self._runs or self._items:
            with self._lock:
                self._runs.discard(ticket)
                self._items = {item for item in self._items if item[0] != ticket}

    def forget_through(self, ticket: int) -> None:
        """Runs up to this one are over; some stops came after their run had ended."""
        if self._runs or self._items:
            with self._lock:
                self._runs = {run for run in self._runs if run > ticket}
                self._items = {item for item in self._items if item[0] > ticket}

    def _listen(self) -> None:
        decoder: msgspec.msgpack.Decoder[protocol.Stop] = msgspec.msgpack.Decoder(protocol.Stop)
        while data := self._channel.recv(limits.ENGINE_STOP_FRAME_MAX_BYTES):
            self._stop(decoder.decode(data))

    def _stop(self, stop: protocol.Stop) -> None:
        with self._lock:
            match stop:
                case protocol.StopRun(ticket=ticket):
                    self._runs.add(ticket)
                case protocol.StopItem(ticket=ticket, index=index):
                    self._items.add((ticket, index))
                case _:
                    assert_never(stop)
        at = self._at
        if at is not None:
            self._look(at)
