"""What is asked of a generation: prompt, tokens that are there already, and parameters.

An item is UTF-8 text (the prompt), or a JSON object (media type `application/json`):

- `prompt` (text, or token ids) or `messages` (`role` and `content` each, made into a prompt by the
  package's chat template);
- `generated`: ids that another car has generated for this request already; it goes on after them;
- any of the job's parameters, which then count for this item: `max_tokens`, `temperature`,
  `top_p`, `top_k`, `seed`, `stop` (a text or a list), `ignore_eos`.

Names are those of the OpenAI API where it has them. Everything is checked here, so that the rest
works with what it knows; whatever is wrong ends as `ItemFailure` that names field and limit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from edge_runtime.contract import limits
from edge_runtime.contract.reasons import ItemError
from edge_runtime.vehicle.inference.generation.sampler import Sampling
from edge_runtime.vehicle.inference.tasks.base import ItemFailure

JSON: Final = "application/json"

GREEDY: Final = Sampling()

_Id = Annotated[int, Meta(ge=0)]
_Stop = Annotated[str, Meta(min_length=1, max_length=limits.GENERATION_STOP_MAX_CHARS)]


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a package writes a conversation (ChatML and its like), as `model.toml` says it.

    `message` is one turn, with `{role}` and then `{content}`; `answer` begins the model's own.
    `system` is what the first turn says where the requester has none.
    """

    message: str
    answer: str
    system: str | None = None


class GenerationModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The task's constants in `model.toml`.

    `context_tokens` bounds prompt and answer together, `rows` the requests computed at once.
    `stop_ids` are the tokens with which the model says that it has ended.
    """

    context_tokens: Annotated[int, Meta(ge=2, le=limits.GENERATION_CONTEXT_MAX_TOKENS)]
    rows: Annotated[int, Meta(ge=1, le=limits.GENERATION_ROWS_MAX)]
    stop_ids: Annotated[tuple[_Id, ...], Meta(max_length=64)] = ()
    chat: Chat | None = None


class _Asked(Sampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    prompt: str | list[_Id] | None = None
    messages: (
        Annotated[list[ChatMessage], Meta(min_length=1, max_length=limits.GENERATION_MESSAGES_MAX)]
        | None
    ) = None
    generated: Annotated[tuple[_Id, ...], Meta(max_length=limits.GENERATION_NEW_MAX_TOKENS)] = ()
    max_tokens: Annotated[int, Meta(ge=1, le=limits.GENERATION_NEW_MAX_TOKENS)] | None = None
    stop: Annotated[list[_Stop], Meta(max_length=limits.GENERATION_STOPS_MAX)] | _Stop | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A request that can be computed: every id is of the vocabulary, and it fits the context.

    `max_tokens` counts `generated`, too. `stop_ids` is empty where the requester ignores them.
    """

    prompt: tuple[int, ...]
    generated: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()
    max_tokens: int
    stop_ids: frozenset[int] = frozenset()


class Encoder(Protocol):
    """Makes tokens of text."""

    def text(self, text: str, tokens_max: int) -> list[int]:
        """Return the first ids of a text, in which special tokens may be written out."""
        ...

    def chat(self, chat: Chat, messages: list[ChatMessage], tokens_max: int) -> list[int]:
        """Return the first ids of a conversation; what is said is never a special token."""
        ...


def read_request(
    data: bytes,
    media_type: str,
    parameters: Mapping[str, Any],
    *,
    model: GenerationModel,
    encoder: Encoder,
    vocabulary: int,
) -> GenerationRequest:
    """Return what an item asks for; `vocabulary` is how many tokens the model has.

    Raises `ItemFailure`: undecodable_input, input_too_large, invalid_parameters.
    """
    asked = _asked(data, media_type, parameters)
    prompt = _prompt(asked, model, encoder)
    generated = asked.generated
    for name, ids in (("prompt", prompt), ("generated", generated)):
        if any(token >= vocabulary for token in ids):
            raise ItemFailure(
                ItemError.INVALID_PARAMETERS,
                f"{name}: token {max(ids)} is not one of the model's {vocabulary}",
            )
    room = model.context_tokens - len(prompt)
    if not prompt:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, "prompt: has no tokens")
    if room < 1:
        raise ItemFailure(
            ItemError.INPUT_TOO_LARGE,
            f"prompt: has at least {len(prompt)} tokens; the limit is {model.context_tokens - 1}",
        )
    max_tokens = min(asked.max_tokens or limits.GENERATION_NEW_DEFAULT_TOKENS, room)
    if len(generated) > max_tokens:
        raise ItemFailure(
            ItemError.INVALID_PARAMETERS,
            f"generated: has {len(generated)} tokens; max_tokens leaves {max_tokens}",
        )
    stop = asked.stop or []
    return GenerationRequest(
        prompt=prompt,
        generated=generated,
        sampling=Sampling(
            temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, seed=asked.seed
        ),
        stops=(stop,) if isinstance(stop, str) else tuple(stop),
        max_tokens=max_tokens,
        stop_ids=frozenset() if asked.ignore_eos else frozenset(model.stop_ids),
    )


def _asked(data: bytes, media_type: str, parameters: Mapping[str, Any]) -> _Asked:
    if len(data) > limits.INPUT_TEXT_MAX_BYTES:
        raise ItemFailure(
            ItemError.INPUT_TOO_LARGE,
            f"the item has {len(data)} bytes; the limit is {limits.INPUT_TEXT_MAX_BYTES}",
        )
    fields = dict(parameters)
    if media_type.partition(";")[0].strip().lower() == JSON:
        fields |= _fields_of(data)
    else:
        try:
            fields["prompt"] = data.decode()
        except UnicodeDecodeError as error:
            raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"not UTF-8: {error}") from error
    for name, value in fields.items():
        # A comparison with NaN is false, whatever the bound: none of them would notice.
        if isinstance(value, float) and not math.isfinite(value):
            raise ItemFailure(ItemError.INVALID_PARAMETERS, f"{name[:64]}: {value} is no number")
    try:
        return msgspec.convert(fields, _Asked)
    except msgspec.ValidationError as error:
        raise ItemFailure(ItemError.INVALID_PARAMETERS, f"parameters: {error}") from error


def _fields_of(data: bytes) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ItemFailure(ItemError.UNDECODABLE_INPUT, "not a JSON object")
    return fields


def _prompt(asked: _Asked, model: GenerationModel, encoder: Encoder) -> tuple[int, ...]:
    if (asked.prompt is None) == (asked.messages is None):
        raise ItemFailure(
            ItemError.UNDECODABLE_INPUT, "an item has either a prompt or messages, and not both"
        )
    if asked.messages is not None:
        if model.chat is None:
            raise ItemFailure(
                ItemError.INVALID_PARAMETERS, "messages: this model has no chat template"
            )
        return tuple(encoder.chat(model.chat, asked.messages, model.context_tokens))
    if isinstance(asked.prompt, str):
        return tuple(encoder.text(asked.prompt, model.context_tokens))
    return tuple(asked.prompt or ())
