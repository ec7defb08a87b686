"""Who is let in, as whom, and who is not."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from guarded_house import ITEM, Guarded
from scripted_car import ScriptedCar

from edge_runtime.bus import MemoryBroker
from edge_runtime.client import DispatcherRefused, EdgeClient, JobRefused
from edge_runtime.contract.errors import ConfigError
from edge_runtime.contract.http import NewKey
from edge_runtime.dispatcher.accounts import Accounts
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.storage import SqliteStore


async def test_without_accounts_everybody_may_do_everything(house: Guarded) -> None:
    async with house.client(tenant="anybody") as client:
        status = await client.submit("noop", [ITEM])
        assert status.tenant == "anybody"
        assert (await client.fleet()).total == 0
        assert await client.keys() == []


async def test_the_first_key_must_be_an_operators(house: Guarded) -> None:
    with pytest.raises(DispatcherRefused) as refused:
        await house.make_key("acme")
    assert refused.value.problem.code == "operator_first"
    assert not house.door.accounts.in_force


async def test_from_the_first_key_on_nobody_gets_in_without(house: Guarded) -> None:
    operator = await house.make_key("ops", operator=True)
    acme = await house.make_key("acme", by=operator)
    for headers in ({}, {"Authorization": "Bearer er_nonsense"}, {"X_API_Key": acme + "x"}):
        status, problem, answered = await house.ask("GET", "/v1/jobs", **headers)
        assert (status, problem["code"]) == (401, "unauthorized")
        assert answered["WWW-Authenticate"] == "Bearer"
    for headers in ({"Authorization": f"Bearer {acme}"}, {"X_API_Key": acme}):
        status, jobs, _ = await house.ask("GET", "/v1/jobs", **headers)
        assert (status, jobs) == (200, [])
    counters = house.service.all_counters()
    assert counters["requests_without_key"] == 1
    assert counters["requests_with_wrong_key"] == 2
    for path in ("/livez", "/readyz", "/openapi.json"):
        assert (await house.ask("GET", path))[0] in (200, 204, 503)


async def test_a_key_speaks_for_its_tenant_and_for_no_other(house: Guarded) -> None:
    operator = await house.make_key("ops", operator=True)
    acme = await house.make_key("acme", by=operator)
    other = await house.make_key("other", by=operator)
    async with house.client(acme) as client:
        job = await client.submit("noop", [ITEM])
        assert job.tenant == "acme"
    async with house.client(other) as client:
        assert await client.jobs() == []
        with pytest.raises(DispatcherRefused) as refused:
            await client.status(job.job)
        assert refused.value.problem.status == 404
    async with house.client(other, tenant="acme") as client:
        with pytest.raises(DispatcherRefused) as refused:
            await client.jobs()
        assert refused.value.problem.status == 403
        with pytest.raises(JobRefused):
            await client.submit("noop", [ITEM])
    async with house.client(operator, tenant="acme") as client:
        assert [status.job for status in await client.jobs()] == [job.job]
    async with house.client(operator, tenant="*") as client:
        assert [status.job for status in await client.jobs()] == [job.job]


async def test_what_is_the_operators_is_not_a_tenants(house: Guarded) -> None:
    operator = await house.make_key("ops", operator=True)
    acme = await house.make_key("acme", by=operator)
    async with house.client(acme) as client:
        for call in (
            client.fleet(),
            client.quarantine("car1"),
            client.backup("b.db"),
            client.create_key("acme"),
            client.revoke_key(operator[:15]),
        ):
            with pytest.raises(DispatcherRefused) as refused:
                await call
            assert refused.value.problem.status == 403
        assert {view.tenant for view in await client.keys()} == {"acme"}
        assert await client.dead_letters() == []
    status, problem, _ = await house.ask("GET", "/v1/jobs", X_API_Key=acme, X_Tenant="*")
    assert (status, problem["code"]) == (403, "forbidden")


async def test_a_revoked_key_is_refused_at_once_and_the_last_operators_cannot_go(
    house: Guarded,
) -> None:
    operator = await house.make_key("ops", operator=True)
    acme = await house.make_key("acme", by=operator)
    async with house.client(operator) as ops, house.client(acme) as client:
        await client.jobs()
        view = await ops.revoke_key(acme[:15])
        assert view.revoked_ms is not None
        assert await ops.revoke_key(acme[:15]) == view, "revoking is idempotent"
        with pytest.raises(DispatcherRefused) as refused:
            await client.jobs()
        assert refused.value.problem.status == 401
        with pytest.raises(DispatcherRefused) as refused:
            await ops.revoke_key(operator[:15])
        assert refused.value.problem.code == "last_operator"
        with pytest.raises(DispatcherRefused) as refused:
            await ops.revoke_key("er_nobody")
        assert refused.value.problem.status == 404


async def test_of_operators_who_revoke_each_other_at_once_one_is_left(house: Guarded) -> None:
    first = await house.make_key("ops", operator=True)
    second = await house.make_key("ops", operator=True, by=first)
    accounts = house.door.accounts
    outcomes = await asyncio.gather(
        *(accounts.revoke(key[:15]) for key in (first, second)), return_exceptions=True
    )
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    assert refused.problem.code == "last_operator"
    assert [accounts.caller(key) is None for key in (first, second)].count(True) == 1


def _bytes_of_store(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("store.db*"))


async def test_keys_outlive_the_dispatcher_and_are_nowhere_in_the_store(
    open_guarded: object, tmp_path: Path, broker: MemoryBroker
) -> None:
    async with open_guarded() as house:  # type: ignore[operator]  # a fixture's callable
        operator = await house.make_key("ops", operator=True)
    everything = _bytes_of_store(tmp_path)
    assert operator[:15].encode() in everything, "the prefix is listed"
    assert operator[16:].encode() not in everything
    async with (
        open_guarded() as house,  # type: ignore[operator]  # a fixture's callable
        ScriptedCar(broker, "car1"),
        house.client(operator) as client,
    ):
        results = [result async for result in client.submit("noop", [ITEM] * 3)]
        assert len(results) == 3


async def test_every_character_of_a_key_counts(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(1)
    accounts = Accounts(store, lambda: 1)
    key = (await accounts.create(NewKey(tenant="ops", is_operator=True))).key
    assert accounts.caller(key) is not None
    for at in range(len(key)):
        other = key[:at] + ("a" if key[at] != "a" else "b") + key[at + 1 :]
        assert accounts.caller(other) is None, at
    for wrong in ("", key[:-1], key + "=", key[:15], "\udcff" * 20, "é" * 60):
        assert accounts.caller(wrong) is None
    await store.close()


async def test_two_first_keys_at_once_are_both_operators_or_refused(house: Guarded) -> None:
    """The door never stands open between the first key's wish and its commit."""
    operator = await house.make_key("ops", operator=True)
    with pytest.raises(DispatcherRefused) as refused:
        await house.make_key("thief", operator=True)
    assert refused.value.problem.status == 401
    assert await house.make_key("second", by=operator, operator=True)


@pytest.mark.parametrize("key", ["a\nb", "x" * 300, "ключ"])
def test_a_key_that_no_header_carries_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        EdgeClient(api_key=key)


@pytest.mark.parametrize("tenant", ["", "a b", "x" * 65, "*"])
async def test_a_tenant_has_a_plain_name(house: Guarded, tenant: str) -> None:
    status, problem, _ = await house.ask(
        "POST", "/v1/accounts/keys", body={"tenant": tenant, "is_operator": True}
    )
    assert status == 422
    assert problem["field"] == "tenant"


def test_the_store_of_before_has_what_is_open_counted(tmp_path: Path) -> None:
    from edge_runtime.dispatcher.storage.schema import MIGRATIONS, migrate  # noqa: PLC0415

    db = sqlite3.connect(tmp_path / "old.db", isolation_level=None)
    migrate(db, through=3)
    for no, (tenant, items, done, finished) in enumerate(
        [("a", 10, 4, None), ("a", 5, 0, None), ("a", 7, 7, 99), ("b", 1, 0, None)]
    ):
        db.execute(
            "INSERT INTO job(no, id, tenant, body_hash, spec, state, items, done, deadline_ms,"
            " retention_ms, finished_ms) VALUES (?,?,?,'','','running',?,?,1,1,?)",
            (no, f"j{no}", tenant, items, done, finished),
        )
    migrate(db, through=len(MIGRATIONS))
    usage = db.execute("SELECT tenant, jobs, items FROM usage ORDER BY tenant").fetchall()
    assert usage == [("a", 2, 11), ("b", 1, 1)]
    db.close()
