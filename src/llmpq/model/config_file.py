"""Checked reading of a Hugging Face config.json: every complaint names the file, the key and what was expected."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmpq.errors import LlmpqError


class ModelError(LlmpqError):
    """A checkpoint is missing, corrupt, or of a family or configuration that the decoder cannot run exactly."""


class ConfigFile:
    """The keys of one config.json. Getters raise ModelError for a missing key (unless a default is given) or a wrong type."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def read(cls, directory: str | Path, name: str = "config.json") -> "ConfigFile":
        path = Path(directory) / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ModelError(
                f"{path}: no such file; a model directory needs config.json (run `llmpq prepare` or give another path)"
            ) from None
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: not a complete JSON file ({error}); prepare or download the model again") from None
        if not isinstance(values, dict):
            raise ModelError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls(path, values)

    def refuse(self, key: str, reason: str) -> ModelError:
        """The error for a value that cannot be run exactly; the caller raises it."""
        return ModelError(f"{self.path}: key '{key}' is {self.values.get(key)!r}: {reason}")

    def _get(self, keys: str | Sequence[str], default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        names = (keys,) if isinstance(keys, str) else tuple(keys)
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise ModelError(f"{self.path}: key '{name}' is {value!r}, expected {expected}")
            return value
        if default is ...:
            raise ModelError(f"{self.path}: key '{names[0]}' is missing (expected {expected})")
        return default

    def size(self, keys: str | Sequence[str], default: Any = ..., *, missing: int | None = None) -> int:
        """A positive whole number; ``keys`` may list synonyms, the first present is read.

        ``default`` stands for null and for a missing key, ``missing``, where given, for the latter alone.
        """
        if missing is not None and isinstance(keys, str) and keys not in self.values:
            return missing
        value = self._get(keys, default, (int,), "a positive whole number")
        if value is not None and value < 1:
            raise ModelError(
                f"{self.path}: key '{keys if isinstance(keys, str) else keys[0]}' is {value}, expected a positive whole number"
            )
        return value

    def number(self, key: str, default: Any = ...) -> float:
        return self._get(key, default, (int, float), "a number")

    def flag(self, key: str, default: bool) -> bool:
        return self._get(key, default, (bool,), "true or false")

    def text(self, key: str, default: Any = ...) -> str:
        return self._get(key, default, (str,), "a string")

    def table(self, key: str) -> dict[str, Any]:
        return self._get(key, {}, (dict,), "an object")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them; empty when absent."""
        value = self._get(key, [], (int, list), "a token id or a list of token ids")
        ids = [value] if isinstance(value, int) else value
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
            raise ModelError(f"{self.path}: key '{key}' is {value!r}, expected a token id or a list of token ids")
        return tuple(ids)
