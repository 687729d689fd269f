"""Measurements as JSON lines, one dataclass a file: appended at once, and checked when read."""

import dataclasses
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from llmpq.errors import LlmpqError

Made = TypeVar("Made")


def append(path: Path, record: Any) -> None:
    """Add a dataclass as one line, without the optional fields that are None."""
    required = {field.name for field in dataclasses.fields(record) if field.default is dataclasses.MISSING}
    body = {name: value for name, value in dataclasses.asdict(record).items() if value is not None or name in required}
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(body, allow_nan=False) + "\n")


def read(path: Path, make: Callable[[Any], Made]) -> list[Made]:
    """What ``make`` makes of every line, oldest first; none where the file is missing.

    A line that is not JSON, or of which ``make`` says ValueError, is a LlmpqError naming file and line.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(make(json.loads(line, parse_constant=_refuse)))
        except ValueError as error:
            message = "not a complete JSON line" if isinstance(error, json.JSONDecodeError) else error
            raise LlmpqError(f"{path}: line {number}: {message}; mend or delete the line") from None
    return found


def check(body: Any, kind: type, where: str = "") -> None:
    """Keys and types as the dataclass ``kind`` has them; ValueError says which is not. ``where``: what stands before its keys."""
    if not isinstance(body, dict):
        raise ValueError(f"expected an object, found {type(body).__name__}")
    hints = get_type_hints(kind)
    for name in body:
        if name not in hints:
            raise ValueError(f"unknown key '{where}{name}'")
    for field in dataclasses.fields(kind):
        if field.name not in body:
            if field.default is dataclasses.MISSING:
                raise ValueError(f"key '{where}{field.name}' is missing")
            continue
        hint = hints[field.name]
        allowed = [get_origin(one) or one for one in (get_args(hint) if isinstance(hint, types.UnionType) else (hint,))]
        accepted = {dict if dataclasses.is_dataclass(one) else one for one in allowed} | ({int} if float in allowed else set())
        if type(body[field.name]) not in accepted:
            raise ValueError(f"key '{where}{field.name}' must be {' or '.join(_NAMES.get(one, 'an object') for one in allowed)}")


_NAMES = {str: "text", int: "a whole number", float: "a number", type(None): "null", list: "a list"}


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
