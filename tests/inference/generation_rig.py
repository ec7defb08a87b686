"""The tiny model in this process, and ways to run requests through a batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_runtime.contract.package import Package
from edge_runtime.vehicle.inference.generation.batch import Answer, Key
from edge_runtime.vehicle.inference.generation.request import GenerationRequest
from edge_runtime.vehicle.inference.generation.sampler import Sampling
from edge_runtime.vehicle.inference.generation.task import Generation
from edge_runtime.vehicle.inference.runtime import OrtRuntime
from edge_runtime.vehicle.inference.tasks.registry import load_task

GREEDY = Sampling()


def load(package: Package, scratch: Path) -> Generation:
    """Load a text-generation package as the worker does, without profiling its nodes."""
    runtime = OrtRuntime(provider="CPUExecutionProvider", intra_op_threads=1, scratch=scratch)
    runtime.begin_model(package.digest, 1.0)
    task = load_task(package.folder, package.spec, runtime)
    assert isinstance(task, Generation)
    return task


def asked(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    generated: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    stops: tuple[str, ...] = (),
    stop_ids: frozenset[int] = frozenset(),
) -> GenerationRequest:
    return GenerationRequest(
        prompt=tuple(prompt),
        generated=tuple(generated),
        sampling=sampling,
        stops=stops,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
    )


class Told:
    """What a batch told of each request, piece by piece."""

    def __init__(self, generation: Generation) -> None:
        self.batch = generation.batch
        self.answers: dict[Key, Answer] = {}
        self.ids: dict[Key, list[int]] = {}
        self.texts: dict[Key, list[str]] = {}
        self.margins: dict[Key, list[float]] = {}

    def add(self, key: Key, request: GenerationRequest) -> None:
        self.ids[key], self.texts[key], self.margins[key] = [], [], []
        ended = self.batch.add(key, request)
        if ended is not None and ended.answer is not None:
            self.texts[key].append(ended.text)
            self.answers[key] = ended.answer

    def step(self) -> None:
        """Read a piece of a prompt, and compute a token of everybody else."""
        for half in (self.batch.read, self.batch.decode):
            for produced in half():
                self.ids[produced.key] += produced.ids
                self.texts[produced.key].append(produced.text)
                self.margins[produced.key].append(produced.margin)
                if produced.answer is not None:
                    self.answers[produced.key] = produced.answer

    def finish(self) -> None:
        while self.batch.keys:
            self.step()


def alone(generation: Generation, request: GenerationRequest) -> tuple[Answer, float]:
    """The answer of a request that nobody shares a step with, and its least margin."""
    told = Told(generation)
    key = (0, 0)
    told.add(key, request)
    told.finish()
    return told.answers[key], min(told.margins[key], default=float("inf"))


def together(
    generation: Generation, requests: Mapping[Key, GenerationRequest]
) -> dict[Key, Answer]:
    """The answers of requests that share all steps from the first."""
    told = Told(generation)
    for key, request in requests.items():
        told.add(key, request)
    told.finish()
    return told.answers
