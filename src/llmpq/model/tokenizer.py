"""The checkpoint's tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from llmpq.errors import LlmpqError


def load_tokenizer(checkpoint_dir: str | Path) -> Tokenizer:
    """The checkpoint's fast tokenizer; special tokens are added only where a caller asks for them.

    Raises LlmpqError where it is missing or no tokenizer.
    """
    path = Path(checkpoint_dir) / "tokenizer.json"
    if not path.is_file():
        raise LlmpqError(f"{path}: no such file; prepare the model (llmpq prepare), or save a fast tokenizer beside it")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise LlmpqError(f"{path}: not a tokenizer ({error}); prepare the model again") from None
