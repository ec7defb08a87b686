"""A Linux computer's files: the metered link, battery health, and everything that can be wrong."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_rig import listening

from edge_runtime.contract import limits
from edge_runtime.vehicle.sensors.files import entries_of, number_of, text_of
from edge_runtime.vehicle.sensors.linux import LinuxSensors
from edge_runtime.vehicle.sensors.metering import Metering

ROUTES = (
    "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    "wwan0\t00000000\t0100000A\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
    "wlan0\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
)
UUID = "5fb06bd0-0bb0-7ffb-45f1-d6edd65f3e03"
PROFILE = f"[connection]\nid=home\nuuid={UUID}\ntype=wifi\nmetered=%s\n\n[wifi]\nssid=a;b=c\n"
NETWORK = {
    "proc/net/route": ROUTES,
    "sys/class/net/wlan0/ifindex": "3",
    "sys/class/net/wlan0/uevent": "DEVTYPE=wlan\nINTERFACE=wlan0",
    "sys/class/net/wwan0/ifindex": "4",
    "sys/class/net/wwan0/uevent": "DEVTYPE=wwan\nINTERFACE=wwan0",
    "run/NetworkManager/devices/3": f"[device]\nmanaged=1\nconnection-uuid={UUID}\nnm-owned=0",
    "etc/NetworkManager/system-connections/home.nmconnection": PROFILE % "2",
    "etc/NetworkManager/system-connections/other.nmconnection": "[connection]\nuuid=x\nmetered=1",
}
ONLY_MOBILE = {"proc/net/route": "\n".join(ROUTES.split("\n")[:3])}
BATTERY = "sys/class/power_supply/BAT0"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


# --- the metered link ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "metered"),
    [("1", True), ("yes", True), ("2", False), ("No", False), ("0", None), ("perhaps", None)],
)
def test_the_profile_of_the_default_route_says_whether_it_is_metered(
    tmp_path: Path, word: str, metered: bool | None
) -> None:
    profile = {"etc/NetworkManager/system-connections/home.nmconnection": PROFILE % word}
    write(tmp_path, NETWORK | profile)
    assert Metering(tmp_path).read() is metered
    assert LinuxSensors(tmp_path).read()["is_network_metered"] is metered


def test_a_changed_profile_or_route_is_seen(tmp_path: Path) -> None:
    write(tmp_path, NETWORK)
    metering = Metering(tmp_path)
    assert metering.read() is False
    folder = tmp_path / "etc/NetworkManager/system-connections"
    write(folder, {"new": PROFILE % "1"})
    (folder / "new").rename(folder / "home.nmconnection")
    os.utime(folder, ns=(1, 1))
    assert metering.read() is True
    write(tmp_path, ONLY_MOBILE | {"run/NetworkManager/devices/3": "[device]"})
    assert metering.read() is True  # by the modem itself
    (tmp_path / "proc/net/route").unlink()
    assert metering.read() is None


def test_a_modem_is_metered_unless_its_profile_denies_it(tmp_path: Path) -> None:
    write(tmp_path, NETWORK | ONLY_MOBILE)
    assert Metering(tmp_path).read() is True
    write(tmp_path, {"run/NetworkManager/devices/4": f"[device]\nconnection-uuid={UUID}"})
    assert Metering(tmp_path).read() is False


def test_without_a_word_of_anybody_there_is_no_reading(tmp_path: Path) -> None:
    assert Metering(tmp_path).read() is None
    write(tmp_path, {"proc/net/route": ROUTES})
    assert Metering(tmp_path).read() is None


@pytest.mark.parametrize(("word", "metered"), [("1", True), ("2", None)])
def test_of_two_families_one_that_is_metered_is_enough(
    tmp_path: Path, word: str, metered: bool | None
) -> None:
    zero = "0" * 32
    route = f"{zero} 00 {zero} 00 fe80{zero[4:]} 00000400 00000001 00000000 00450003 wlan0"
    loop = f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo"
    profile = {"etc/NetworkManager/system-connections/home.nmconnection": PROFILE % word}
    write(tmp_path, NETWORK | profile | {"proc/net/ipv6_route": f"{loop}\n{route}"})
    # IPv4 leaves by an interface of which nobody says anything.
    write(tmp_path, {"proc/net/route": "\n".join(ROUTES.split("\n")[:1])})
    write(tmp_path, {"proc/net/route": ROUTES.replace("wlan0", "eth0").replace("wwan0", "eth1")})
    assert Metering(tmp_path).read() is metered


@pytest.mark.parametrize("name", NETWORK)
@pytest.mark.parametrize("broken", ["", "\x00\xff", "[", "=", "[connection", "\n" * 9, "²\t" * 20])
def test_broken_files_of_the_network_are_no_reading_and_no_crash(
    tmp_path: Path, name: str, broken: str
) -> None:
    write(tmp_path, NETWORK | {name: broken})
    assert Metering(tmp_path).read() in {None, True, False}


@given(st.lists(st.binary(max_size=40), max_size=11))
@settings(max_examples=100, deadline=None)
def test_no_route_table_breaks_the_reader(cells: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tables = Path(folder) / "proc/net"
        tables.mkdir(parents=True)
        for name in ("route", "ipv6_route"):
            (tables / name).write_bytes(b"\t".join(cells))
        assert Metering(Path(folder)).read() is None


# --- batteries and thermometers -------------------------------------------------------------


def test_energy_and_health_of_a_pack_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            f"{BATTERY}/type": "Battery",
            f"{BATTERY}/energy_now": "41250000000",
            f"{BATTERY}/energy_full": "55000000000",
            f"{BATTERY}/energy_full_design": "58000000000",
        },
    )
    values = LinuxSensors(tmp_path).read()
    assert values["battery_energy_kwh"] == 41.25
    assert values["battery_health_percent"] == pytest.approx(94.83, abs=0.01)


@pytest.mark.parametrize(("full", "design"), [("1", "0"), ("0", "1"), ("x", "1"), ("61", "58")])
def test_a_health_that_cannot_be_is_not_told(tmp_path: Path, full: str, design: str) -> None:
    write(
        tmp_path,
        {
            f"{BATTERY}/type": "Battery",
            f"{BATTERY}/energy_full": full,
            f"{BATTERY}/energy_full_design": design,
        },
    )
    assert LinuxSensors(tmp_path).read()["battery_health_percent"] in {None, 100.0}


def test_a_thermometer_that_goes_falls_silent_and_does_not_become_none(tmp_path: Path) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write(tmp_path, {f"{zone}/type": "cpu-thermal", f"{zone}/temp": "43000"})
    sensors = LinuxSensors(tmp_path)
    assert sensors.read()["compute_temperature_c"] == 43
    (tmp_path / zone / "temp").unlink()
    assert "compute_temperature_c" not in sensors.read()
    write(tmp_path, {f"{zone}/temp": "44000"})
    assert sensors.read()["compute_temperature_c"] == 44


async def test_a_supply_that_goes_falls_silent_between_full_readings_too(tmp_path: Path) -> None:
    supply = "sys/class/power_supply/AC"
    write(tmp_path, {f"{supply}/type": "Mains", f"{supply}/online": "1"})
    async with listening(LinuxSensors(tmp_path)) as listener:
        await listener.hears_value("is_plugged", value=True)
        (tmp_path / supply / "online").unlink()
        heard = len(listener.said)
        await listener.hears(lambda event: "is_plugged" not in event.values, after=heard)
    assert not any(event.values.get("is_plugged", 0) is None for event in listener.said)


@pytest.mark.parametrize("digits", ["²", "9" * 5000, "1_000", "१२", "0x10", "--1"])
def test_odd_digits_are_no_numbers_and_no_crash(tmp_path: Path, digits: str) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    write(
        tmp_path,
        {
            f"{zone}/type": "cpu",
            f"{zone}/temp": digits,
            "proc/stat": f"cpu  {' '.join([digits] * 10)}",
        },
    )
    value: Any = LinuxSensors(tmp_path).read()["compute_temperature_c"]
    assert value is None or not 0 < value < 150


def test_a_folder_where_a_file_should_be_is_no_reading(tmp_path: Path) -> None:
    (tmp_path / "online").mkdir()
    assert text_of(tmp_path / "online") is None
    assert number_of(tmp_path / "online") is None
    assert entries_of(tmp_path / "nowhere") == []


def test_a_huge_file_is_read_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"7" * 10_000_000)
    text = text_of(tmp_path / "huge")
    assert text is not None
    assert len(text) == limits.SENSOR_LINE_MAX_BYTES
