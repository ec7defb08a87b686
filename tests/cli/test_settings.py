"""Flags over environment over TOML over defaults; what is wrong is one line and exit code 2."""

import json
from pathlib import Path

import pytest
from command_line import edge_runtime


def list_models(folder: Path, *more: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    done = edge_runtime("models", "list", *more, env=env, cwd=folder)
    return done.returncode, done.stderr


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Three folders that tell, by their broken package, which of them was read."""
    for name in ("flag", "environment", "file"):
        (tmp_path / name / f"package-{name}").mkdir(parents=True)
    (tmp_path / "settings.toml").write_text('[models.list]\nmodels = "file"\n')
    return tmp_path


def test_a_flag_wins_over_the_environment_over_the_file(folders: Path) -> None:
    env = {"EDGE_RUNTIME_MODELS_LIST_MODELS": "environment"}
    config = ("--config", "settings.toml")
    assert "package-flag" in list_models(folders, "--models", "flag", *config, env=env)[1]
    assert "package-environment" in list_models(folders, *config, env=env)[1]
    assert "package-file" in list_models(folders, *config)[1]


def test_the_file_itself_can_be_named_by_the_environment(folders: Path) -> None:
    env = {"EDGE_RUNTIME_CONFIG": "settings.toml"}
    assert "package-file" in list_models(folders, env=env)[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("models", "list", "--model", "x"), "--model"),
        (("models", "lst"), "lst"),
        (("modells",), "modells"),
        (("broker", "--port", "many"), '"many"'),
        (("broker", "--port", "70000"), "--port must be 0 to 65535"),
        (("broker", "--port", "0"), "both 0"),
        (("tap", "--broker", "localhost:1883"), "--broker must be mqtt://host:port"),
        (("tap", "--broker", "mqtt://h:port"), "--broker must be mqtt://host:port"),
        (("models", "list", "--models", "nowhere"), "nowhere: no such folder"),
        (("models", "import", "gpt"), "no model 'gpt'"),
        (("models", "import"), "--all"),
        (("models", "list", "--config", "none.toml"), "none.toml: No such file"),
        (("models", "list", "--log-level", "loud"), '"loud"'),
    ],
)
def test_a_wrong_command_line_is_one_line_that_says_what_to_change(
    arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    done = edge_runtime(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[modells]\nx = 1\n", "[modells] names no command"),
        ("[models.lst]\nx = 1\n", "[models.lst] names no command"),
        ("models = 3\n", "models must be a table"),
        ('[models.list]\nmodel = "x"\n', "model"),
        ("[broker]\nport = 'many'\n", '"many"'),
        ("[broker\n", "settings.toml"),
        ("\ufffd\x00", "settings.toml"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_key(
    toml: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text(toml)
    command = ("broker",) if "[broker" in toml else ("models", "list")
    done = edge_runtime(*command, "--config", "settings.toml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EDGE_RUNTIME_BROKER_PORTT", "1", "names no option of 'edge-runtime broker'"),
        ("EDGE_RUNTIME_BROKER_PORT", "many", "EDGE_RUNTIME_BROKER_PORT"),
        ("EDGE_RUNTIME_LOG_FORMAT", "xml", "EDGE_RUNTIME_LOG_FORMAT"),
    ],
)
def test_a_wrong_variable_is_one_line_that_names_it(variable: str, value: str, says: str) -> None:
    done = edge_runtime("broker", env={variable: value})
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


def test_variables_of_other_commands_are_none_of_its_business() -> None:
    done = edge_runtime("version", env={"EDGE_RUNTIME_BROKER_PORTT": "1"})
    assert done.returncode == 0


def test_versions_are_json_where_asked() -> None:
    done = edge_runtime("version", "--json")
    assert json.loads(done.stdout)["edge-runtime"]
