"""OpenAI's routes: what their clients send, checked, and answered as they read it.

`/v1/models`, `/v1/embeddings`, `/v1/files…` and `/v1/batches…`. Errors are in that API's form
(`api.forms`). An embeddings request goes the interactive way (`embed`): nothing of it is kept.
"""

from http import HTTPStatus
from typing import Any, Final, cast

from litestar.connection import Request
from litestar.types import ASGIApp

from edge_runtime.contract import limits
from edge_runtime.contract.http import ModelView
from edge_runtime.dispatcher.api import queries
from edge_runtime.dispatcher.api.bodies import Body, BodyBudget, TypedBody
from edge_runtime.dispatcher.api.files import answer_file
from edge_runtime.dispatcher.api.openai.batches import BatchDesk, Batches, BatchRequest
from edge_runtime.dispatcher.api.openai.embeddings import LiveEmbeddings
from edge_runtime.dispatcher.api.openai.files import FileShelf, StoredFile
from edge_runtime.dispatcher.api.openai.lines import (
    EMBEDDINGS,
    Bad,
    answer_body,
    read_request,
)
from edge_runtime.dispatcher.api.openai.refusals import openai_problem
from edge_runtime.dispatcher.api.openai.uploads import Upload
from edge_runtime.dispatcher.api.presence import ClientLeft, Receive, while_client_stays
from edge_runtime.dispatcher.api.problems import named_limit
from edge_runtime.dispatcher.api.wire import JSON, Answer, encode_body
from edge_runtime.dispatcher.front import Front, Refusal, refusal

_Request = Request[Any, Any, Any]

_PAGE_DEFAULT: Final = 20
_batch_request: Final = TypedBody(BatchRequest)


class OpenAiRoutes:
    """The handlers. Files and batches need a desk, embeddings `embed`."""

    def __init__(
        self,
        front: Front,
        budget: BodyBudget,
        desk: BatchDesk | None,
        embed: LiveEmbeddings | None = None,
    ) -> None:
        self._front = front
        self._embed = embed
        self._budget = budget
        self._desk = desk

    @property
    def _shelf(self) -> FileShelf:
        if self._desk is None:
            raise _off("files")
        return self._desk.shelf

    @property
    def _batches(self) -> Batches:
        if self._desk is None:
            raise _off("batches")
        return self._desk.batches

    # --- models ---

    async def models(self, request: _Request) -> ASGIApp:
        """Packages that jobs may name, as OpenAI's clients list models."""
        del request
        views = await self._front.models()
        names = dict.fromkeys(view.name for view in views)
        newest = {view.name: view for view in views}
        return _json({"object": "list", "data": [_model(newest[name], name) for name in names]})

    async def model(self, request: _Request) -> ASGIApp:
        """One model by its name, `name@version` or digest."""
        name = request.path_params["name"]
        for view in await self._front.models():
            if name in (view.name, f"{view.name}@{view.version}", view.digest):
                return _json(_model(view, name))
        message = f"The model {name[:80]!r} does not exist"
        raise refusal(HTTPStatus.NOT_FOUND, "model_not_found", message, field="model")

    # --- embeddings ---

    async def embeddings(self, request: _Request) -> ASGIApp:
        """Vectors of one or more texts."""
        embed = self._embed
        if embed is None:
            raise _off("embeddings")
        tenant = queries.tenant_of(request)
        async with self._body(request) as body:
            data = body.data
        tasks = {
            name: view.task
            for view in await self._front.models()
            for name in (view.name, f"{view.name}@{view.version}", view.digest)
        }
        try:
            line = read_request("", EMBEDDINGS, data, tasks)
        except Bad as bad:
            raise Refusal(openai_problem(bad, EMBEDDINGS)) from None
        try:
            async with while_client_stays(cast("Receive", request.receive)):
                outputs = await embed(tenant, line)
        except ClientLeft:
            message = "the caller left"
            raise refusal(HTTPStatus.BAD_REQUEST, "disconnected", message) from None
        try:
            answer = answer_body(EMBEDDINGS, line.model, outputs, 0, "", is_base64=line.is_base64)
        except Bad as bad:
            raise Refusal(openai_problem(bad, EMBEDDINGS)) from None
        return _json(answer)

    # --- files ---

    async def upload(self, request: _Request) -> ASGIApp:
        """Keep a file."""
        tenant = queries.tenant_of(request)
        async with self._shelf.writing() as writing:
            upload = Upload(request, writing)
            await upload.read()
            purpose = upload.fields.get("purpose", "")
            if purpose != "batch":
                message = f"purpose is batch, not {purpose[:40]!r}"
                raise refusal(HTTPStatus.BAD_REQUEST, "invalid_purpose", message, field="purpose")
            stored = StoredFile(
                filename=upload.filename or "file",
                purpose=purpose,
                lines=0,
                expires_s=self._shelf.expiry_s(upload.fields.get("expires_after[seconds]")),
            )
            return _json((await self._shelf.keep(writing, tenant, stored)).body())

    async def files(self, request: _Request) -> ASGIApp:
        """A page of files, newest first."""
        tenant = queries.tenant_of(request)
        views, has_more = await self._shelf.views(
            tenant,
            _page_limit(request),
            request.query_params.get("after"),
            request.query_params.get("purpose"),
        )
        return _page([view.body() for view in views], has_more=has_more)

    async def file(self, request: _Request) -> ASGIApp:
        """One file, without its bytes."""
        view = await self._shelf.view(queries.tenant_of(request), request.path_params["name"])
        return _json(view.body())

    async def delete_file(self, request: _Request) -> ASGIApp:
        """Forget a file."""
        name = request.path_params["name"]
        await self._shelf.delete(queries.tenant_of(request), name)
        return _json({"id": name, "object": "file", "deleted": True})

    async def content(self, request: _Request) -> ASGIApp:
        """A file's bytes."""
        name = request.path_params["name"]
        view = await self._shelf.view(queries.tenant_of(request), name)
        return await answer_file(self._shelf.path(view.id), view.id, name, request.headers)

    # --- batches ---

    async def create_batch(self, request: _Request) -> ASGIApp:
        """Accept a batch."""
        tenant = queries.tenant_of(request)
        async with self._body(request) as body:
            wanted: BatchRequest = _batch_request.decode(body)
        return _json((await self._batches.create(tenant, wanted)).body())

    async def batches(self, request: _Request) -> ASGIApp:
        """A page of batches, newest first."""
        tenant = queries.tenant_of(request)
        after = request.query_params.get("after")
        found, has_more = await self._batches.views(tenant, _page_limit(request), after)
        return _page([batch.body() for batch in found], has_more=has_more)

    async def batch(self, request: _Request) -> ASGIApp:
        """One batch and its progress."""
        name = request.path_params["name"]
        return _json((await self._batches.view(queries.tenant_of(request), name)).body())

    async def cancel_batch(self, request: _Request) -> ASGIApp:
        """Stop a batch; what is done is kept."""
        name = request.path_params["name"]
        return _json((await self._batches.cancel(queries.tenant_of(request), name)).body())

    def _body(self, request: _Request) -> Body:
        return Body(
            request, self._budget, "HTTP_SMALL_BODY_MAX_BYTES", limits.HTTP_SMALL_BODY_MAX_BYTES
        )


def _off(what: str) -> Refusal:
    return refusal(HTTPStatus.NOT_FOUND, "not_found", f"this dispatcher has no {what}")


def _json(body: Any) -> Answer:
    return Answer(encode_body(body, JSON), JSON)


def _page(data: list[dict[str, Any]], *, has_more: bool) -> Answer:
    return _json(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )


def _page_limit(request: _Request) -> int:
    text = request.query_params.get("limit", str(_PAGE_DEFAULT))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= limits.OPENAI_PAGE_MAX:
        raise refusal(
            HTTPStatus.BAD_REQUEST,
            "invalid_field",
            f"limit is 1 to {limits.OPENAI_PAGE_MAX}",
            field="limit",
            limit=named_limit("limit", limits.OPENAI_PAGE_MAX),
        )
    return int(text)


def _model(view: ModelView, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "edge-runtime",
        "task": view.task,
        "version": view.version,
        "digest": view.digest,
        "licence": view.licence,
    }
