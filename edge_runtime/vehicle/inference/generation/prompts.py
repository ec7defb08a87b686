"""From text to tokens, with the package's own tokenizer.

What a person says in a conversation is never read as a special token, so nobody writes another's
turn by writing its marks. The parts of a turn are therefore made into tokens one by one. No more
tokens are made than are asked for: others' steps wait meanwhile.
"""

from collections.abc import Iterator
from itertools import islice

from edge_runtime.vehicle.inference.generation.request import Chat, ChatMessage
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer


class PromptEncoder:
    """`Encoder` of `request`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, text: str, tokens_max: int) -> list[int]:
        """Return the first ids of a text, in which special tokens may be written out."""
        return list(islice(self._tokenizer.tokens(text), tokens_max))

    def chat(self, chat: Chat, messages: list[ChatMessage], tokens_max: int) -> list[int]:
        """Return the first ids of a conversation; what is said is never a special token."""
        return list(islice(self._said(chat, messages), tokens_max))

    def _said(self, chat: Chat, messages: list[ChatMessage]) -> Iterator[int]:
        turns = list(messages)
        if chat.system is not None and turns[0].role != "system":
            turns.insert(0, ChatMessage(role="system", content=chat.system))
        before, _, after = chat.message.partition("{content}")
        for turn in turns:
            yield from self._tokenizer.tokens(before.replace("{role}", turn.role))
            yield from self._tokenizer.tokens(turn.content, names_special=False)
            yield from self._tokenizer.tokens(after)
        yield from self._tokenizer.tokens(chat.answer)
