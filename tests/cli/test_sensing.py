"""Choosing sources of signals: what is wrong is one line that says what to change."""

import sys
from pathlib import Path

import pytest
from command_line import edge_runtime

from edge_runtime.cli.sensing import SensorOptions, make_sensors
from edge_runtime.contract.errors import ConfigError
from edge_runtime.vehicle.sensors.combined import CombinedSensors

DAY = "utc_s,is_parked\n1800000000,true\n1800000060,false\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--sensors", "mood"), 'Invalid value "mood" for --sensors'),
        (("--signal.charge_percent", "mood"), 'Invalid value "mood" for --signal.charge_percent'),
        (("--signal.mood", "linux"), "'mood' is no signal; known are charge_percent"),
        (("--sensors", "trace"), "the source trace needs --trace FILE"),
        (("--sensors", "trace", "--trace", "none.csv"), "--trace none.csv: No such file"),
        (("--trace", "day.csv"), "--trace is for the source trace, which nothing chooses"),
        (("--scenario", "x"), "--scenario is for the source simulated, which nothing chooses"),
        (("--kuksa-frozen-s", "5"), "--kuksa-frozen-s is for the source kuksa"),
        (("--sensors", "kuksa", "--kuksa-address", "x"), "HOST:PORT or unix:PATH, not 'x'"),
        (("--sensors", "kuksa", "--kuksa-token", "none"), "--kuksa-token none: No such file"),
        (("--sensors", "trace", "--trace", "day.csv", "--trace-speed", "0"), "speed is over 0"),
        (
            ("--signal.charge_percent", "trace", "--trace", "day.csv"),
            "day.csv: has no column charge_percent, which is to come from it",
        ),
    ],
)
def test_a_wrong_choice_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    (tmp_path / "day.csv").write_text(DAY)
    done = edge_runtime("vehicle", "--id", "car-1", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


def test_a_settings_file_chooses_by_signal(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        '[vehicle]\nsensors = "simulated"\n[vehicle.signal]\ncharge_percent = "trace"\n'
    )
    done = edge_runtime("vehicle", "--id", "car-1", "--config", "settings.toml", cwd=tmp_path)
    assert done.returncode == 2
    assert "the source trace needs --trace FILE" in done.stderr


def test_every_source_is_made_for_the_signals_that_it_is_chosen_for(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text(DAY)
    options = SensorOptions(
        sensors="linux",
        signal={
            "charge_percent": "kuksa",
            "is_parked": "trace",
            "is_occupied": "simulated",
        },
        trace=tmp_path / "day.csv",
    )
    sensors = make_sensors(options)
    assert isinstance(sensors, CombinedSensors)
    assert {source: len(names) for source, (_, names) in sensors.parts.items()} == {
        "linux": 16,
        "kuksa": 1,
        "trace": 1,
        "simulated": 1,
    }


def test_a_source_without_its_extra_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpclib.client", None)
    monkeypatch.delitem(sys.modules, "edge_runtime.vehicle.sensors.kuksa", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'edge-runtime\[vss\]'"):
        make_sensors(SensorOptions(sensors="kuksa"))
