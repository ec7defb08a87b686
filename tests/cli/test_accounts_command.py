"""`edge-runtime accounts` as a person uses it, with and without a running dispatcher."""

import json
from pathlib import Path

from command_line import edge_runtime

from edge_runtime.cli.exit_codes import ExitCode


def test_keys_of_a_dispatcher_that_is_stopped(tmp_path: Path) -> None:
    store = str(tmp_path / "dispatcher.db")
    refused = edge_runtime("accounts", "create", "acme", "--store", store)
    assert refused.returncode == ExitCode.REMOTE
    assert "first key must be an operator's" in refused.stderr
    made = edge_runtime("accounts", "create", "ops", "--operator", "--store", store)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert key.startswith("er_")
    second = edge_runtime("accounts", "create", "acme", "--note", "night batch", "--store", store)
    acme = second.stdout.strip()
    listed = edge_runtime("accounts", "list", "--json", "--store", store)
    views = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [view["tenant"] for view in views] == ["ops", "acme"]
    assert views[1]["note"] == "night batch"
    assert acme not in listed.stdout
    assert key[15:] not in listed.stdout
    revoked = edge_runtime("accounts", "revoke", acme[:15], "--store", store)
    assert revoked.stdout.startswith(f"{acme[:15]} of tenant acme revoked ")
    last = edge_runtime("accounts", "revoke", key[:15], "--store", store)
    assert last.returncode == ExitCode.REMOTE
    assert "last operator" in last.stderr


def test_what_is_wrong_is_said() -> None:
    nowhere = edge_runtime("accounts", "list", "--store", "/no/such/folder/x.db")
    assert nowhere.returncode == ExitCode.USAGE
    assert "its folder does not exist" in nowhere.stderr
    nobody = edge_runtime("accounts", "quota", "--jobs", "3")
    assert nobody.returncode == ExitCode.USAGE
    assert "say whose quota" in nobody.stderr
    absurd = edge_runtime("accounts", "quota", "acme", "--weight", "0")
    assert absurd.returncode == ExitCode.USAGE
    assert "weight" in absurd.stderr
