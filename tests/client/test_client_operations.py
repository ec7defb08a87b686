"""The rest of the client's calls."""

from pathlib import Path

import pytest
from serving import Served

from edge_runtime.client import DispatcherRefused, EdgeClient
from edge_runtime.contract.reasons import JobState


async def test_jobs_and_their_states(client: EdgeClient) -> None:
    handles = [client.submit("noop", "x") for _ in range(3)]
    ids = [(await handle).job for handle in handles]
    assert [status.job for status in await client.jobs()] == ids[::-1]
    assert [status.job for status in await client.jobs(limit=1, before=ids[2])] == [ids[1]]
    assert (await client.cancel(ids[0])).state is JobState.CANCELLED
    assert (await handles[0].cancel()).state is JobState.CANCELLED
    assert [s.job for s in await client.jobs(state=JobState.CANCELLED)] == [ids[0]]
    assert (await client.status(ids[1])).items == 1
    await client.delete(ids[1])
    with pytest.raises(DispatcherRefused) as refused:
        await client.status(ids[1])
    assert (refused.value.problem.status, refused.value.problem.field) == (404, "job")
    assert (await client.why(ids[2])).cars_excluded == {"not_plugged": 3}
    assert (await handles[2].why()).job == ids[2]


async def test_tenants_are_apart_and_the_operator_sees_all(api: Served) -> None:
    async with (
        EdgeClient(api.server.url, "one") as one,
        EdgeClient(api.server.url, "two") as two,
        EdgeClient(api.server.url, "*") as operator,
    ):
        job = (await one.submit("noop", "x")).job
        with pytest.raises(DispatcherRefused):
            await two.status(job)
        assert (await operator.status(job)).tenant == "one"
        assert len(await operator.jobs()) == 1
        assert await two.jobs() == []
        assert len(await two.attempts()) == 1
        assert [attempt.job for attempt in await one.attempts(job, limit=5)] == [job]
        with pytest.raises(DispatcherRefused) as refused:
            await operator.submit("noop", "x")
        assert refused.value.problem.field == "X-Tenant"


async def test_fleet_quarantine_and_dead_letters(api: Served, client: EdgeClient) -> None:
    assert (await client.fleet(limit=2)).total == 3
    await client.quarantine("car-1")
    assert (await client.fleet(offset=1, limit=1)).cars[0].quarantined
    await client.quarantine("car-1", on=False)
    assert api.front.quarantined == {"car-1": False}
    with pytest.raises(DispatcherRefused):
        await client.quarantine("car-9")
    job = (await client.submit("noop", ["a", "b"])).job
    api.front.fail(job, 1)
    letters = await client.dead_letters()
    assert [(letter.job, letter.item) for letter in letters] == [(job, 1)]
    assert await client.dead_letters("job-9") == []
    assert await client.requeue(job) == 1
    assert await client.requeue(job, [0]) == 0


async def test_models_health_backup(client: EdgeClient, tmp_path: Path) -> None:
    assert [model.name for model in await client.models()] == ["noop"]
    assert (await client.health()).epoch == 7
    done = await client.backup("today.db")
    assert done.path == str(tmp_path / "today.db")
    assert (tmp_path / "today.db").stat().st_size == done.bytes
    with pytest.raises(DispatcherRefused) as refused:
        await client.backup("today.db")
    assert refused.value.problem.code == "exists"
