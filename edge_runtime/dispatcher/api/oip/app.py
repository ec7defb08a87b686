"""The routes of the Open Inference Protocol as one small ASGI application.

It stands beside the framework, not in it: a request costs what parsing it, handing it over and
writing the answer cost. Routes are few, fixed, and matched by hand.

- A client that goes away takes its request with it: the car is told to stop in the same turn.
- `timeout` is the deadline of the whole request; without one it is what usual clients wait for.
- Any refusal is `{"error": "<text>"}`. 400: the request is wrong. 404: no such model. 503: no car,
  or too much at once; with Retry-After and the reason. 504: the deadline passed. 500: the model
  failed on the cars that tried.

Loading and unloading are answered as the protocol asks, and change nothing: cars load what is
asked for, and let go what is not.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
import structlog

from edge_runtime import __version__
from edge_runtime.contract import limits
from edge_runtime.contract.messages import Reference
from edge_runtime.contract.package import Package
from edge_runtime.dispatcher.api.door import tenant_in
from edge_runtime.dispatcher.api.failures import problem_of_failed
from edge_runtime.dispatcher.api.forms import refusal_headers
from edge_runtime.dispatcher.api.oip.bodies import (
    LargeBodies,
    LargeBody,
    header,
    length_header,
    packed,
    read_body,
)
from edge_runtime.dispatcher.api.oip.errors import OipError, not_allowed, refused
from edge_runtime.dispatcher.api.oip.infer import BadOutput, Inference
from edge_runtime.dispatcher.api.oip.models import Model
from edge_runtime.dispatcher.api.presence import ClientLeft, Receive, while_client_stays
from edge_runtime.dispatcher.core.interactive_parts import Answered, Failed, Why
from edge_runtime.dispatcher.core.placement import Requirement
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.interactive import InteractiveFailure
from edge_runtime.dispatcher.lending import Lender
from edge_runtime.dispatcher.service import DispatcherService

_JSON: Final = b"application/json"
_BINARY: Final = b"application/octet-stream"
_HEADER_LENGTH: Final = b"inference-header-content-length"
_EXTENSIONS: Final = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
_encode = msgspec.json.Encoder().encode
_US_PER_MS: Final = 1_000
_LOOK_AGAIN_S: Final = 1.0

_log = structlog.get_logger(__name__)


class _Sent(NamedTuple):
    """What of a request travels: its input, or where that is, and which cars can have it so."""

    requirement: Requirement
    item: bytes
    ref: Reference | None = None


class OpenInference:
    """`/v2` over one running dispatcher; without a lender, inputs travel inline only."""

    def __init__(self, service: DispatcherService, lender: Lender | None = None) -> None:
        self._service = service
        self._lender = lender
        self._large = None if lender is None else LargeBodies()
        self._shelf = service.shelf
        self._models: dict[str, Model] = {}
        self._looked_s = -_LOOK_AGAIN_S

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Any) -> None:
        """Answer one request, whose path begins with `/v2`."""
        try:
            await self._answer(scope, receive, send)
        except ClientLeft:
            return
        except (OipError, Refusal) as failure:
            error = failure if isinstance(failure, OipError) else refused(failure.problem)
            said = refusal_headers(error.problem).items()
            headers = [(name.lower().encode(), value.encode()) for name, value in said]
            if error.allow is not None:
                headers.append((b"allow", error.allow.encode()))
            await _send(send, error.status, _encode({"error": error.message}), _JSON, headers)
        except Exception as error:  # noqa: BLE001 - whatever it was, the client gets an answer
            _log.error("oip_request_failed", path=scope["path"], exc_info=error)
            text = "the dispatcher failed on this request; its log says why"
            await _send(send, HTTPStatus.INTERNAL_SERVER_ERROR, _encode({"error": text}), _JSON, [])

    async def _answer(self, scope: Mapping[str, Any], receive: Receive, send: Any) -> None:
        # Of the path as it came: a name may hold an encoded slash.
        raw = scope.get("raw_path") or scope["path"].encode()
        parts = [unquote(part) for part in raw.partition(b"?")[0].decode("latin-1").split("/")[2:]]
        match scope["method"], parts:
            case "POST", ["models", *name, "infer"]:
                await self._infer(await self._model(name), scope, receive, send)
                return
            case (("GET" | "HEAD"), ["health", ("live" | "ready") as kind]):
                await self._health(kind, send)
                return
            case (("GET" | "HEAD"), ["models", *name, "ready"]) if name:
                await self._ready(await self._model(name), send)
                return
            case (("GET" | "HEAD"), _):
                answer = await self._get(parts)
            case "POST", ["repository", *rest]:
                await read_body(scope["headers"], receive)
                answer = await self._repository(rest)
            case _:
                raise _not_found(parts, scope["method"])
        await _send(send, HTTPStatus.OK, b"" if answer is None else _encode(answer), _JSON, [])

    async def _get(self, parts: list[str]) -> Any:
        match parts:
            case [] | [""]:
                return {"name": "edge-runtime", "version": __version__, "extensions": _EXTENSIONS}
            case ["models", "stats"]:
                await self._look(0.0)
                return {"model_stats": [model.stats() for model in self._all()]}
            case ["models", *name, "config"] if name:
                return (await self._model(name)).config()
            case ["models", *name, "stats"] if name:
                return {"model_stats": [(await self._model(name)).stats()]}
            case ["models", *name] if name:
                model = await self._model(name)
                return model.metadata(self._versions(model.name))
            case _:
                raise _not_found(parts, "GET")

    # --- models ---

    async def _model(self, parts: list[str]) -> Model:
        """The model of `{name}` or `{name}/versions/{version}`; `OipError` 404 otherwise."""
        match parts:
            case [name]:
                wanted = name
            case [name, "versions", version]:
                wanted = f"{name}@{version}"
            case _:
                raise _not_found(["models", *parts], "GET")
        package = self._shelf.find(wanted)
        if package is None:
            await self._look(_LOOK_AGAIN_S)
            package = self._shelf.find(wanted)
        if package is None:
            raise OipError(
                HTTPStatus.NOT_FOUND,
                f"request for unknown model: {wanted[:80]!r} is not found; POST "
                "/v2/repository/index lists what there is",
            )
        return self._of(package)

    def _of(self, package: Package) -> Model:
        model = self._models.get(package.digest)
        if model is None:
            model = self._models[package.digest] = Model(package)
        return model

    async def _look(self, at_most_every_s: float) -> None:
        """Look for new packages, but not for every name that somebody makes up."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s >= at_most_every_s:
            self._looked_s = now_s
            await asyncio.to_thread(self._shelf.scan)

    def _all(self) -> list[Model]:
        found = (self._shelf.find(view.digest) for view in self._shelf.views())
        return [self._of(package) for package in found if package is not None]

    def _versions(self, name: str) -> list[str]:
        return [view.version for view in self._shelf.views() if view.name == name]

    def _can_serve(self, model: Model) -> bool:
        service = self._service
        placement, now = service.core.state.placement, service.clock()
        return placement.others_live(model.requirement, frozenset(), now.boot_ms)

    async def _ready(self, model: Model, send: Any) -> None:
        """400 and no body where no car could serve it now, as clients expect it."""
        status = HTTPStatus.OK if self._can_serve(model) else HTTPStatus.BAD_REQUEST
        await _send(send, status, b"", _JSON, [])

    async def _health(self, kind: str, send: Any) -> None:
        is_well = kind == "live" or self._service.bus.is_connected
        await _send(send, HTTPStatus.OK if is_well else HTTPStatus.BAD_REQUEST, b"", _JSON, [])

    async def _repository(self, parts: list[str]) -> Any:
        match parts:
            case ["index"]:
                await self._look(0.0)
                return [self._entry(model) for model in self._all()]
            case ["models", name, ("load" | "unload")]:
                await self._model([name])
                return None
            case _:
                raise _not_found(["repository", *parts], "POST")

    def _entry(self, model: Model) -> dict[str, str]:
        is_ready = self._can_serve(model)
        reason = "" if is_ready else self._why_not(model)
        state = "READY" if is_ready else "UNAVAILABLE"
        return {"name": model.name, "version": model.version, "state": state, "reason": reason}

    def _why_not(self, model: Model) -> str:
        service = self._service
        return service.interactive.core.why_no_car(model.requirement, service.clock())

    # --- inference ---

    async def _infer(
        self, model: Model, scope: Mapping[str, Any], receive: Receive, send: Any
    ) -> None:
        started_ns = time.monotonic_ns()
        headers = scope["headers"]
        tenant = tenant_in(scope)
        # Held to the end: the input of a large body waits in memory for as long as its requester.
        with LargeBody(self._large, tenant) as large:
            inference = await self._read(model, headers, receive, large)
            try:
                answered = await self._ask(model, inference, tenant, receive)
            except InteractiveFailure as failure:
                model.statistics.fail.add((time.monotonic_ns() - started_ns) / 1e6)
                raise _refusal(failure.failed) from None
        accepted = header(headers, b"accept-encoding")
        try:
            with LargeBody(self._large, tenant) as large:
                size = len(answered.output)
                if size <= limits.OUTPUT_MAX_BYTES:
                    answer = _answer(model, inference, answered, accepted)
                else:
                    large.hold(size)
                    answer = await asyncio.to_thread(_answer, model, inference, answered, accepted)
                await _send(send, HTTPStatus.OK, *answer)
        except (OipError, Refusal):
            model.statistics.fail.add((time.monotonic_ns() - started_ns) / 1e6)
            raise
        model.statistics.answered(
            took_ms=(time.monotonic_ns() - started_ns) / 1e6,
            queue_ms=answered.queue_ms,
            busy_ms=answered.busy_ms,
            rows=inference.rows,
            batch=answered.batch,
        )

    async def _read(
        self,
        model: Model,
        headers: list[tuple[bytes, bytes]],
        receive: Receive,
        large: LargeBody,
    ) -> Inference:
        """The request, understood. Raises as `read_body`, and `OipError`."""
        header_length = length_header(headers, _HEADER_LENGTH)
        if header_length is None:
            # Its tensors are JSON, which is no way for large ones.
            return model.interface.read(await read_body(headers, receive), None)
        body = await read_body(headers, receive, large)
        if len(body) <= limits.OIP_BODY_MAX_BYTES:
            return model.interface.read(body, header_length)
        return await asyncio.to_thread(model.interface.read, body, header_length)

    async def _ask(
        self,
        model: Model,
        inference: Inference,
        tenant: str,
        receive: Receive,
    ) -> Answered:
        """The answer. Raises `ClientLeft` when the client goes first."""
        timeout_ms = limits.INTERACTIVE_TIMEOUT_DEFAULT_MS
        if inference.timeout_us:
            timeout_ms = min(timeout_ms, max(1, inference.timeout_us // _US_PER_MS))
        async with while_client_stays(receive), self._sent(model, inference, tenant) as sent:
            return await self._service.interactive.infer(
                tenant=tenant,
                requirement=sent.requirement,
                item=sent.item,
                ref=sent.ref,
                media_type="application/x-msgpack",
                reference_ms=model.reference_ms,
                parameters=inference.parameters,
                rows=inference.rows,
                timeout_ms=timeout_ms,
            )

    @contextlib.asynccontextmanager
    async def _sent(self, model: Model, inference: Inference, tenant: str) -> AsyncIterator[_Sent]:
        """How the input goes to a car: inline, or lent to it for as long as its client waits."""
        size = len(inference.item)
        if size <= limits.ITEM_MAX_BYTES:
            yield _Sent(model.requirement, inference.item)
        elif self._lender is None:
            text = (
                f"the inputs have {size} bytes; at most {limits.ITEM_MAX_BYTES} "
                "travel inline (ITEM_MAX_BYTES)"
            )
            raise OipError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
        else:
            async with self._lender.lend(tenant, inference.item) as ref:
                yield _Sent(model.requirement._replace(by_reference=True), b"", ref)


def _answer(
    model: Model, inference: Inference, answered: Answered, accepted: str | None
) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """The body of an answer, its media type, and further headers. Raises `OipError`."""
    try:
        answer, json_length = model.interface.answer(
            inference, answered.output, model.name, model.version
        )
    except BadOutput as error:
        text = f"the output of car {answered.vehicle} is not the model's: {error}"
        raise OipError(HTTPStatus.INTERNAL_SERVER_ERROR, text) from None
    answer, encoding = packed(answer, accepted)
    more = [] if encoding is None else [(b"content-encoding", encoding.encode())]
    if json_length is None:
        return answer, _JSON, more
    more.append((_HEADER_LENGTH, str(json_length).encode()))
    return answer, _BINARY, more


def _refusal(failed: Failed) -> OipError:
    """A request without a result, as its client is told: of an item, with its code in the text."""
    problem = problem_of_failed(failed)
    if failed.why is Why.ITEM:
        problem = msgspec.structs.replace(problem, message=f"{problem.code}: {problem.message}")
    return refused(problem)


def _not_found(parts: list[str], method: str) -> OipError:
    """404 for a path that is none; 405 for one that takes another method."""
    match parts:
        case ["models", *_, "infer"] if method != "POST":
            return not_allowed("infer", "POST")
        case ["health", _] | ["models", *_] | [] if method not in {"GET", "HEAD"}:
            return not_allowed("this path", "GET, HEAD")
        case ["repository", *_] if method != "POST":
            return not_allowed("this path", "POST")
        case _:
            return OipError(HTTPStatus.NOT_FOUND, f"no path /v2/{'/'.join(parts)[:120]}")


async def _send(
    send: Any, status: HTTPStatus, body: bytes, media_type: bytes, more: list[tuple[bytes, bytes]]
) -> None:
    headers = [(b"content-length", str(len(body)).encode()), *more]
    if body:
        headers.append((b"content-type", media_type))
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": body})
