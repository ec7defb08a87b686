"""From text to tokens, with the package's own tokenizer.

What a person says in a conversation is never read as a special token, so nobody writes another's
turn by writing its marks. The parts of a turn are therefore made into tokens one by one.
"""

from edge_runtime.vehicle.inference.generation.request import Chat, ChatMessage
from edge_runtime.vehicle.inference.tokenizing.tokenizer import Tokenizer


class PromptEncoder:
    """`Encoder` of `request`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(self, text: str) -> list[int]:
        """Return the ids of a text, in which special tokens may be written out."""
        return list(self._tokenizer.tokens(text))

    def chat(self, chat: Chat, messages: list[ChatMessage]) -> list[int]:
        """Return the ids of a conversation; what is said in it is never a special token."""
        turns = list(messages)
        if chat.system is not None and turns[0].role != "system":
            turns.insert(0, ChatMessage(role="system", content=chat.system))
        before, _, after = chat.message.partition("{content}")
        ids: list[int] = []
        for turn in turns:
            ids += self.text(before.replace("{role}", turn.role))
            ids += self._tokenizer.tokens(turn.content, names_special=False)
            ids += self.text(after)
        return ids + self.text(chat.answer)
