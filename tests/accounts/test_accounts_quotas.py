"""How much a tenant may have: refused with limit and present value, counted by the store."""

import asyncio
import base64
from pathlib import Path

import pytest
from guarded_house import ITEM, Guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_car import ScriptedCar

from edge_runtime.bus import MemoryBroker
from edge_runtime.client import DispatcherRefused, JobRefused
from edge_runtime.contract.clock import Now
from edge_runtime.contract.http import Quota
from edge_runtime.dispatcher.accounts_quotas import Load, Quotas
from edge_runtime.dispatcher.core.fairness import TokenBucket
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.storage import SqliteStore


async def test_a_quota_of_items_names_the_limit_and_the_present_value(house: Guarded) -> None:
    async with house.client(tenant="acme") as client:
        usage = await client.set_quota("acme", Quota(items=10))
        assert (usage.items, usage.quota.items) == (0, 10)
        await client.submit("noop", [ITEM] * 7)
        with pytest.raises(JobRefused) as refused:
            await client.submit("noop", [ITEM] * 4)
        problem = refused.value.problem
        assert (problem.status, problem.code) == (429, "quota_exceeded")
        assert (problem.limit, problem.present) == ("items=10", 7)
        with pytest.raises(JobRefused) as refused:
            await client.submit("noop", [ITEM] * 11)
        assert refused.value.problem.status == 413, "it will never fit"
        await client.submit("noop", [ITEM] * 3)
        (usage,) = await client.usage()
        assert (usage.tenant, usage.jobs, usage.items, usage.refused) == ("acme", 2, 10, 2)
    assert house.service.all_counters()["quota_refused_items"] == 2
    data = base64.b64encode(ITEM.data or b"").decode()
    body = {"model": "noop", "items": [{"data": data}]}
    status, problem, headers = await house.ask("POST", "/v1/jobs", body=body, X_Tenant="acme")
    assert (status, headers["Retry-After"]) == (429, "2"), problem


async def test_what_ends_makes_room_again_whatever_its_end(
    house: Guarded, broker: MemoryBroker
) -> None:
    async with house.client(tenant="acme") as client:
        await client.set_quota("acme", Quota(jobs=1))
        first = await client.submit("noop", [ITEM] * 3)
        with pytest.raises(JobRefused):
            await client.submit("noop", [ITEM])
        await client.cancel(first.job)
        async with ScriptedCar(broker, "car1"):
            handle = client.submit("noop", [ITEM] * 3)
            assert len([result async for result in handle]) == 3
        await client.submit("noop", [ITEM])
        (usage,) = await client.usage()
        assert (usage.jobs, usage.items) == (1, 1)


async def test_bytes_are_those_of_what_is_open(house: Guarded) -> None:
    size = len(ITEM.data or b"")
    async with house.client(tenant="acme") as client:
        await client.set_quota("acme", Quota(bytes=2 * size))
        job = await client.submit("noop", [ITEM] * 2)
        with pytest.raises(JobRefused) as refused:
            await client.submit("noop", [ITEM])
        assert refused.value.problem.present == 2 * size
        await client.delete(job.job)
        await client.submit("noop", [ITEM])


async def test_a_repeat_is_no_new_job(house: Guarded) -> None:
    async with house.client(tenant="acme") as client:
        await client.set_quota("acme", Quota(jobs=1))
        first = await client.submit("noop", [ITEM], idempotency_key="k")
        again = await client.submit("noop", [ITEM], idempotency_key="k")
        assert first.job == again.job


async def test_two_at_once_do_not_both_fit_where_one_does(house: Guarded) -> None:
    async with house.client(tenant="acme") as client:
        await client.set_quota("acme", Quota(items=10))

        handles = [client.submit("noop", [ITEM] * 6) for _ in range(8)]
        ends = await asyncio.gather(*handles, return_exceptions=True)
        refused = [end for end in ends if isinstance(end, JobRefused)]
        assert len(refused) == 7, ends
        assert {end.problem.status for end in refused} == {429}


async def test_the_rate_of_requests_and_when_to_ask_again(house: Guarded) -> None:
    async with house.client(tenant="acme") as client:
        await client.set_quota("acme", Quota(requests_per_s=0.01, burst=3))
    answers = [await house.ask("GET", "/v1/jobs", X_Tenant="acme") for _ in range(4)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429]
    _, problem, headers = answers[-1]
    assert problem["limit"] == "requests_per_s=0.01"
    assert 90 <= int(headers["Retry-After"]) <= 100
    assert (await house.ask("GET", "/v1/jobs", X_Tenant="other"))[0] == 200
    assert (await house.ask("GET", "/readyz", X_Tenant="acme"))[0] == 200


async def test_the_default_quota_is_of_all_without_their_own(house: Guarded) -> None:
    async with house.client(tenant="acme") as client:
        await client.set_quota("default-quota", Quota(items=1))
        await client.set_quota("rich", Quota(weight=5))
        with pytest.raises(JobRefused):
            await client.submit("noop", [ITEM] * 2)
    async with house.client(tenant="rich") as client:
        await client.submit("noop", [ITEM] * 2)
    left = house.service.core.state.turns.shares.quantum_ms
    assert left("rich") == 5 * left("acme")


async def test_quotas_and_weights_outlive_the_dispatcher(open_guarded: object) -> None:
    async with (
        open_guarded() as house,  # type: ignore[operator]  # a fixture's callable
        house.client(tenant="acme") as client,
    ):
        await client.set_quota("acme", Quota(items=5, weight=3))
        await client.submit("noop", [ITEM] * 5)
    async with open_guarded() as house:  # type: ignore[operator]  # a fixture's callable
        async with house.client(tenant="acme") as client:
            with pytest.raises(JobRefused):
                await client.submit("noop", [ITEM])
        shares = house.service.core.state.turns.shares
        assert shares.quantum_ms("acme") == 3 * shares.quantum_ms("x")


@pytest.mark.parametrize(
    "wrong",
    [{"jobs": -1}, {"weight": 0}, {"requests_per_s": 0}, {"items": 2**63}, {"burst": "many"}],
)
async def test_a_quota_that_makes_no_sense_is_refused(house: Guarded, wrong: object) -> None:
    status, problem, _ = await house.ask("PUT", "/v1/accounts/acme/quota", body=wrong)
    assert status == 422
    assert problem["field"] in wrong  # type: ignore[operator]  # each is a dict of one


async def test_a_tenant_may_not_raise_its_own_quota(house: Guarded) -> None:
    operator = await house.make_key("ops", operator=True)
    acme = await house.make_key("acme", by=operator)
    async with house.client(operator) as client:
        await client.set_quota("acme", Quota(jobs=1))
    async with house.client(acme) as client:
        with pytest.raises(DispatcherRefused) as refused:
            await client.set_quota("acme", Quota())
        assert refused.value.problem.status == 403
        assert [usage.quota.jobs for usage in await client.usage()] == [1]


async def test_a_hold_that_fails_leaves_nothing_held(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    await store.open(1)
    quotas = Quotas(store, lambda: Now(0, 0))
    await quotas.put("a", Quota(items=4))
    for _ in range(3):
        with pytest.raises(Refusal):
            async with quotas.hold("a", lambda: Load(items=5)):
                raise AssertionError("never inside")
        with pytest.raises(ZeroDivisionError):
            async with quotas.hold("a", lambda: Load(items=4)):
                raise ZeroDivisionError
    await store.close()


@settings(max_examples=200, deadline=None)
@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    steps=st.lists(st.integers(0, 5_000), min_size=1, max_size=60),
)
def test_a_bucket_gives_its_burst_and_its_rate_and_no_more(
    rate: float, burst: int, steps: list[int]
) -> None:
    bucket = TokenBucket(rate, burst, 0)
    now_ms = given_out = 0
    for step in steps:
        now_ms += step
        wait_s = bucket.take(now_ms)
        given_out += wait_s == 0.0
        assert given_out <= burst + rate * now_ms / 1000 + 1e-6
        if wait_s:
            # Who waits as long as he is told is served.
            now_ms += int(wait_s * 1000) + 1
            assert bucket.take(now_ms) == 0.0
            given_out += 1
