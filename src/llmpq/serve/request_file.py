"""Files of requests: the workload artifact, or JSON lines in our own form or OpenAI's, read line by line, bad lines set aside."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.model.spec import ModelSpec
from llmpq.progress import time_left
from llmpq.serve import openai_batch
from llmpq.serve.job import check_requests
from llmpq.serve.prompts import Prompts
from llmpq.serve.request import KEYS, Limits, RefusedError, checked_id, parse

PROGRESS_S = 5.0  # seconds between two lines about a long file
_BOM = b"\xef\xbb\xbf"
_SNIFFED = 1 << 20  # bytes of the first line that are looked at to tell an artifact from JSON lines


class Origin(NamedTuple):
    """Where a request came from: its line and, in OpenAI's form, its address and the name of the model it asks for."""

    line: int
    url: str | None = None
    model: str = ""


@dataclass(frozen=True)
class Refusal:
    """A line that cannot be served. ``id`` is None where it has none of use; ``openai`` None where its form cannot be told."""

    line: int
    id: str | int | None
    code: str
    key: str | None
    message: str
    openai: bool | None


@dataclass
class Intake:
    """What a file asks for. ``sha256`` is over all that decides the tokens of its good requests; ``origins`` are theirs, by id."""

    requests: Sequence[Mapping[str, Any]]
    sha256: str
    ignore_eos: bool = False
    artifact: bool = False
    origins: dict[str | int, Origin] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    openai: bool = False  # the form of the first line whose form can be told

    def reasons(self) -> dict[str, int]:
        """How many lines were refused, by kind of fault."""
        return dict(sorted(Counter(refusal.code for refusal in self.refusals).items()))


def is_artifact(path: Path) -> bool:
    """Whether ``path`` is a workload artifact: one JSON object over many lines, or one with a schema; else it holds JSON lines."""
    if path.exists() and not path.is_file():
        raise ArtifactError(f"{path}: not a regular file, and it is read more than once; write the requests to a file and give that")
    try:
        with path.open("rb") as file:
            first = next((line for line in iter(lambda: file.readline(_SNIFFED), b"") if line.strip()), b"")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; give a workload artifact or JSON lines, one request a line") from None
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        found = json.loads(first.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return path.suffix == ".json"
    return isinstance(found, dict) and "schema" in found


def read_artifact(path: Path, spec: ModelSpec) -> Intake:
    """The requests of a workload artifact, all of which must be good; raises ArtifactError, ServeError."""
    workload = artifacts.read(path, "workload")
    check_requests(workload["requests"], spec, path)
    return Intake(workload["requests"], artifacts.body_digest(workload), workload.get("ignore_eos", False), artifact=True)


def read_lines(path: Path, prompts: Prompts, limits: Limits, say: Callable[[str], None]) -> Intake:
    """The requests of a file of JSON lines; of the file, token ids and parameters are kept, and what is wrong with bad lines.

    Raises ArtifactError where not one line can be served.
    """
    intake, digest = _Reader(prompts, limits), hashlib.sha256()
    start = told = time.monotonic()
    with path.open("rb") as file:
        for number, line in _lines(file):
            intake.take(number, line)
            if (now := time.monotonic()) - told >= PROGRESS_S:
                told = now
                say(f"{path}: {number} lines read, {time_left(now - start, file.tell(), path.stat().st_size)}")
    for request in intake.requests:
        digest.update(json.dumps(request, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    if not intake.requests:
        if not intake.refusals:
            raise ArtifactError(f'{path}: has no requests; write one a line, for example {{"prompt": "Once upon a time"}}')
        first = intake.refusals[0]
        what = f"not one of its {len(intake.refusals)} requests can be served; the first fault: line {first.line}: {first.message}"
        raise ArtifactError(f"{path}: {what}")
    forms = [(origin.line, origin.url is not None) for origin in intake.origins.values()]
    forms += [(refusal.line, refusal.openai) for refusal in intake.refusals if refusal.openai is not None]
    return Intake(intake.requests, digest.hexdigest(), False, False, intake.origins, intake.refusals, min(forms)[1])


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not blank."""
    for number, line in enumerate(iter(file.readline, b""), start=1):
        content = (line.removeprefix(_BOM) if number == 1 else line).strip()
        if content:
            yield number, content


class _Reader:
    """Sorts lines into requests and refusals."""

    def __init__(self, prompts: Prompts, limits: Limits) -> None:
        self._prompts, self._limits = prompts, limits
        self._seen: dict[str | int, int] = {}
        self.requests: list[Any] = []
        self.origins: dict[str | int, Origin] = {}
        self.refusals: list[Refusal] = []

    def take(self, number: int, line: bytes) -> None:
        openai: bool | None = None
        identifier: str | int | None = None
        try:
            values = _object(line)
            openai = openai_batch.is_line(values)
            key = "custom_id" if openai else "id"
            given = None if values.get(key) is None else checked_id(values[key], key)
            if openai and not isinstance(given, str):
                raise RefusedError("invalid_value", key, f"key '{key}' is missing or not a text; answers are told apart by it")
            identifier = f"line-{number}" if given is None else given
            if identifier in self._seen:
                raise RefusedError(
                    "duplicate_id", key, f"key '{key}': {identifier!r} is the id of line {self._seen[identifier]} too; ids differ"
                )
            self._seen[identifier] = number
            self._accept(number, identifier, values, openai)
        except RefusedError as error:
            message, at = _writable(str(error), 500), None if error.key is None else _writable(error.key, 100)
            self.refusals.append(Refusal(number, identifier, error.code, at, message, openai))

    def _accept(self, number: int, identifier: str | int, values: dict[str, Any], openai: bool) -> None:
        if openai:
            own = openai_batch.own_values(values)
            origin = Origin(number, openai_batch.endpoint(values), openai_batch.model_name(values))
            names: Mapping[str, str] = openai_batch.names(values)
        else:
            unknown = next((key for key in values if key not in KEYS), None)
            if unknown is not None:
                raise RefusedError("unsupported_parameter", unknown, f"key '{unknown}' is unknown; known: {', '.join(KEYS)}")
            own, origin, names = values, Origin(number), {}
        self.requests.append(parse(own, identifier, self._prompts, self._limits, names))
        self.origins[identifier] = origin


def _writable(text: str, most: int) -> str:
    """A text that can be written as UTF-8, of at most ``most`` characters: a line's own keys can be of any length."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]} …"


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; raises RefusedError."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedError("invalid_utf8", None, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    try:
        values = json.loads(text)
    except RecursionError:
        raise RefusedError("invalid_json", None, "the JSON is nested too deeply; write a request as one flat object") from None
    except ValueError as error:
        raise RefusedError("invalid_json", None, f"not JSON ({error}); write each request as one object on a line of its own") from None
    if not isinstance(values, dict):
        raise RefusedError("invalid_json", None, f"a JSON object is expected, found {type(values).__name__}")
    return values
