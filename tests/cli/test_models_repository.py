"""`models init-repository`, `publish` and the rest, as a person types them."""

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command_line import edge_runtime

from edge_runtime.vehicle.models.importers.synthetic import write_synthetic

SECRET = {"EDGE_RUNTIME_PASSPHRASE": "of this test"}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_synthetic("noop", tmp_path)
    return tmp_path


def models(here: Path, *arguments: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    return edge_runtime("models", *arguments, cwd=here, env=SECRET if env is None else env)


def test_from_nothing_to_published_and_back(here: Path) -> None:
    made = models(here, "init-repository")
    assert made.stdout.strip() == "model-repository/v1/metadata/1.root.json", made.stderr
    assert (here / made.stdout.strip()).is_file()
    assert models(here, "add-publisher", "acme").returncode == 0
    digest = models(here, "publish", "noop", "--publisher=acme").stdout.split()[0]
    (row,) = models(here, "published", "--json").stdout.splitlines()
    assert json.loads(row)["digest"] == digest
    assert digest in models(here, "published").stdout
    for role in ("root", "targets", "timestamp", "acme"):
        assert models(here, "rotate-key", role).returncode == 0
    assert models(here, "renew", "root").returncode == 0
    assert models(here, "sign").stdout.strip() == "nothing to sign"
    assert models(here, "revoke", "acme", f"--package={digest}").returncode == 0
    assert models(here, "published").stdout == ""
    assert models(here, "revoke", "acme").returncode == 0


def test_what_waits_for_the_online_keys_is_said(here: Path) -> None:
    models(here, "init-repository")
    models(here, "add-publisher", "acme")
    online = here / "online"
    online.mkdir()
    for role in ("snapshot", "timestamp"):
        (key,) = (here / "model-keys").glob(f"{role}.*.pem")
        key.rename(online / key.name)
    published = models(here, "publish", "noop", "--publisher=acme")
    assert published.returncode == 0
    assert "models sign" in published.stderr
    assert models(here, "published").stdout == ""
    assert models(here, "sign", "--keys=online", env={}).stdout.strip() == "signed"
    assert "noop" in models(here, "published").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("publish", "noop", "--publisher=nobody"), "no publisher 'nobody'"),
        (("publish", "nothing", "--publisher=acme"), "no such folder"),
        (("publish", "noop", "--publisher=../x"), "must be 1 to 32"),
        (("add-publisher", "acme"), "already"),
        (("add-publisher", "root"), "must be 1 to 32"),
        (("init-repository",), "already"),
        (("init-repository", "--repository=r", "--keys=r/keys"), "is served"),
        (("init-repository", "--repository=r", "--root-threshold=2"), "threshold of 2 of 1"),
        (("revoke", "acme", "--package=abc"), "published no abc"),
        (("rotate-key", "nobody"), "no publisher 'nobody'"),
        (("published", "--repository=nowhere"), "no such folder"),
        (("add-publisher", "b", "--public-key=noop/model.toml"), "no public key"),
    ],
)
def test_mistakes_are_one_line(
    repository: Path, arguments: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    here = tmp_path / "copy"
    shutil.copytree(repository, here)
    done = models(here, *arguments)
    assert done.returncode in {1, 2}, done.stdout
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("repository")
    write_synthetic("noop", here)
    assert models(here, "init-repository").returncode == 0
    assert models(here, "add-publisher", "acme").returncode == 0
    return here


def test_a_passphrase_comes_from_a_file_or_the_environment_and_must_fit(
    repository: Path, tmp_path: Path
) -> None:
    here = tmp_path / "copy"
    shutil.copytree(repository, here)
    (here / "good").write_text("of this test\n")
    publish = ("publish", "noop", "--publisher=acme")
    none = models(here, *publish, env={})
    assert (none.returncode, "no passphrase" in none.stderr) == (2, True)
    wrong = models(here, *publish, env={"EDGE_RUNTIME_PASSPHRASE": "wrong"})
    assert (wrong.returncode, "wrong passphrase" in wrong.stderr) == (1, True)
    assert models(here, *publish, "--passphrase-file=good", env={}).returncode == 0
