"""From text to tokens, with the package's own tokenizer.

What a person says in a conversation is never read as a special token, so nobody writes another's
turn by writing its marks. The parts of a turn are therefore made into tokens one by one.
"""

from pathlib import Path

from tokenizers import Tokenizer

from edge_runtime.contract.package import PackageFault, PackageRefused
from edge_runtime.vehicle.inference.generation.request import Chat, ChatMessage


class PromptEncoder:
    """Reads `tokenizer.json`. Raises `PackageRefused` (bad_spec) for a file that is none."""

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every fault
            raise PackageRefused(PackageFault.BAD_SPEC, f"files.tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def text(self, text: str) -> list[int]:
        """Return the ids of a text, in which special tokens may be written out."""
        self._tokenizer.encode_special_tokens = False
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, chat: Chat, messages: list[ChatMessage]) -> list[int]:
        """Return the ids of a conversation; what is said in it is never a special token."""
        turns = list(messages)
        if chat.system is not None and turns[0].role != "system":
            turns.insert(0, ChatMessage(role="system", content=chat.system))
        before, _, after = chat.message.partition("{content}")
        ids: list[int] = []
        for turn in turns:
            ids += self.text(before.replace("{role}", turn.role))
            ids += self._said(turn.content)
            ids += self.text(after)
        return ids + self.text(chat.answer)

    def _said(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
