"""From what a request says to the token ids of its prompt: text and messages go through the checkpoint's tokenizer and template."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from llmpq.errors import LlmpqError
from llmpq.model.chat import ChatError, ChatTemplate
from llmpq.model.tokenizer import load_tokenizer


class Prompts:
    """The tokenizer and the chat template of ``checkpoint_dir``; either may be missing as long as no request needs it.

    Raises LlmpqError for a tokenizer.json that is none.
    """

    def __init__(self, checkpoint_dir: str | Path) -> None:
        self._directory = Path(checkpoint_dir)
        self._tokenizer = load_tokenizer(checkpoint_dir) if (self._directory / "tokenizer.json").exists() else None
        self._template: ChatTemplate | ChatError | None = None

    @property
    def decode(self) -> Callable[[Sequence[int]], str] | None:
        """From token ids to text, special tokens left out; None if the checkpoint has no tokenizer."""
        return self._tokenizer.decode if self._tokenizer is not None else None

    def of_text(self, text: str) -> list[int]:
        """``text`` with the special tokens that the tokenizer puts around every text (a BOS of Llama 2, say)."""
        return list(self._needed().encode(text, add_special_tokens=True).ids)

    def of_messages(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """``messages`` through the chat template, which has its own special tokens. Raises ChatError where it refuses them."""
        tokenizer = self._needed()
        if self._template is None:
            try:
                self._template = ChatTemplate.from_directory(self._directory)
            except ChatError as error:
                self._template = error
        if isinstance(self._template, ChatError):
            raise self._template
        return list(tokenizer.encode(self._template.render(messages), add_special_tokens=False).ids)

    def _needed(self) -> Tokenizer:
        if self._tokenizer is None:
            raise LlmpqError(f"{self._directory} has no tokenizer.json, so text cannot be read; give prompt_tokens")
        return self._tokenizer
