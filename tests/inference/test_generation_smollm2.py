"""SmolLM2 as a package: right answers, the graph against another way to compute it, batches."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from engine_rig import engine_rig, until_cpu_grew
from generation_rig import Told, alone, load, together
from onnx import numpy_helper

from edge_runtime.contract.package import Package, read_package
from edge_runtime.contract.reasons import StopTier
from edge_runtime.vehicle.core.events import FinishReason, RunOutcome
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.models.importers.llama_shape import LlamaShape
from edge_runtime.vehicle.models.importers.smollm2 import SHAPE
from edge_runtime.vehicle.models.importers.tiny_text import SHAPE as TINY_SHAPE
from edge_runtime.vehicle.models.importers.tiny_text import tiny_weights, write_tiny_text

EXAMPLE = Path(__file__).parents[2] / "examples" / "models" / "make_smollm2.py"
MARGIN = 1e-3
Floats = npt.NDArray[np.float32]
QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits.",
    "Why is the sky blue?",
    "Say hello in Spanish.",
    "Write a haiku about a parked car 🚗.",
    "What is two plus two?",
    "Who wrote Hamlet?",
    "Count to five.",
)


def chat(question: str, **fields: object) -> bytes:
    messages = [{"role": "user", "content": question}]
    return json.dumps({"messages": messages, **fields}).encode()


# --- another way to compute it -------------------------------------------------------------------


def forward(shape: LlamaShape, weight: Callable[[str], Floats], ids: list[int]) -> Floats:
    """The logits after the last token, in numpy alone: rotary pairs as GGUF orders them."""
    x = weight("token_embd.weight")[ids]
    size, half = shape.head_size, shape.head_size // 2
    angles = np.outer(np.arange(len(ids)), shape.rope_base ** (-np.arange(half) / half))
    cosines, sines = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def norm(rows: Floats, name: str) -> Floats:
        root = np.sqrt((rows * rows).mean(-1, keepdims=True) + shape.epsilon)
        return (rows / root * weight(name)).astype(np.float32)

    def rotate(rows: Floats) -> Floats:
        even, odd = rows[..., 0::2], rows[..., 1::2]
        pairs = (even * cosines - odd * sines, even * sines + odd * cosines)
        return np.stack(pairs, -1).reshape(rows.shape).astype(np.float32)

    future = np.triu(np.full((len(ids), len(ids)), -np.inf, np.float32), 1)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        read = norm(x, f"{block}.attn_norm.weight")
        query, key, value = (
            (read @ weight(f"{block}.attn_{kind}.weight").T).reshape(len(ids), -1, size)
            for kind in "qkv"
        )
        query, key = rotate(query), rotate(key)
        groups = shape.heads // shape.kv_heads
        key, value = np.repeat(key, groups, 1), np.repeat(value, groups, 1)
        scores = np.einsum("qhd,khd->hqk", query, key) * size**-0.5 + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", scores, value).reshape(len(ids), -1)
        x = x + seen @ weight(f"{block}.attn_output.weight").T
        read = norm(x, f"{block}.ffn_norm.weight")
        gate = read @ weight(f"{block}.ffn_gate.weight").T
        inner = gate / (1 + np.exp(-gate)) * (read @ weight(f"{block}.ffn_up.weight").T)
        x = x + inner @ weight(f"{block}.ffn_down.weight").T
    last: Floats = norm(x[-1:], "output_norm.weight")[0] @ weight("token_embd.weight").T
    return last


def logits_of(generation: Generation, ids: list[int], pieces: int) -> Floats:
    """The engine's logits after `ids`, read in several pieces."""
    decoder = generation.batch.decoder
    read = 0
    for piece in np.array_split(np.array(ids), pieces):
        logits = decoder.prefill(1, piece.tolist(), read)
        read += len(piece)
    return logits.copy()


def weights_in(package: Package) -> Callable[[str], Floats]:
    """The package's own weights under GGUF's names, back in GGUF's order of rows."""
    graph = onnx.load(str(package.path_of("model"))).graph
    arrays = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    sources = {
        "attn_output": "attention",
        "ffn_gate": "gate",
        "ffn_up": "up",
        "ffn_down": "forward",
    }
    q, kv = SHAPE.width, SHAPE.kv_heads * SHAPE.head_size
    rows = {"attn_q": (0, q), "attn_k": (q, q + kv), "attn_v": (q + kv, q + 2 * kv)}

    def interleaved(weight: Floats) -> Floats:
        half = SHAPE.head_size // 2
        return weight.reshape(-1, 2, half, SHAPE.width).swapaxes(1, 2).reshape(weight.shape)

    def weight(name: str) -> Floats:
        if name == "token_embd.weight":
            return arrays["embeddings"].astype(np.float32)
        if name in arrays:
            return arrays[name]
        layer, kind = name.split(".")[1:3]
        if kind in sources:
            return arrays[f"layer_{layer}/{sources[kind]}_fp16"].T.astype(np.float32)
        first, last = rows[kind]
        found = arrays[f"layer_{layer}/qkv_fp16"].T[first:last].astype(np.float32)
        return found if kind == "attn_v" else interleaved(found)

    return weight


@pytest.mark.parametrize("pieces", [1, 3])
def test_the_tiny_graph_computes_what_numpy_does(tmp_path: Path, pieces: int) -> None:
    generation = load(write_tiny_text(tmp_path), tmp_path)
    ids = [5, 250, 97, 97, 100, 3, 263, 0, 12, 13]
    expected = forward(TINY_SHAPE, tiny_weights, ids)
    assert logits_of(generation, ids, pieces) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def smollm2(
    model: Callable[[str], Package], tmp_path_factory: pytest.TempPathFactory
) -> Generation:
    return load(model("smollm2"), tmp_path_factory.mktemp("scratch"))


@pytest.mark.models
def test_the_graph_computes_what_numpy_does(
    smollm2: Generation, model: Callable[[str], Package]
) -> None:
    ids = list(smollm2.read(chat(QUESTIONS[0]), "application/json", {}).prompt)
    expected = forward(SHAPE, weights_in(model("smollm2")), ids)
    found = logits_of(smollm2, ids, 2)
    assert found == pytest.approx(expected, abs=2e-3)
    assert found.argmax() == expected.argmax()


@pytest.mark.models
def test_the_example_makes_the_same_package(
    model: Callable[[str], Package], models_folder: Path, tmp_path: Path
) -> None:
    made, cache = tmp_path / "models", models_folder.parent / "cache"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(made), f"--cache={cache}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"digest {model('smollm2').digest}" in done.stdout
    assert read_package(made / "smollm2").digest == model("smollm2").digest


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.models
async def test_the_capital_of_france_through_the_engine(model: Callable[[str], Package]) -> None:
    async with engine_rig() as rig:
        package, plain = model("smollm2"), "text/plain"
        run_id = rig.submit(package, [b"The capital of France is"], {"max_tokens": 4}, plain)
        chat_id = rig.submit(package, [chat(QUESTIONS[0])], {}, "application/json")
        for number in (run_id, chat_id):
            assert (await rig.ended(number)).outcome is RunOutcome.COMPLETED
        (continued,), (answered,) = (rig.outputs(n).values() for n in (run_id, chat_id))
    assert isinstance(continued, dict)
    assert isinstance(answered, dict)
    assert continued["text"].startswith(" Paris")
    assert (answered["text"], answered["finish"]) == ("The capital of France is Paris.", "stop")
    assert answered["usage"]["completion_tokens"] == len(answered["ids"]) == 7


@pytest.mark.models
async def test_a_cancel_stops_a_long_prompt_within_a_node_and_keeps_the_process(
    model: Callable[[str], Package],
) -> None:
    async with engine_rig() as rig:
        package = model("smollm2")
        await rig.ended(rig.submit(package, [b"warm"], {"max_tokens": 1}, "text/plain"))
        pid = rig.pid
        run_id = rig.submit(package, [b"and on " * 450], {"max_tokens": 64}, "text/plain")
        await rig.started(run_id, 0)
        await until_cpu_grew(pid, 2)
        rig.engine.cancel(run_id)
        ended = await rig.ended(run_id)
        assert ended.stop is not None
        assert ended.stop.tier is StopTier.TERMINATE
        assert rig.pid == pid
        again = rig.submit(package, [chat(QUESTIONS[0])], {}, "application/json")
        assert (await rig.ended(again)).outcome is RunOutcome.COMPLETED
        (answered,) = rig.outputs(again).values()
        assert isinstance(answered, dict)
        assert answered["text"] == "The capital of France is Paris."


@pytest.mark.models
def test_eight_together_say_what_each_says_alone(smollm2: Generation) -> None:
    requests = {
        (0, place): smollm2.read(chat(question), "application/json", {"max_tokens": 16})
        for place, question in enumerate(QUESTIONS)
    }
    answers = together(smollm2, requests)
    flips = []
    for key, request in requests.items():
        answer, margin = alone(smollm2, request)
        if answers[key] != answer:
            flips.append(margin)
    assert all(margin <= MARGIN for margin in flips), f"margins of those that differ: {flips}"
    assert "1. Bananas" in answers[0, 1].text


@pytest.mark.models
def test_an_emoji_whose_bytes_are_several_tokens_comes_whole(smollm2: Generation) -> None:
    # Said before, so that the model only has to copy it; on from the middle of its bytes.
    prompt = "🚗🚗🚗🚗🚗🚗🚗🚗"
    request = smollm2.read(prompt.encode(), "text/plain", {"max_tokens": 12})
    told = Told(smollm2)
    told.add((0, 0), request)
    told.finish()
    answer = told.answers[0, 0]
    assert answer.text.startswith("🚗🚗")
    assert "" in told.texts[0, 0], "a part of a character is no text yet"
    assert not any("�" in text for text in told.texts[0, 0][:-1])
    for done in range(1, len(answer.ids)):
        item = json.dumps({"prompt": prompt, "generated": answer.ids[:done], "max_tokens": 12})
        resumed = smollm2.read(item.encode(), "application/json", {})
        rest, margin = alone(smollm2, resumed)
        assert rest == answer or margin <= MARGIN
    assert answer.finish is FinishReason.LENGTH
