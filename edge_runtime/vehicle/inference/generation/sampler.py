"""Chooses the next token: the likeliest, or one drawn with noise that any car can repeat.

Invariants
- The choice depends on the logits, the request's own parameters, its seed and the token's
  absolute position (counted from the prompt's first token) only: not on neighbours in a batch,
  nor on what was drawn before. A request that goes on elsewhere goes on the same.
- Noise is Gumbel noise, one number per token of the vocabulary: the choice is the largest of
  `logit / temperature + noise` (Gumbel-max, which draws from softmax(logit / temperature)). So a
  difference in the last digits changes a choice only where two sums are that close.
"""

from typing import Annotated, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.tasks.base import ItemFailure

Logits = npt.NDArray[np.float32]

_LIKELY: Final = 512
"""Tokens among which `top_p` is looked for first; the whole vocabulary only where they fail."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen; temperature 0 is greedy, and then nothing else matters."""

    temperature: Annotated[float, Meta(ge=0, le=limits.GENERATION_TEMPERATURE_MAX)] = 0.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)] = 0
    seed: Annotated[int, Meta(ge=0, le=limits.COUNT_MAX)] = 0


class Choice(NamedTuple):
    """A token, and by how much its score beat the second best (infinite where there is none)."""

    token: int
    margin: float


def choose(logits: Logits, sampling: Sampling, position: int) -> Choice:
    """Return the next token for one row of logits, shape [vocabulary].

    Raises `ItemFailure` (model_error) where they are no numbers. A token at -infinity is never
    chosen.
    """
    # The largest of numbers with a NaN among them is NaN.
    if not np.isfinite(top := float(logits.max())):
        raise ItemFailure(ItemError.MODEL_ERROR, f"the model's best logit is {top}")
    if sampling.temperature == 0.0:
        return _best(logits)
    scores = np.asarray(logits, np.float64) / sampling.temperature
    kept = _kept(scores, sampling)
    noise = np.random.Generator(
        np.random.Philox(key=sampling.seed, counter=[0, 0, 0, position])
    ).random(scores.size)
    drawn = scores[kept] - np.log(-np.log(np.clip(noise[kept], 1e-300, 1 - 1e-16)))
    place, margin = _best(drawn)
    return Choice(int(kept[place]), margin)


def _best(scores: npt.NDArray[np.floating]) -> Choice:
    token = int(scores.argmax())
    rest = (scores[:token], scores[token + 1 :])
    second = max((float(part.max()) for part in rest if part.size), default=-np.inf)
    return Choice(token, float(scores[token]) - second)


def _kept(scores: npt.NDArray[np.float64], sampling: Sampling) -> npt.NDArray[np.int64]:
    """Return the tokens that `top_k` and then `top_p` leave, as the OpenAI API words them."""
    size = scores.size
    if 0 < sampling.top_k < size:
        kept = _largest(scores, sampling.top_k)
    elif sampling.top_p < 1.0:
        kept = _largest(scores, min(size, _LIKELY))
        if not _is_enough(scores, kept, sampling.top_p):
            kept = _largest(scores, size)
    else:
        return np.arange(size)
    if sampling.top_p < 1.0:
        weights = np.exp(scores[kept] - scores[kept[0]])
        total = weights.sum() if sampling.top_k else np.exp(scores - scores[kept[0]]).sum()
        reached = np.cumsum(weights) >= sampling.top_p * total
        count = int(reached.argmax()) + 1 if reached.any() else kept.size
        kept = kept[:count]
    return kept


def _largest(scores: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """Return the `count` best tokens, best first; of equals the one with the smaller number."""
    if count < scores.size:
        found = np.argpartition(-scores, count - 1)[:count]
    else:
        found = np.arange(scores.size)
    return found[np.lexsort((found, -scores[found]))]


def _is_enough(scores: npt.NDArray[np.float64], kept: npt.NDArray[np.int64], top_p: float) -> bool:
    top = scores[kept[0]]
    return bool(np.exp(scores[kept] - top).sum() >= top_p * np.exp(scores - top).sum())
