"""The checkpoint's tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from llmpq.errors import LlmpqError, first_line
from llmpq.model.config_file import ModelError

_SLOW_FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


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


def make_fast(directory: Path) -> None:
    """Write tokenizer.json from the older files of a tokenizer (OPT has vocab.json and merges.txt), as transformers converts them.

    No code that a model brings is run. Raises ModelError where there are no such files or they cannot be converted.
    """
    advice = "save the tokenizer with transformers (fast tokenizer) beside the model"
    if not any((directory / name).is_file() for name in _SLOW_FILES):
        raise ModelError(f"{directory}: there is no tokenizer.json; {advice}")
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        found.backend_tokenizer.save(str(directory / "tokenizer.json"))
    except Exception as error:  # of many kinds, all meaning: these files do not make a tokenizer
        raise ModelError(f"{directory}: its tokenizer files do not make a fast tokenizer ({first_line(error)}); {advice}") from None
