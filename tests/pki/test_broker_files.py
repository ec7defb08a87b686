"""What lies in broker/ is what `pki init` writes, but for its folders."""

from pathlib import Path

import pytest

from edge_runtime.pki.broker_files import (
    ACLS,
    CONFIGURATION,
    STANDARD,
    BrokerLayout,
    configuration,
    write_broker_files,
)

BROKER = Path(__file__).parents[2] / "broker"


def test_the_shipped_configuration_is_the_generated_one() -> None:
    assert (BROKER / "mosquitto-tls.conf").read_text() == configuration(STANDARD)


@pytest.mark.parametrize("name", sorted(ACLS))
def test_the_shipped_acl_is_the_generated_one(name: str) -> None:
    assert (BROKER / name).read_text() == ACLS[name]


def test_files_are_written_whole_and_tenants_are_kept(tmp_path: Path) -> None:
    layout = BrokerLayout(folder=str(tmp_path), data=str(tmp_path / "data"), user="someone")
    write_broker_files(tmp_path, layout)
    tenants = tmp_path / "tenants.passwd"
    assert tenants.stat().st_mode & 0o777 == 0o600
    tenants.write_text("tenant-demo:secret\n")
    write_broker_files(tmp_path, layout)
    assert tenants.read_text() == "tenant-demo:secret\n"
    assert "\nuser someone\n" in (tmp_path / CONFIGURATION).read_text()
    assert (tmp_path / "data").is_dir()
