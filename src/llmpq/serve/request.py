"""One request as a line of a file writes it, checked: what is served, or why it is refused."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from llmpq.errors import LlmpqError
from llmpq.serve.prompts import Prompts

KEYS = ("id", "prompt", "prompt_tokens", "messages", "max_new_tokens", "stop", "temperature", "top_p", "seed")
PROMPT_KEYS = ("prompt", "prompt_tokens", "messages")
MESSAGE_KEYS = ("role", "content", "name")
MAX_TEMPERATURE = 100.0
MAX_STOPS = 16


class SamplingValues(TypedDict):
    """How a request that is not greedy chooses: temperature above 0, top_p in (0, 1], seed as a signed 64-bit number."""

    temperature: float
    top_p: float
    seed: int


class Request(TypedDict):
    """What a stage gets to serve. Without ``sampling`` it is greedy; ``stop`` are strings that end its text."""

    id: str | int
    prompt_tokens: list[int]
    max_new_tokens: int
    sampling: NotRequired[SamplingValues]
    stop: NotRequired[list[str]]


class RefusedError(Exception):
    """A request that cannot be served; ``code`` is the kind of fault, ``key`` where it is, the message what to do."""

    def __init__(self, code: str, key: str | None, message: str) -> None:
        super().__init__(message)
        self.code, self.key = code, key


@dataclass(frozen=True)
class Limits:
    """What this run can take: ids below ``vocab``, prompt and new tokens up to ``tokens`` together (``tokens_why`` says what sets it),
    ``max_new_tokens`` for requests that name none, and the ``seed`` of the run, from which requests without one get theirs."""

    vocab: int
    tokens: int
    tokens_why: str
    max_new_tokens: int
    seed: int


def parse(values: Mapping[str, Any], identifier: str | int, prompts: Prompts, limits: Limits, names: Mapping[str, str]) -> Request:
    """The request that ``values`` (some of KEYS) describe; raises RefusedError. ``names`` says how the file calls a key."""

    def refuse(key: str, message: str, code: str = "invalid_value") -> RefusedError:
        name = names.get(key, key)
        return RefusedError(code, name, f"key '{name}' {message}")

    possible = dict.fromkeys(names.get(key, key) for key in PROMPT_KEYS if not names or key in names)
    tokens = _prompt(values, prompts, limits, refuse, list(possible))
    room = limits.tokens - len(tokens)
    wanted = values.get("max_new_tokens")
    if wanted is None:
        wanted = max(1, min(limits.max_new_tokens, room))
    elif not _is_integer(wanted) or wanted < 1:
        raise refuse("max_new_tokens", f"is {shown(wanted)}; a whole number of at least 1 is expected")
    if wanted > room:
        total = f"prompt ({len(tokens)}) and new tokens ({shown(wanted)}) are more than {limits.tokens} together, {limits.tokens_why}"
        raise RefusedError("too_long", names.get("max_new_tokens", "max_new_tokens"), f"{total}; shorten one of them")
    request: Request = {"id": identifier, "prompt_tokens": tokens, "max_new_tokens": wanted}
    sampling = _sampling(values, identifier, limits, refuse)
    if sampling is not None:
        request["sampling"] = sampling
    stops = _stops(values.get("stop"), prompts, refuse)
    if stops:
        request["stop"] = stops
    return request


def derived_seed(run_seed: int, identifier: str | int) -> int:
    """The seed of a request that names none: decided by the run's and its id (a number and its digits differ), 63 bits."""
    kind = "number" if isinstance(identifier, int) else "text"
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{kind}/{identifier}".encode()).digest()[:8], "big") >> 1


def checked_id(value: Any, key: str) -> str | int:
    """``value`` if it can be an id; raises RefusedError."""
    if _is_integer(value) and abs(value) < 2**63:
        return int(value)
    if isinstance(value, str) and value and is_text(value):
        return value
    raise RefusedError("invalid_value", key, f"key '{key}' is {shown(value)}; an id is a text that is not empty, or a whole number")


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: JSON's escapes can make halves of characters, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prompt(values: Mapping[str, Any], prompts: Prompts, limits: Limits, refuse: Any, possible: Sequence[str]) -> list[int]:
    given = [key for key in PROMPT_KEYS if values.get(key) is not None]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has no prompt"
        raise RefusedError("invalid_value", None, f"the request {found}; give {' or '.join(possible)}, and only one")
    key, value = given[0], values[given[0]]
    try:
        if key == "prompt":
            if not isinstance(value, str) or not is_text(value):
                raise refuse(key, f"is {shown(value)}; a text is expected")
            tokens = prompts.of_text(value) if value else []
        elif key == "messages":
            tokens = prompts.of_messages(_messages(value, refuse))
        else:
            tokens = _token_ids(value, limits.vocab, refuse)
    except LlmpqError as error:
        raise refuse(key, f"cannot be read: {error}") from None
    if not tokens:
        raise refuse(key, "is empty; a prompt has at least one token", "empty_prompt")
    if max(tokens) >= limits.vocab:
        raise refuse(
            key,
            f"gives token {max(tokens)}, the model's vocabulary has {limits.vocab}: the tokenizer is another model's",
            "token_out_of_range",
        )
    return tokens


def _token_ids(value: Any, vocab: int, refuse: Any) -> list[int]:
    if not isinstance(value, list) or not all(map(_is_integer, value)):
        raise refuse("prompt_tokens", f"is {shown(value)}; a list of token ids is expected")
    wrong = next((token for token in value if not 0 <= token < vocab), None)
    if wrong is not None:
        raise refuse("prompt_tokens", f"has token {shown(wrong)}, the model's vocabulary is 0 to {vocab - 1}", "token_out_of_range")
    return value


def _messages(value: Any, refuse: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise refuse("messages", f"is {shown(value)}; a list of objects with role and content is expected")
    if not value:
        raise refuse("messages", "is empty; a prompt has at least one message", "empty_prompt")
    checked = []
    for number, message in enumerate(value):
        unknown = [key for key in message if key not in MESSAGE_KEYS and message[key] is not None]
        if unknown:
            what = f"has '{unknown[0]}' in message {number}; only {', '.join(MESSAGE_KEYS)} are supported"
            raise refuse("messages", what, "unsupported_parameter")
        read = {key: _content(message[key]) if key == "content" else message[key] for key in MESSAGE_KEYS if message.get(key) is not None}
        wrong = next((key for key in ("role", "content", *read) if not isinstance(read.get(key), str) or not is_text(read[key])), None)
        if wrong is not None:
            raise refuse("messages", f"has {shown(message.get(wrong))} as {wrong} of message {number}; a text is expected")
        checked.append(read)
    return checked


def _content(value: Any) -> Any:
    """The content of a message: a text, or a list of text parts (joined); anything else comes back as it is."""
    parts = value if isinstance(value, list) else None
    if parts and all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return value


def _sampling(values: Mapping[str, Any], identifier: str | int, limits: Limits, refuse: Any) -> SamplingValues | None:
    temperature, top_p, seed = (values.get(key) for key in ("temperature", "top_p", "seed"))
    temperature, top_p = 0.0 if temperature is None else temperature, 1.0 if top_p is None else top_p
    if not _is_number(temperature) or not 0 <= temperature <= MAX_TEMPERATURE:
        raise refuse("temperature", f"is {shown(temperature)}; a number from 0 (greedy) to {MAX_TEMPERATURE:g} is expected")
    if not _is_number(top_p) or not 0 < top_p <= 1:
        raise refuse("top_p", f"is {shown(top_p)}; a number above 0, up to 1 (all tokens) is expected")
    if seed is not None and (not _is_integer(seed) or not -(2**63) <= seed < 2**63):
        raise refuse("seed", f"is {shown(seed)}; a whole number of up to 64 bits is expected")
    if temperature == 0:
        return None
    return {
        "temperature": float(temperature),
        "top_p": float(top_p),
        "seed": derived_seed(limits.seed, identifier) if seed is None else seed,
    }


def _stops(value: Any, prompts: Prompts, refuse: Any) -> list[str]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(stop, str) and stop and is_text(stop) for stop in stops):
        raise refuse("stop", f"is {shown(value)}; a text that is not empty, or a list of up to {MAX_STOPS} of them, is expected")
    if stops and prompts.decode is None:
        raise refuse("stop", "needs text, and the checkpoint has no tokenizer.json; leave it out", "unsupported_parameter")
    return stops


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def shown(value: Any) -> str:
    """A value in a message: short, and writable whatever it holds."""
    try:
        text = f"an object of {len(value)} entries" if isinstance(value, (dict, list)) and len(value) > 8 else repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of too many digits
        return "too long or too deep to be shown"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:60]} …"
