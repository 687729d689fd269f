"""What Hydra and OmegaConf say about a mistake, in one line for the user."""

import dataclasses
import re


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's message in one line, without the lines that speak of Python objects and search paths."""
    cause = error.__cause__ if error.__cause__ is not None and type(error).__name__ == "ConfigCompositionException" else error
    full_key = getattr(cause, "full_key", None)
    text = str(cause).split("\nConfig search path:")[0]
    dropped = ("full_key:", "reference_type=", "object_type=", "Set the env variable", "See https")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(dropped)]
    text = re.sub(r":;? ", ": ", ", ".join(lines), count=1) if "Available options" in text else " ".join(lines)
    text = text.replace(":,", ":").removeprefix("In 'config': ").removeprefix("LexerNoViableAltException: ")
    parent = getattr(cause, "object_type", None)
    if "not in" in text and dataclasses.is_dataclass(parent):
        text += f"; known: {', '.join(each.name for each in dataclasses.fields(parent))}"
    return f"key '{full_key}': {text}" if full_key and str(full_key) not in text else text
