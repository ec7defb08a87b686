"""Valid inputs of every target: golden vectors where they fit, small ones of its own elsewhere."""

import gzip
import io
import json
import struct
import wave
import zlib
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import msgspec
import numpy as np

from edge_runtime.contract import codec
from edge_runtime.contract.package import Manifest, PackageFile
from edge_runtime.contract.tensors import Tensor, from_numpy
from edge_runtime.vehicle.models.importers.tiny_text import tokenizer_json
from edge_runtime.vehicle.policy import example_policy

GOLDEN_FOLDER: Final = Path(__file__).parents[2] / "schemas" / "golden"
CORPUS_FOLDER: Final = Path(__file__).parent / "corpus"

_GOLDEN_OF: Final[dict[str, tuple[str, ...]]] = {
    "codec_status": ("birth", "birth-empty", "offline"),
    "codec_state": ("state-full", "state-no-readings", "state-ready"),
    "codec_acks": ("acks", "acks-largest-ids"),
    "codec_results": ("results", "results-released"),
    "codec_work": ("work",),
    "codec_control": ("control", "control-answer-range", "control-rebirth-now"),
    "codec_desired": ("desired", "desired-nothing"),
    "codec_signed": ("signed-work", "signed-control"),
    "codec_host": ("host-online", "host-offline"),
    "codec_public": ("job-results", "job-status-done", "job-status-running", "fleet"),
    "codec_request": ("fetch-since", "fetch-since-start"),
}
_INTAKES: Final[dict[str, tuple[str, ...]]] = {
    "dispatcher_intake": ("codec_status", "codec_state", "codec_acks", "codec_results"),
    "vehicle_intake": ("codec_work", "codec_control", "codec_desired", "codec_host"),
}


@cache
def golden(name: str) -> bytes:
    """The bytes of one golden vector."""
    return (GOLDEN_FOLDER / f"{name}.msgpack").read_bytes()


@cache
def seeds_of(target: str) -> tuple[bytes, ...]:
    """Valid inputs of a target, and those on which it once failed."""
    folder = CORPUS_FOLDER / target
    kept = tuple(path.read_bytes() for path in sorted(folder.glob("*.bin")))
    return _valid(target) + kept


def _valid(target: str) -> tuple[bytes, ...]:
    if target in _GOLDEN_OF:
        return tuple(golden(name) for name in _GOLDEN_OF[target])
    if target in _INTAKES:
        return tuple(
            # Behind the four topics come, for a car, the same four with an envelope made for them.
            bytes([place + (4 if target == "vehicle_intake" and place < 3 else 0)]) + payload
            for place, kind in enumerate(_INTAKES[target])
            for payload in _valid(kind)
        )
    return _MADE[target]()


def _packed(*values: Any) -> tuple[bytes, ...]:
    return tuple(codec.encode(value) for value in values)


_JOB: Final[dict[str, Any]] = {
    "model": "fuzzed@1",
    "items": [{"media_type": "text/plain", "text": "abc"}, {"data": "AAEC"}],
    "parameters": {"min_score": 0.5, "names": ["a", {"b": None}]},
    "idempotency_key": "key",
    "deadline_s": 60.0,
    "priority": 3,
    "requirements": {"region": "eu", "vehicles": ["a", "b"]},
}


def _tensor_lists() -> tuple[bytes, ...]:
    x = from_numpy("x", np.ones((3, 2), np.float32))
    strings = from_numpy("s", np.array(["a", "bc"], dtype=object))
    kinds = [from_numpy("k", np.zeros(2, kind)) for kind in ("?", "u1", "<i8", "<f2", "<f8")]
    return _packed([x, strings], [*kinds, Tensor("e", "INT8", (0, 5), b"")])


def _batch_lines() -> tuple[bytes, ...]:
    bodies = {
        "/v1/embeddings": {"model": "m", "input": ["a", "b"], "encoding_format": "base64"},
        "/v1/chat/completions": {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
            "max_tokens": 3,
            "stop": ["x"],
        },
        "/v1/completions": {"model": "m", "prompt": "hi", "temperature": 0.5, "seed": 7},
    }
    return tuple(
        json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body}).encode()
        for url, body in bodies.items()
    )


def _oip_requests() -> tuple[bytes, ...]:
    """A length of two bytes, JSON, and binary tensors: `targets._oip_request` says how."""
    x: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32"}
    strings = {"name": "s", "shape": [1], "datatype": "BYTES", "data": ["abc"]}
    plain = json.dumps({"id": "1", "inputs": [x | {"data": [[1, 2], [3, 4]]}, strings]}).encode()
    size = {"parameters": {"binary_data_size": 16}}
    wants = {"outputs": [{"name": "y", "parameters": {"binary_data": True}}]}
    header = json.dumps({"inputs": [x | size, strings], **wants}).encode()
    return (
        b"\xff\xff" + plain,
        len(header).to_bytes(2, "big") + header + bytes(16),
        b"\x00\x00" + bytes(16),
    )


def _outputs() -> tuple[bytes, ...]:
    plain = _packed(
        {"detections": [{"box": [1.5, 2.5, 30.0, 40.0], "score": 0.875, "label": "face"}]},
        {"lines": [{"text": "N\u00d6TICE", "score": 0.5, "box": [[1.0, 2.0]] * 4}] * 3},
        {"datatype": "FP32", "shape": [4], "data": bytes(16)},
        [None, True, -1, 2**63, b"\x00\xff", {"": []}, {1: 2, b"k": "v"}],
        msgspec.msgpack.Ext(5, b"abc"),
    )
    return (*plain, b"\xd6\xff\x00\x00\x00\x01", b"\x81\x91\x01\x02")


def _streams() -> tuple[bytes, ...]:
    status = golden("job-status-done")
    entry = {"cursor": 1, "item": 0, "at_ms": 5, "output": {"a": [1]}, "vehicle": "car"}
    failed = {"cursor": 2, "item": 1, "at_ms": 6, "error": {"code": "model_error"}}
    feed = {"position": 9, "job": "job", "result": entry}
    problem = {"code": "busy", "message": "later", "status": 503}
    ends = codec.encode({"status": msgspec.Raw(status)}) + codec.encode({"problem": problem})
    values = b"\xc0".join(_packed(entry, failed, feed))
    return (b"\x00" + values + ends, b"\x40" + values, b"\x01" + ends)


def _images() -> tuple[bytes, ...]:
    picture = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3)
    encoded = [cv2.imencode(suffix, picture)[1].tobytes() for suffix in (".png", ".jpg")]
    progressive = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    turned = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\0\0" + turned
    jpeg = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    chunk = b"eXIf" + turned
    png = struct.pack(">I", len(turned)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return (
        *encoded,
        progressive,
        encoded[0][:33] + png + encoded[0][33:],
        encoded[1][:2] + jpeg + encoded[1][2:],
    )


_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False}
WORDS: Final = json.dumps(
    {
        "model": {
            "type": "WordPiece",
            "vocab": {
                piece: number
                for number, piece in enumerate(
                    ("[UNK]", "[CLS]", "a", "##a", "##b", "car", "##s", ".", "x", "##x")
                )
            },
        },
        "normalizer": {"type": "BertNormalizer"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {"[CLS]": {"ids": [1]}},
        },
        "added_tokens": [{"id": 1, "content": "[CLS]", "special": True}],
    }
).encode()
"""A `tokenizer.json` of words and pieces."""
BYTE_PAIRS: Final = json.dumps(
    {
        "model": {
            "type": "BPE",
            "vocab": {
                **{chr(byte): byte for byte in range(0x21, 0x7F)},
                "\u0120": 1,
                "aa": 128,
                "aaaa": 129,
                "\u0120a": 130,
                "ab": 131,
            },
            "merges": [["a", "a"], ["aa", "aa"], "\u0120 a", ["a", "b"]],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
        },
        "added_tokens": [{"id": 132, "content": "<end>", "special": True}],
    }
).encode()
"""A `tokenizer.json` of byte pairs."""
_TEXTS: Final = (
    "Cars [CLS] a.b caf\u00e9 \u4e2d\u56fd \U0001f600\n\u00adx".encode(),
    b"aaaa aab 12 'll <end>  \tx" + b"a" * 100,
)


def _wavs() -> tuple[bytes, ...]:
    made = []
    for channels, width, rate_hz in ((1, 2, 16_000), (2, 3, 44_100), (1, 1, 8_000), (3, 4, 48_000)):
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setparams((channels, width, rate_hz, 0, "NONE", ""))
            file.writeframes(bytes(range(24)) * width)
        made.append(buffer.getvalue())
    return tuple(made)


def _field(number: int, content: bytes | int) -> bytes:
    """A protobuf field under 128 bytes."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _onnx_files() -> tuple[bytes, ...]:
    tensor = _field(1, 4) + _field(2, 1) + _field(8, b"w") + _field(9, bytes(16))
    attribute = _field(1, b"value") + _field(5, tensor) + _field(20, 4)
    node = _field(2, b"y") + _field(4, b"Constant") + _field(5, attribute)
    nested = _field(1, _field(5, _field(6, _field(1, node))))
    graph = _field(1, node) + _field(5, tensor) + _field(15, _field(1, tensor))
    outside = _field(7, _field(5, tensor + _field(14, 1)))
    return (_field(1, 8) + _field(7, graph), _field(7, nested), _field(1, 8) + outside)


def _manifests() -> tuple[bytes, ...]:
    names = ("labels.txt", "model.onnx", "model.toml")
    files = tuple(PackageFile(name, 7, "a" * 64) for name in names)
    return (Manifest(files).canonical_bytes(), Manifest(files[2:]).canonical_bytes())


def _policies() -> tuple[bytes, ...]:
    schedule = b'[[schedule]]\nstart = "22:00"\nend = "06:00"\n'
    short = b"paused = true\nrequire = []\n[consent]\ngiven = true\n" + schedule
    return (short, example_policy().encode())


_BINARY_JOB: Final = {**_JOB, "items": [{"text": "abc"}, {"data": b"\x00\x01"}]}
_MADE: Final[dict[str, Any]] = {
    "output": _outputs,
    "client_stream": _streams,
    "http_job_json": lambda: (json.dumps(_JOB).encode(), b'{"model":"m","items":[{"text":""}]}'),
    "http_job_msgpack": lambda: _packed(_BINARY_JOB),
    "http_jobs_json": lambda: (json.dumps({"jobs": [_JOB, {}]}).encode(),),
    "http_jobs_msgpack": lambda: _packed({"jobs": [_BINARY_JOB, _BINARY_JOB]}, {"jobs": [1]}),
    "http_small_json": lambda: (b'{"items":[1,2]}', b'{"on":true}', b'{"name":"a.db"}', b""),
    "http_small_msgpack": lambda: _packed({"items": [1, 2]}, {"on": True}, {"name": "a.db"}),
    "oip_request": _oip_requests,
    "batch_line": _batch_lines,
    "oip_answer": lambda: (*_tensor_lists(), *_outputs()),
    "oip_gzip": lambda: (gzip.compress(b"abc" * 50, mtime=0),),
    "oip_deflate": lambda: (zlib.compress(b"abc" * 50),),
    "tensors_of_an_item": _tensor_lists,
    "tensors": _tensor_lists,
    "onnx_file": _onnx_files,
    "manifest": _manifests,
    "policy": _policies,
    "journal_offer": lambda: _packed(_OFFER),
    "journal_chunk": lambda: _packed(_CHUNK),
    "owner_socket": lambda: (b'{"ask":"report"}\n', b'{"ask":"look"}\n'),
    "owner_page": lambda: (
        b"GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n",
        b"HEAD /report.json HTTP/1.0\r\nHost: 127.0.0.1:8080\r\nAccept: */*\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: evil\r\nHost: localhost:8080\r\n\r\n",
    ),
    "trace": lambda: (
        b"utc_s,charge_percent,is_plugged\n1768777200,58,true\n1768777260,58.1,false\n",
        b'\xef\xbb\xbfutc_s,low_voltage_v\n0,"12.5"\n1.5,\n',
    ),
    "tokenizer": lambda: (WORDS, BYTE_PAIRS),
    "words": lambda: _TEXTS,
    "byte_pairs": lambda: _TEXTS,
    "run_parameters": lambda: _packed(_JOB["parameters"], {}),
    "generation_request": lambda: (
        b'j{"prompt": "the", "generated": [1, 2], "max_tokens": 9, "stop": ["a", "b"], "seed": 1}',
        b'j{"messages": [{"role": "user", "content": "<|im_end|>"}], "temperature": 0.5}',
        b'j{"prompt": [1, 2, 3], "top_p": 0.9, "top_k": 4, "ignore_eos": true}',
        "tthé end".encode(),
    ),
    "token_text": lambda: ("\x01xyone 🚗 ab two".encode(), b"\x03\xf0\x9f\x9a\x97"),
    "tokenizer_file": lambda: (tokenizer_json(),),
    "image": _images,
    "wav": _wavs,
}
_OFFER: Final = ["j", 1, [1, 2], "t", "p", "k", "a" * 64, [[0, "", b"x"]], {"a": 1}, 5, 6, 7]
_CHUNK: Final = ["chunk", "j", 1, [1, 2], "a" * 64, 0, [["ok", 0, {"a": [1]}, 0.5]]]
