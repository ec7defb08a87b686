"""Whether the link to the world is paid by volume: what the computer's own files say.

Asked without any daemon: the default route of the kernel names the interface; NetworkManager's
state under `run/NetworkManager` names its connection, whose profile may say `metered`; a mobile
modem is metered unless its profile says otherwise.

Invariants
- Nobody's word is no reading: None, never "unmetered".
- The lowest metric wins, as in the kernel; of IPv4 and IPv6 either being metered is enough.

Deliberately absent: D-Bus, which would be a library and a daemon for one bit; NetworkManager's
guess from DHCP options, which it keeps to itself. A profile that only root may read is no word.
"""

import configparser
from pathlib import Path
from typing import Final

from edge_runtime.contract import limits
from edge_runtime.vehicle.sensors.files import entries_of, text_of

_PROFILES: Final = (
    "etc/NetworkManager/system-connections",
    "run/NetworkManager/system-connections",
    "usr/lib/NetworkManager/system-connections",
)
# NetworkManager's NMMetered: 1 is yes, 2 is no, 0 is for it to guess.
_WORDS: Final = {"1": True, "yes": True, "true": True, "2": False, "no": False, "false": False}
_METERED_KINDS: Final = frozenset({"wwan"})
_ROUTE_UP: Final = 1
_DEFAULT_IPV6: Final = "0" * 32


class Metering:
    """Reads below `root`. Profiles are read again when their folders or the connection change."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._profile: tuple[object, bool | None] = (None, None)

    def read(self) -> bool | None:
        """Whether the default route is metered; None where nobody says, or there is none."""
        words = [self._of(name) for name in sorted(self._interfaces())]
        if any(word is True for word in words):
            return True
        return False if words and all(word is False for word in words) else None

    def _interfaces(self) -> set[str]:
        """The interface of the IPv4 and of the IPv6 default route."""
        found = {_best(_ipv4_defaults(self._table("route"))), _best(self._ipv6_defaults())}
        return {name for name in found if name is not None}

    def _table(self, name: str) -> list[list[str]]:
        text = text_of(self._root / "proc/net" / name, limits.SENSOR_TABLE_MAX_BYTES) or ""
        return [line.split() for line in text.splitlines()]

    def _ipv6_defaults(self) -> list[tuple[int, str]]:
        return [
            (metric, row[9])
            for row in self._table("ipv6_route")
            if len(row) == 10  # noqa: PLR2004 - the columns of the kernel's table
            and (row[0], row[1]) == (_DEFAULT_IPV6, "00")
            and row[9] != "lo"
            and (metric := _hex(row[5])) is not None
        ]

    def _of(self, interface: str) -> bool | None:
        if "/" in interface or interface.startswith("."):
            return None
        folder = self._root / "sys/class/net" / interface
        word = self._network_manager(text_of(folder / "ifindex"))
        if word is not None:
            return word
        kinds = _settings(text_of(folder / "uevent"))
        return True if kinds.get("DEVTYPE") in _METERED_KINDS else None

    def _network_manager(self, index: str | None) -> bool | None:
        """What the profile of the interface's connection says."""
        if index is None or not index.isascii() or not index.isdecimal():
            return None
        device = _settings(text_of(self._root / "run/NetworkManager/devices" / index))
        uuid = device.get("connection-uuid")
        if uuid is None:
            return None
        key = (uuid, *(_changed_ns(self._root / place) for place in _PROFILES))
        if key != self._profile[0]:
            self._profile = (key, self._metered_in_profile(uuid))
        return self._profile[1]

    def _metered_in_profile(self, uuid: str) -> bool | None:
        for place in _PROFILES:
            for file in entries_of(self._root / place, "*.nmconnection"):
                profile = configparser.RawConfigParser(strict=False, interpolation=None)
                try:
                    profile.read_string(text_of(file) or "")
                except configparser.Error:
                    continue
                if profile.get("connection", "uuid", fallback=None) == uuid:
                    word = profile.get("connection", "metered", fallback="0")
                    return _WORDS.get(word.strip().lower())
        return None


def _ipv4_defaults(table: list[list[str]]) -> list[tuple[int, str]]:
    """Metric and interface of routes to everywhere: destination and mask are zero, and it is up."""
    return [
        (int(row[6]), row[0])
        for row in table
        if len(row) > 7  # noqa: PLR2004 - the columns of the kernel's table
        and row[1] == row[7] == "00000000"
        and row[6].isascii()
        and row[6].isdecimal()
        and (_hex(row[3]) or 0) & _ROUTE_UP
    ]


def _best(routes: list[tuple[int, str]]) -> str | None:
    return min(routes)[1] if routes else None


def _hex(text: str) -> int | None:
    try:
        return int(text, 16)
    except ValueError:
        return None


def _settings(text: str | None) -> dict[str, str]:
    """`key=value` lines; section headers and anything else are skipped."""
    pairs = (line.partition("=") for line in (text or "").splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _changed_ns(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
