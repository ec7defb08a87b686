"""Who may read and write which topics, as Mosquitto's `acl_file` says it.

The memory broker obeys the very texts that the real broker is configured with, so what a program
may not do is refused in both.

Rules of mosquitto.conf(5): `topic` lines behind a `user` line are that user's; `pattern` lines are
everybody's, with `%u` for the user's name and `%c` for the client id; what no line allows is
denied. Reading is judged when a message is delivered, not when somebody subscribes.

Deliberately absent: `deny`, and `topic` lines for anonymous users; no file here has them.
"""

from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from paho.mqtt.matcher import MQTTMatcher

from edge_runtime.contract.errors import ConfigError

_REMEMBERED: Final = 4_096


class Access(Enum):
    """What somebody wants with a topic."""

    READ = "read"
    WRITE = "write"


_GRANTS: Final = {
    "read": (Access.READ,),
    "write": (Access.WRITE,),
    "readwrite": (Access.READ, Access.WRITE),
}


class AccessList:
    """The rules of one listener. Raises ConfigError naming the line it cannot read."""

    def __init__(self, text: str) -> None:
        self._users: dict[str, list[tuple[Access, str]]] = {}
        self._patterns: list[tuple[Access, str]] = []
        self._read(text)
        self._filters = lru_cache(_REMEMBERED)(self._compile)
        self.allows = lru_cache(_REMEMBERED)(self._allows)
        """Whether (access, user, client id, topic) is allowed."""

    def _read(self, text: str) -> None:
        user: str | None = None
        for number, line in enumerate(text.splitlines(), start=1):
            match line.split():
                case [] | ["#", *_]:
                    pass
                case [comment, *_] if comment.startswith("#"):
                    pass
                case ["user", name]:
                    user = name
                case ["topic", kind, topic_filter] if user is not None and kind in _GRANTS:
                    rules = self._users.setdefault(user, [])
                    rules.extend((access, topic_filter) for access in _GRANTS[kind])
                case ["pattern", kind, topic_filter] if kind in _GRANTS:
                    self._patterns.extend((access, topic_filter) for access in _GRANTS[kind])
                case _:
                    raise ConfigError(f"line {number} of an ACL is not understood: {line[:80]!r}")

    def _allows(self, access: Access, user: str, client_id: str, topic: str) -> bool:
        return any(self._filters(access, user, client_id).iter_match(topic))

    def _compile(self, access: Access, user: str, client_id: str) -> Any:
        tree = MQTTMatcher()  # type: ignore[no-untyped-call] # paho has no types here
        for topic_filter in self._of(access, user, client_id):
            tree[topic_filter] = True
        return tree

    def _of(self, access: Access, user: str, client_id: str) -> Iterator[str]:
        for granted, topic_filter in self._users.get(user, ()):
            if granted is access:
                yield topic_filter
        for granted, topic_filter in self._patterns:
            if granted is access:
                yield topic_filter.replace("%u", user).replace("%c", client_id)
