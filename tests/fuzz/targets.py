"""Every decoder of bytes from outside, as one function `bytes -> None` each.

A target lets exactly the refusals that its decoder documents end quietly; anything else that
comes out is a bug. State that a decoder keeps (counters, decoders) lives as long as the target,
as it does in a service.

Deliberately absent: whole images and recordings (work on pixels and samples, bounded by
`IMAGE_MAX_PIXELS` and `AUDIO_MAX_S`, takes longer than a fuzzed input may).
"""

import asyncio
import contextlib
import hashlib
import io
import mmap
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from fuzz_seeds import BYTE_PAIRS, WORDS, seeds_of
from litestar.connection import Request

from edge_runtime.bus import Message
from edge_runtime.client.errors import ContractBroken, DispatcherRefused
from edge_runtime.client.results import (
    ItemResult,
    ValueSplitter,
    decode_feed_result,
    decode_result,
)
from edge_runtime.client.transport import Interrupted
from edge_runtime.contract import codec, limits, onnx_file, package
from edge_runtime.contract.errors import ConfigError, Rejected
from edge_runtime.contract.http import (
    Backup,
    FeedEntry,
    ItemInput,
    JobRequest,
    Quarantine,
    Requeue,
)
from edge_runtime.contract.messages import Chunk, ItemDone, ResultEntry
from edge_runtime.contract.onnx_file import NotOnnx
from edge_runtime.contract.package import ModelSpec, PackageRefused, TensorSpec
from edge_runtime.contract.tensors import BadTensor, Tensor, check_tensor, to_numpy
from edge_runtime.contract.topics import Down, Topics, Up
from edge_runtime.dispatcher import intake as dispatcher_intake
from edge_runtime.dispatcher.api.bodies import Body, BodyBudget, TypedBody, read_job, read_jobs
from edge_runtime.dispatcher.api.oip.bodies import unpacked
from edge_runtime.dispatcher.api.oip.errors import OipError
from edge_runtime.dispatcher.api.oip.infer import BadOutput, Inference, Interface
from edge_runtime.dispatcher.api.openai.lines import TASK_OF_URL, read_line
from edge_runtime.dispatcher.api.wire import MSGPACK, NDJSON, StreamWriter
from edge_runtime.dispatcher.core.events import ChunkReceived
from edge_runtime.dispatcher.front import Refusal
from edge_runtime.dispatcher.validation import problem_with_items
from edge_runtime.vehicle import intake as vehicle_intake
from edge_runtime.vehicle import journal
from edge_runtime.vehicle.core.attempts import finished_item
from edge_runtime.vehicle.core.work import decode_chunks
from edge_runtime.vehicle.inference import computing
from edge_runtime.vehicle.inference.generation.detokenizer import TextStream, read_token_bytes
from edge_runtime.vehicle.inference.generation.prompts import PromptEncoder
from edge_runtime.vehicle.inference.generation.request import Chat, GenerationModel, read_request
from edge_runtime.vehicle.inference.tasks import images
from edge_runtime.vehicle.inference.tasks.base import ItemFailure
from edge_runtime.vehicle.inference.tasks.speech import decode_wav
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer
from edge_runtime.vehicle.models.importers.tiny_text import SHAPE, tokenizer_json
from edge_runtime.vehicle.owner_page import OwnerPage
from edge_runtime.vehicle.owner_socket import OwnerSocket
from edge_runtime.vehicle.policy import PolicyError, parse_policy
from edge_runtime.vehicle.sensors import traces

Read = Callable[[bytes], object]

PIXELS_MAX: Final = 64 * 64
"""Pictures that claim more are not unpacked: that work is bounded by pixels, not by bytes."""


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder: `read` ends quietly, or in one of `refusals`.

    `input_max_bytes` is the longest input that the time bound is asked of. `is_python` says that
    the decoding is Python of this project, so that coverage can guide a campaign; `weight` is its
    share of one: most where anybody's bytes arrive.
    """

    name: str
    read: Read
    refusals: tuple[type[BaseException], ...] = ()
    input_max_bytes: int = limits.MESSAGE_MAX_BYTES
    is_python: bool = False
    weight: int = 1

    def __call__(self, data: bytes) -> None:
        """Read `data`; raises what is a bug."""
        try:  # noqa: SIM105 - `suppress` costs as much as some decoders
            self.read(data)
        except self.refusals:
            pass

    @property
    def seeds(self) -> tuple[bytes, ...]:
        """Valid inputs."""
        return seeds_of(self.name)


# --- what travels between car and dispatcher ------------------------------------------------

_CAR: Final = "k3Jq8vLw2ZpX7rTn"
"""The car of the golden vectors."""
_TOPICS: Final = Topics()

_CODEC: Final[dict[str, Read]] = {
    "codec_status": codec.status_decoder().decode,
    "codec_state": codec.state_decoder().decode,
    "codec_acks": codec.acks_decoder().decode,
    "codec_results": codec.results_decoder().decode,
    "codec_work": codec.work_decoder().decode,
    "codec_control": codec.control_decoder().decode,
    "codec_desired": codec.desired_decoder().decode,
    "codec_signed": codec.signed_decoder().decode,
    "codec_host": codec.host_decoder().decode,
    "codec_public": codec.decode_public,
    "codec_request": codec.decode_request,
}


def _dispatcher_intake() -> Read:
    """The first byte chooses the topic, the rest is the payload; or a topic, a zero, a payload."""
    intake = dispatcher_intake.Intake(_TOPICS, Counter())
    topics = [_TOPICS.up(_CAR, kind) for kind in Up]

    def read(data: bytes) -> object:
        if data[:1] and data[0] < len(topics):
            topic, payload = topics[data[0]], data[1:]
        else:
            head, _, payload = data.partition(b"\x00")
            topic = head.decode("utf-8", "replace")
        return intake.events(Message(topic=topic, payload=payload, retain=len(payload) % 2 == 0))

    return read


def _vehicle_intake() -> Read:
    """As the dispatcher's: work, control and desired in an envelope, and a host's status."""
    hosts = vehicle_intake.Hosts(None)
    intake = vehicle_intake.Intake(_CAR, _TOPICS, hosts)
    topics = [*(_TOPICS.down(_CAR, kind) for kind in Down), _TOPICS.host("dispatcher-1")]

    def read(data: bytes) -> object:
        if data[:1] and data[0] < 2 * len(topics):
            topic, payload = topics[data[0] % len(topics)], data[1:]
            if data[0] >= len(topics):
                # What arrives signed is no less strange inside.
                payload = b"\x94\xa6signed\xa0\xc4\x00\xc6" + len(payload).to_bytes(4) + payload
        else:
            head, _, payload = data.partition(b"\x00")
            topic = head.decode("utf-8", "replace")
        event = intake.event(Message(topic=topic, payload=payload, retain=len(payload) % 2 == 0))
        return event, hosts.urls()

    return read


# --- outputs, from the engine to whoever reads the stream ---------------------------------------

_raw: Final = msgspec.msgpack.Decoder(msgspec.Raw)


def _output() -> Read:
    """One output of one item: whatever is kept, no reader's stream may break on it."""
    intake = dispatcher_intake.Intake(_TOPICS, Counter())
    topic = _TOPICS.up(_CAR, Up.RESULT)
    chunk = codec.encode(["chunk", "job", 1, [1, 1], "a" * 64, 0])[1:]
    results = b"\x94\xa7results" + codec.encode(_CAR) + b"\x01\x91\x97" + chunk
    item = results + b"\x91\x93\xa2ok\x00"
    writers = StreamWriter(MSGPACK), StreamWriter(NDJSON)

    def read(data: bytes) -> object:
        if isinstance(finished_item(0, data, 1.0), ItemDone):
            _raw.decode(data)
        for event in intake.events(Message(topic=topic, payload=item + data)):
            assert isinstance(event, ChunkReceived)
            for result in event.chunk.items:
                if isinstance(result, ItemDone):
                    _followed(writers, result)
        return None

    return read


def _followed(writers: tuple[StreamWriter, StreamWriter], done: ItemDone) -> None:
    output = msgspec.Raw(bytes(done.output))
    entry = ResultEntry(cursor=1, item=0, at_ms=1, output=output, vehicle=_CAR)
    feed = FeedEntry(position=7, job="job", result=entry)
    binary, text = writers
    stream = binary.encode(entry) + binary.heartbeat + binary.encode(feed)
    first, _, second = ValueSplitter().feed(stream)
    result = decode_result(first)
    assert isinstance(result, ItemResult)
    assert result.cursor == 1
    assert decode_feed_result(second).position == 7
    for element in (entry, feed):
        line = text.encode(element)
        assert line.count(b"\n") == 1
        msgspec.json.decode(line)


_STREAM_ENDS: Final = (ContractBroken, DispatcherRefused, Interrupted)


def _client_stream() -> Read:
    """A stream in pieces: the first byte says how long they are."""

    def read(data: bytes) -> object:
        splitter = ValueSplitter()
        size = 16 * (1 + (data[0] if data else 0))
        values = [
            value
            for start in range(1, len(data), size)
            for value in splitter.feed(data[start : start + size])
        ]
        for value in values[:4]:
            for decode in (decode_result, decode_feed_result):
                with contextlib.suppress(*_STREAM_ENDS):
                    decode(value)
        return values

    return read


# --- HTTP bodies --------------------------------------------------------------------------------

_SPEC: Final = ModelSpec(
    name="fuzzed",
    version="1",
    task="tensor",
    licence="none",
    source="",
    files={"model": "model.onnx"},
    reference_ms=1.0,
    memory_bytes=0,
    inputs=(
        TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),
        TensorSpec(name="s", datatype="BYTES", shape=(-1,)),
    ),
    outputs=(),
)
_BUDGET: Final = BodyBudget()
_LOOP: Final = asyncio.new_event_loop()
"""Runs for one input at a time; a stream wants to know one, too."""


def _completed(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns."""
    return _LOOP.run_until_complete(work)


def _request(data: bytes, content_type: bytes) -> Request[Any, Any, Any]:
    async def receive() -> Any:
        return {"type": "http.request", "body": data, "more_body": False}

    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(data))]
    scope: Any = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    return Request(scope, receive)


async def _jobs_of(body: Body, *, is_batch: bool) -> list[Any]:
    async with body:
        return list(await read_jobs(body)) if is_batch else [await read_job(body)]


def _submission(content_type: bytes, *, is_batch: bool) -> Read:
    def read(data: bytes) -> object:
        body = Body(_request(data, content_type), _BUDGET, "BODY", limits.JOB_MAX_BODY_BYTES)
        for job in _completed(_jobs_of(body, is_batch=is_batch)):
            if isinstance(job, JobRequest):
                problem_with_items(_SPEC, job.items)
                codec.encode(job.parameters)
        return None

    return read


def _small_bodies(content_type: bytes) -> Read:
    kinds = [TypedBody(kind) for kind in (Requeue, Quarantine, Backup)]

    async def decoded(data: bytes, kind: TypedBody) -> object:
        request = _request(data, content_type)
        async with Body(request, _BUDGET, "BODY", limits.HTTP_SMALL_BODY_MAX_BYTES) as body:
            return kind.decode(body)

    def read(data: bytes) -> object:
        for kind in kinds:
            with contextlib.suppress(Refusal):
                _completed(decoded(data, kind))
        return None

    return read


# --- tensors, packages, files --------------------------------------------------------------------


def _validated_tensors(data: bytes) -> object:
    return problem_with_items(_SPEC, [ItemInput(data=data)])


_INTERFACE: Final = Interface(
    msgspec.structs.replace(_SPEC, outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),))
)
_ITEM_INTERFACE: Final = Interface(msgspec.structs.replace(_SPEC, task="image-to-text"))
_NO_LENGTH: Final = 0xFFFF


def _oip_request(data: bytes) -> object:
    """The first two bytes are the length of the JSON; all set: there is no binary part."""
    length = int.from_bytes(data[:2], "big")
    return _INTERFACE.read(data[2:], None if length == _NO_LENGTH else length)


def _batch_line(data: bytes) -> object:
    """A line of a batch file: never refused, a bad line is an answer too."""
    return [read_line(data, 1, url, {"m": task}) for url, task in TASK_OF_URL.items()]


def _packed_body(encoding: str) -> Read:
    return lambda data: unpacked(data, encoding)


def _oip_answer(data: bytes) -> object:
    inference = Inference()
    inference.is_binary = len(data) % 2 == 0
    for interface in (_INTERFACE, _ITEM_INTERFACE):
        with contextlib.suppress(BadOutput):
            interface.answer(inference, data, "fuzzed", "1")
    return None


_tensor_list: Final = msgspec.msgpack.Decoder(list[Tensor])


def _tensors(data: bytes) -> object:
    for tensor in _tensor_list.decode(data):
        for read in (check_tensor, to_numpy):
            with contextlib.suppress(BadTensor):
                read(tensor)
    return None


def _onnx_file(data: bytes) -> object:
    if not data:
        return None
    with mmap.mmap(-1, len(data)) as mapped:
        mapped[:] = data
        return onnx_file._message_has_external_data(mapped, 0, len(data), "ModelProto", 0)


def _manifest(data: bytes) -> object:
    """Under its own digest: whoever made the bytes made the name."""
    return package.parse_manifest(data, hashlib.sha256(data).hexdigest())


def _journal_rows() -> Read:
    """Rows that a dying disk changed: left out, never raised."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.executescript(journal._SCHEMA)

    def read(data: bytes) -> object:
        connection.execute(
            "INSERT OR REPLACE INTO attempt (unit, epoch, counter, offer) VALUES (1, 1, 1, ?)",
            (data,),
        )
        return list(journal._attempts(connection))

    return read


def _journal_chunks(data: bytes) -> object:
    kept = list(decode_chunks([data]))
    assert all(isinstance(chunk, Chunk) for chunk, _ in kept)
    return kept


def _owner_socket() -> Read:
    """A line from whoever may open the car's socket."""
    door = OwnerSocket(Path(), _no_report, lambda: None)

    def read(data: bytes) -> object:
        return _completed(door._answer(_received(data), is_one_too_many=False))

    return read


def _owner_page() -> Read:
    """A request from any program of the car's computer, or from a page that its owner visits."""
    page = OwnerPage(8080, _no_report)

    def read(data: bytes) -> object:
        with contextlib.suppress(asyncio.IncompleteReadError):
            _completed(page._answer(_received(data), is_one_too_many=False))
        return None

    return read


def _no_report() -> Any:
    return None


def _received(data: bytes) -> asyncio.StreamReader:
    """All that a client sends before it closes its end."""
    reader = asyncio.StreamReader(limits.OWNER_REQUEST_MAX_BYTES, _LOOP)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


def _trace_file(data: bytes) -> object:
    path = Path("trace.csv")
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    with contextlib.suppress(UnicodeDecodeError):  # named by `read_trace`
        return traces._trace(path, *traces._csv(path, traces._lines(path, text)))
    return None


def _tokenizer(data: bytes) -> object:
    tokenizer = Tokenizer.parse(data)
    return tokenizer.encode("a [CLS] caf\u00e9 1", tokens_max=16)


def _tokens(tokenizer_file: bytes) -> Callable[[bytes], object]:
    tokenizer = Tokenizer.parse(tokenizer_file)

    def read(data: bytes) -> object:
        # What is no UTF-8 is refused before it comes here; some of it is as good as any text.
        text = data.decode(errors="replace")
        return list(tokenizer.tokens(text)), list(tokenizer.tokens(text, names_special=False))

    return read


def _image(data: bytes) -> object:
    read_size = images._png_size if data.startswith(images._PNG_SIGNATURE) else images._jpeg_size
    width, height = read_size(data)
    images._check_size(width, height)
    return images.decode_image(data) if width * height <= PIXELS_MAX else None


def _generation_request() -> Read:
    """An item of text generation: the first byte says whether as JSON or as plain text."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.json")
        file.write_bytes(tokenizer_json())
        encoder = PromptEncoder(Tokenizer.read(file))
    chat = Chat(
        message="<|im_start|>{role}\n{content}<|im_end|>\n", answer="<|im_start|>", system=""
    )
    model = GenerationModel(context_tokens=192, rows=1, chat=chat)

    def read(data: bytes) -> object:
        media_type = "text/plain" if data[:1] == b"t" else "application/json"
        return read_request(
            data[1:], media_type, {}, model=model, encoder=encoder, vocabulary=SHAPE.vocabulary
        )

    return read


def _token_bytes_and_text(data: bytes) -> object:
    """Text of tokens that are the input's bytes, cut anywhere, with stop strings of its own."""
    cut = data[0] % 4 + 1 if data else 1
    pieces = [data[start : start + cut] for start in range(0, len(data), cut)]
    stops = tuple(stop for stop in (data[1:3].decode(errors="replace"), "ab") if stop)
    stream = TextStream(pieces, stops)
    text = "".join(stream.push(number) for number in range(len(pieces))) + stream.finish()
    assert not any(stop in text for stop in stops)
    return text


TARGETS: Final[dict[str, Target]] = {
    target.name: target
    for target in (
        *(Target(name, read, (Rejected,), weight=3) for name, read in _CODEC.items()),
        Target("dispatcher_intake", _dispatcher_intake(), is_python=True, weight=3),
        Target("vehicle_intake", _vehicle_intake(), is_python=True, weight=3),
        Target("output", _output(), is_python=True),
        Target("client_stream", _client_stream(), _STREAM_ENDS, input_max_bytes=8_192),
        Target("http_job_json", _submission(b"application/json", is_batch=False), (Refusal,)),
        Target("http_job_msgpack", _submission(MSGPACK.encode(), is_batch=False), (Refusal,)),
        Target("http_jobs_json", _submission(b"application/json", is_batch=True), (Refusal,)),
        Target("http_jobs_msgpack", _submission(MSGPACK.encode(), is_batch=True), (Refusal,)),
        Target("http_small_json", _small_bodies(b"application/json"), is_python=True),
        Target("http_small_msgpack", _small_bodies(MSGPACK.encode())),
        Target("oip_request", _oip_request, (OipError,), input_max_bytes=2_048, is_python=True),
        Target("batch_line", _batch_line, input_max_bytes=4_096, is_python=True),
        Target("oip_answer", _oip_answer, input_max_bytes=8_192, is_python=True),
        *(
            Target(f"oip_{kind}", _packed_body(kind), (OipError,), input_max_bytes=2_048)
            for kind in ("gzip", "deflate")
        ),
        Target("tensors_of_an_item", _validated_tensors, is_python=True),
        Target("tensors", _tensors, (msgspec.DecodeError, UnicodeDecodeError, RecursionError)),
        Target("onnx_file", _onnx_file, (NotOnnx,), input_max_bytes=2_048, is_python=True),
        Target("manifest", _manifest, (PackageRefused,), input_max_bytes=16_384, is_python=True),
        Target("policy", parse_policy, (PolicyError,), input_max_bytes=1_024, is_python=True),
        Target("journal_offer", _journal_rows()),
        Target("journal_chunk", _journal_chunks),
        Target("owner_socket", _owner_socket(), is_python=True),
        Target("owner_page", _owner_page(), is_python=True),
        Target("trace", _trace_file, (ConfigError,), input_max_bytes=1_024, is_python=True),
        Target("tokenizer", _tokenizer, (PackageRefused,), is_python=True),
        Target("words", _tokens(WORDS), input_max_bytes=1_024, is_python=True),
        Target("byte_pairs", _tokens(BYTE_PAIRS), input_max_bytes=1_024, is_python=True),
        Target("run_parameters", computing._parameters, input_max_bytes=8_192),
        Target(
            "generation_request",
            _generation_request(),
            (ItemFailure,),
            input_max_bytes=1_024,
            is_python=True,
        ),
        Target("token_text", _token_bytes_and_text, input_max_bytes=1_024, is_python=True),
        Target(
            "tokenizer_file",
            read_token_bytes,
            (msgspec.DecodeError, UnicodeDecodeError, RecursionError),
        ),
        Target("image", _image, (ItemFailure,), limits.ITEM_MAX_BYTES, is_python=True),
        Target("wav", decode_wav, (ItemFailure,), limits.ITEM_MAX_BYTES, is_python=True),
    )
}
