"""Batches by the unmodified `openai` package: lines in, answers out, and what goes wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import APIStatusError
from openai_house import (
    BatchHouse,
    begin,
    is_over,
    jsonl,
    outputs,
    request_line,
    until,
    upload,
    vector,
)

from edge_runtime.contract import limits
from edge_runtime.contract.http import NewKey, Quota
from edge_runtime.contract.messages import ItemDone, ItemFailed, ItemResult
from edge_runtime.contract.reasons import ItemError, JobState
from edge_runtime.dispatcher.storage import SqliteStore


async def test_a_batch_from_file_to_file(house: BatchHouse) -> None:
    async with house.openai() as client, house.car():
        lines = [request_line(f"line-{n}", f"text {n}") for n in range(300)]
        name = await begin(client, jsonl(*lines))
        batch = await until(client, name, is_over)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (300, 300, 0)
        assert batch.error_file_id is None
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        done, faults = await outputs(client, batch)
        assert faults == []
        assert sorted(line["custom_id"] for line in done) == sorted(x["custom_id"] for x in lines)
        for line in done:
            response = line["response"]
            assert (response["status_code"], line["error"]) == (200, None)
            (one,) = response["body"]["data"]
            assert line["custom_id"] == f"line-{int(one['embedding'][0])}"
        listed = await client.batches.list()
        assert [found.id for found in listed.data] == [name]
        file = await client.files.retrieve(batch.output_file_id or "")
        assert file.purpose == "batch_output"


async def test_broken_lines_are_reported_one_by_one_and_the_rest_runs(house: BatchHouse) -> None:
    async with house.openai() as client, house.car():
        name = await begin(
            client,
            jsonl(
                request_line("good-1"),
                b"{no json",
                b"\xff\xfe not utf-8",
                b"[]",
                b"",
                request_line("good-1", "again"),
                request_line("other-url", url="/v1/chat/completions"),
                request_line("no-such-url", url="/v1/moderations"),
                request_line("no-such-model", body={"model": "gpt-4o"}),
                request_line("wrong-task", body={"model": "talker"}),
                request_line("tokens", [1, 2, 3]),
                request_line("nothing", []),
                request_line("get", method="GET"),
                {"method": "POST", "url": "/v1/embeddings", "body": {}},
                request_line("huge", "x" * (limits.INPUT_TEXT_MAX_BYTES + 1)),
                request_line("deep", body={"input": json.loads("[" * 200 + "]" * 200)}),
                request_line("good-2"),
            ),
        )
        batch = await until(client, name, is_over)
        assert batch.status == "completed"
        done, faults = await outputs(client, batch)
        assert [line["custom_id"] for line in done] == ["good-1", "good-2"]
        told = {(line["custom_id"], line["error"]["code"]) for line in faults}
        assert told == {
            (None, "invalid_json_line"),
            ("good-1", "duplicate_custom_id"),
            ("other-url", "invalid_url"),
            ("no-such-url", "invalid_url"),
            ("no-such-model", "model_not_found"),
            ("wrong-task", "model_not_supported"),
            ("tokens", "invalid_input"),
            ("nothing", "invalid_input"),
            ("get", "invalid_method"),
            ("huge", "invalid_request"),
            ("deep", "invalid_input"),
        }
        assert [line["error"]["line"] for line in faults][:3] == [2, 3, 4]
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (16, 2, 14)


async def test_lists_base64_and_failing_items(house: BatchHouse) -> None:
    def answer(index: int) -> ItemResult:
        if index == 3:
            return ItemFailed(index=index, code=ItemError.INVALID_PARAMETERS, message="no")
        return vector(index)

    async with house.openai() as client, house.car(answer=answer):
        name = await begin(
            client,
            jsonl(
                request_line("two", ["a", "b"]),
                request_line("fails", ["c", "d"]),
                request_line("base64", "e", body={"encoding_format": "base64"}),
            ),
        )
        done, faults = await outputs(client, await until(client, name, is_over))
        by_id = {line["custom_id"]: line["response"]["body"]["data"] for line in done}
        assert [one["embedding"][0] for one in by_id["two"]] == [0.0, 1.0]
        assert isinstance(by_id["base64"][0]["embedding"], str)
        (fault,) = faults
        assert (fault["custom_id"], fault["error"]["code"]) == ("fails", "invalid_parameters")


async def test_chat_lines_become_generations(house: BatchHouse) -> None:
    async with house.openai() as client:
        seen: list[bytes] = []

        def answer(index: int) -> ItemResult:
            output = {
                "text": "Paris.",
                "ids": [1, 2],
                "finish": "stop",
                "usage": {"prompt_tokens": 7, "completion_tokens": 2},
                "margin": None,
            }
            return ItemDone(index=index, output=msgspec.Raw(msgspec.msgpack.encode(output)))

        async with house.car(answer=answer) as car:
            body = {
                "model": "talker",
                "messages": [{"role": "user", "content": "The capital of France?"}],
                "max_tokens": 5,
                "temperature": 0,
            }
            name = await begin(
                client,
                jsonl(
                    {
                        "custom_id": "c1",
                        "method": "POST",
                        "url": "/v1/chat/completions",
                        "body": body,
                    },
                    {
                        "custom_id": "c2",
                        "method": "POST",
                        "url": "/v1/chat/completions",
                        "body": {**body, "n": 2},
                    },
                ),
                endpoint="/v1/chat/completions",
            )
            done, faults = await outputs(client, await until(client, name, is_over))
            seen += [bytes(item.data) for offer in car.offers for item in offer.items]
        (line,) = done
        answered = line["response"]["body"]
        assert answered["choices"][0]["message"] == {"role": "assistant", "content": "Paris."}
        assert answered["usage"]["total_tokens"] == 9
        assert [fault["error"]["code"] for fault in faults] == ["unsupported_value"]
        assert json.loads(seen[0])["messages"] == body["messages"]
        assert json.loads(seen[0])["max_tokens"] == 5


async def test_cancel_keeps_what_is_done(house: BatchHouse) -> None:
    async with house.openai() as client, house.car(works=False) as car:
        name = await begin(client, jsonl(*(request_line(f"r{n}") for n in range(600))))
        await car.until(lambda car: bool(car.offers))
        first = car.offers[0]
        car.chunks(car.finished(first))
        batch = await until(client, name, lambda batch: batch.request_counts.completed > 0)
        assert batch.status == "in_progress"
        cancelled = await client.batches.cancel(name)
        assert cancelled.status == "cancelling"
        batch = await until(client, name, is_over)
        assert (batch.status, bool(batch.cancelling_at)) == ("cancelled", True)
        done, faults = await outputs(client, batch)
        assert len(done) == len(first.items)
        assert len(done) + len(faults) == 600
        assert {fault["error"]["code"] for fault in faults} == {"batch_cancelled"}
        with pytest.raises(APIStatusError) as refused:
            await client.batches.cancel(name)
        assert refused.value.status_code == 409


async def test_the_window_ends_and_what_is_not_done_is_said(house: BatchHouse) -> None:
    async with house.openai() as client:
        name = await begin(client, jsonl(request_line("a"), request_line("b")), window="1s")
        batch = await until(client, name, is_over)
        assert batch.status == "expired"
        done, faults = await outputs(client, batch)
        assert done == []
        assert {fault["error"]["code"] for fault in faults} == {"batch_expired"}


@pytest.mark.parametrize("when", ["before_jobs", "while_running", "before_files"])
async def test_a_batch_goes_on_after_a_restart(open_house: Any, when: str) -> None:
    lines = [request_line(f"r{n}", f"t{n}") for n in range(5_000)]
    async with open_house() as house, house.openai() as client:
        if when == "before_jobs":
            await client.batches.create(
                input_file_id=await upload(client, jsonl(*lines)),
                endpoint="/v1/embeddings",
                completion_window="24h",
            )
        else:
            name = await begin(client, jsonl(*lines))
            await until(client, name, lambda batch: batch.status == "in_progress")
    async with open_house() as house, house.openai() as client, house.car():
        (batch,) = (await client.batches.list()).data
        if when == "before_files":
            await until(client, batch.id, lambda batch: batch.request_counts.completed > 100)
        else:
            batch = await until(client, batch.id, is_over)
    async with open_house() as house, house.openai() as client, house.car("car2"):
        batch = await until(client, batch.id, is_over)
        assert batch.status == "completed"
        done, faults = await outputs(client, batch)
        assert faults == []
        assert sorted(line["custom_id"] for line in done) == sorted(x["custom_id"] for x in lines)
        files = {path.name for path in house.desk.shelf.path("x").parent.iterdir()}
        known = {file.id for file in (await client.files.list()).data}
        assert files == known, "nothing half-written is left"


async def test_a_job_that_a_crash_made_unknown_ends_with_its_cancelled_batch(
    open_house: Any, tmp_path: Path
) -> None:
    async with open_house() as house, house.openai() as client:
        name = await begin(client, jsonl(request_line("a"), request_line("b")))
        await until(client, name, lambda batch: batch.status == "in_progress")
    # As if it had died between the job's acceptance and the record that names it, and the batch
    # had been cancelled when it was back.
    store = SqliteStore(tmp_path / "store.db")
    await store.open(0)
    batch, part = await store.record("batch", name), await store.record("part", f"{name}/0")
    assert batch is not None
    assert part is not None
    fields = msgspec.msgpack.decode(part.body)
    job, fields["job"] = fields["job"], ""
    ended = msgspec.msgpack.decode(batch.body) | {"status": "cancelling", "end": "cancelled"}
    encode = msgspec.msgpack.encode
    await store.put_records(
        [part._replace(body=encode(fields)), batch._replace(body=encode(ended))]
    )
    await store.close()
    async with open_house() as house, house.openai() as client:
        over = await until(client, name, is_over)
        status = await house.service.store.job(job)
        _, faults = await outputs(client, over)
    assert over.status == "cancelled"
    assert status is not None
    assert status.state is JobState.CANCELLED
    assert sorted(fault["custom_id"] for fault in faults) == ["a", "b"]


async def test_fifty_thousand_and_one_lines_are_refused_at_once(house: BatchHouse) -> None:
    async with house.openai() as client:
        line = jsonl(request_line("x"))
        for count, is_fine in ((limits.BATCH_LINES_MAX + 1, False), (1, True)):
            file = await upload(client, line * count)
            creating = client.batches.create(
                input_file_id=file, endpoint="/v1/embeddings", completion_window="24h"
            )
            if is_fine:
                await creating
                continue
            with pytest.raises(APIStatusError) as refused:
                await creating
            assert (refused.value.status_code, refused.value.code) == (
                400,
                "too_many_requests_in_file",
            )


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"input_file_id": "file-none"}, 404, "not_found", "id"),
        ({"endpoint": "/v1/moderations"}, 400, "invalid_endpoint", "endpoint"),
        ({"completion_window": "soon"}, 400, "invalid_completion_window", "completion_window"),
        ({"completion_window": "99999d"}, 400, "invalid_completion_window", "completion_window"),
        ({"metadata": [1]}, 422, "invalid_field", "metadata"),
        ({"input_file_id": None}, 422, "invalid_field", "input_file_id"),
    ],
)
async def test_a_batch_that_cannot_be(
    house: BatchHouse, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    async with house.openai() as client:
        good = {
            "input_file_id": await upload(client, jsonl(request_line("a"))),
            "endpoint": "/v1/embeddings",
            "completion_window": "24h",
        }
        with pytest.raises(APIStatusError) as refused:
            await client.batches.create(**{**good, **fields})  # type: ignore[arg-type]  # wrong on purpose
        error = refused.value
        assert (error.status_code, error.code, error.param) == (status, code, param)


async def test_an_empty_file_is_no_batch(house: BatchHouse) -> None:
    async with house.openai() as client:
        for data in (b"", b"\n\n  \n"):
            with pytest.raises(APIStatusError) as refused:
                await begin(client, data)
            assert refused.value.code == "empty_file"


async def test_another_tenants_files_and_batches_are_not_there(house: BatchHouse) -> None:
    accounts = house.door.accounts
    await accounts.create(NewKey(tenant="ops", is_operator=True))
    keys = [(await accounts.create(NewKey(tenant=name))).key for name in ("a", "b")]
    async with house.openai(keys[0]) as mine, house.openai(keys[1]) as theirs:
        name = await begin(mine, jsonl(request_line("a")))
        file = (await mine.files.list()).data[0].id
        assert (await theirs.files.list()).data == []
        assert (await theirs.batches.list()).data == []
        for call in (
            theirs.files.retrieve(file),
            theirs.files.content(file),
            theirs.files.delete(file),
            theirs.batches.retrieve(name),
            theirs.batches.cancel(name),
            theirs.batches.create(
                input_file_id=file, endpoint="/v1/embeddings", completion_window="24h"
            ),
        ):
            with pytest.raises(APIStatusError) as refused:
                await call
            assert refused.value.status_code == 404
    async with house.openai("er_wrong") as nobody:
        with pytest.raises(APIStatusError) as refused:
            await nobody.batches.list()
        assert (refused.value.status_code, refused.value.type) == (401, "authentication_error")


async def test_a_quota_makes_a_batch_wait_and_not_fail(house: BatchHouse) -> None:
    async with house.openai() as client:
        await house.door.quotas.put("default", Quota(items=2_500))
        lines = [request_line(f"r{n}") for n in range(4_500)]
        name = await begin(client, jsonl(*lines))
        async with house.car():
            batch = await until(client, name, is_over)
        assert (batch.status, batch.request_counts.completed) == ("completed", 4_500)


async def test_a_job_that_its_tenant_deletes_is_said_line_by_line(house: BatchHouse) -> None:
    async with house.openai() as client:
        name = await begin(client, jsonl(request_line("a"), request_line("b")))
        await until(client, name, lambda batch: batch.status == "in_progress")
        (job,) = list(house.service.core.state.jobs)
        front = house.desk.batches._front
        await asyncio.wait_for(front.delete("default", job), 20)
        done, faults = await outputs(client, await until(client, name, is_over))
        assert done == []
        assert {fault["error"]["code"] for fault in faults} == {"result_missing"}
