"""Accounts of tenants in the broker's files: whole, together, and nothing for anybody else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from brokers import find_mosquitto

from edge_runtime.contract import limits
from edge_runtime.contract.errors import ConfigError
from edge_runtime.pki.broker_files import (
    ACL_TENANTS,
    ACLS,
    TENANT_PASSWORDS,
    BrokerLayout,
    write_broker_files,
)
from edge_runtime.pki.files import PkiError
from edge_runtime.pki.tenants import accounts, acl_block, add_account, remove_account, user_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_broker_files(tmp_path, BrokerLayout(str(tmp_path), str(tmp_path / "data")))
    return tmp_path


def blocks(folder: Path) -> dict[str, str]:
    text = (folder / ACL_TENANTS).read_text()
    return {part.splitlines()[0]: "user " + part for part in text.split("\nuser ")[1:]}


def test_the_shipped_example_is_the_block_of_an_account() -> None:
    assert ACLS[ACL_TENANTS].endswith("\n\n" + acl_block("tenant-demo", "demo"))


def test_an_account_is_a_block_and_a_hash(folder: Path) -> None:
    first = add_account(folder, "acme")
    second = add_account(folder, "acme", "screen")
    assert (first.user, second.user) == ("tenant-acme", "tenant-acme.screen")
    assert first.password != second.password
    assert accounts(folder) == ["tenant-acme", "tenant-acme.screen"]
    found = blocks(folder)
    for account in (first, second):
        assert found[account.user].rstrip() == acl_block(account.user, "acme").rstrip()
    kept = (folder / TENANT_PASSWORDS).read_text()
    assert first.password not in kept
    assert (folder / TENANT_PASSWORDS).stat().st_mode & 0o777 == 0o600
    assert "# What tenants may do" in (folder / ACL_TENANTS).read_text()


def test_a_new_password_replaces_the_old_one(folder: Path) -> None:
    add_account(folder, "acme")
    before = (folder / TENANT_PASSWORDS).read_text()
    add_account(folder, "acme")
    after = (folder / TENANT_PASSWORDS).read_text()
    assert before != after
    assert after.count("tenant-acme") == 1
    assert list(blocks(folder)).count("tenant-acme") == 1


def test_removing_a_reader_leaves_the_others_and_removing_a_tenant_none(folder: Path) -> None:
    for tenant, reader in (("acme", None), ("acme", "a"), ("acme", "b"), ("acme2", None)):
        add_account(folder, tenant, reader)
    assert remove_account(folder, "acme", "a") == ["tenant-acme.a"]
    assert remove_account(folder, "acme") == ["tenant-acme", "tenant-acme.b"]
    assert accounts(folder) == ["tenant-acme2"]
    assert list(blocks(folder)) == ["tenant-demo", "tenant-acme2"]
    with pytest.raises(PkiError, match="there is no user tenant-acme"):
        remove_account(folder, "acme")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "#", "a\nuser tenant-x", "a.b", "x" * 65])
def test_a_name_that_is_no_id_is_refused(folder: Path, name: str) -> None:
    before = (folder / ACL_TENANTS).read_text()
    with pytest.raises(ConfigError, match="tenant must be"):
        add_account(folder, name)
    with pytest.raises(ConfigError, match="--reader must be"):
        user_of("acme", name or ".")
    assert (folder / ACL_TENANTS).read_text() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (ACL_TENANTS, None, "No such file"),
        (TENANT_PASSWORDS, None, "No such file"),
        (ACL_TENANTS, b"\xff\xfe", "not text"),
        (TENANT_PASSWORDS, bytes(limits.BROKER_TENANT_FILE_MAX_BYTES + 1), "larger than"),
    ],
)
def test_damaged_files_are_named(
    folder: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(PkiError, match=words) as caught:
        add_account(folder, "acme")
    assert name in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PkiError, match="nowhere"):
        add_account(tmp_path / "nowhere", "acme")


def test_there_is_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BROKER_TENANTS_MAX", 2)
    add_account(folder, "a")
    add_account(folder, "b")
    add_account(folder, "b")
    with pytest.raises(PkiError, match="2 tenants' users"):
        add_account(folder, "c")


def test_as_many_users_as_may_be_fit_the_files(folder: Path) -> None:
    long = "n" * limits.ID_MAX_CHARS
    sizes = []
    for _ in range(2):
        add_account(folder, long, f"{len(sizes)}".rjust(limits.ID_MAX_CHARS, "r"))
        sizes.append((folder / ACL_TENANTS).stat().st_size)
    assert (sizes[1] - sizes[0]) * limits.BROKER_TENANTS_MAX <= limits.BROKER_TENANT_FILE_MAX_BYTES


def test_many_at_once_are_all_there(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edge_runtime.pki.tenants import add_account\n"
        "for n in range(5): add_account(Path(sys.argv[1]), f'{sys.argv[2]}-{n}')"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(folder), name]) for name in "abcd"
    ]
    assert [process.wait(60) for process in started] == [0] * 4
    expected = sorted(f"tenant-{name}-{n}" for name in "abcd" for n in range(5))
    assert accounts(folder) == expected
    assert set(expected) < set(blocks(folder))


def test_a_disk_that_is_full_leaves_the_files_as_they_were(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_account(folder, "acme")
    before = [(folder / name).read_text() for name in (ACL_TENANTS, TENANT_PASSWORDS)]

    def full(descriptor: int) -> Any:
        raise OSError(28, "No space left on device", descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PkiError, match="No space left"):
        add_account(folder, "other")
    assert [(folder / name).read_text() for name in (ACL_TENANTS, TENANT_PASSWORDS)] == before


def test_making_the_brokers_files_again_keeps_the_accounts(folder: Path) -> None:
    add_account(folder, "acme")
    before = (folder / ACL_TENANTS).read_text()
    write_broker_files(folder, BrokerLayout(str(folder), str(folder / "data")))
    assert (folder / ACL_TENANTS).read_text() == before
    assert accounts(folder) == ["tenant-acme"]


@pytest.mark.mosquitto
def test_the_hash_is_one_that_mosquittos_own_tool_would_write(folder: Path) -> None:
    assert find_mosquitto() is not None
    theirs = folder / "theirs"
    subprocess.run(
        ["mosquitto_passwd", "-c", "-b", theirs, "tenant-acme", "secret"],
        check=True, capture_output=True,
    )  # fmt: skip
    add_account(folder, "acme")
    ours = (folder / TENANT_PASSWORDS).read_text().strip().split("$")
    assert [len(part) for part in ours[3:]] == [
        len(part) for part in theirs.read_text().strip().split("$")[3:]
    ]
    assert ours[:2] == ["tenant-acme:", "7"]
