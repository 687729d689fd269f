"""The results of a run: where its files go, and one line for each request, served or refused, in the form that it came in."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.errors import ServeError
from llmpq.serve import openai_batch
from llmpq.serve.job import Settings
from llmpq.serve.request_file import Intake, Refusal
from llmpq.serve.stops import Decode

LINE_SUFFIXES = (".jsonl", ".ndjson")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """One clear message for a folder or a disk that refuses what is written here; other errors of the system are not its fault."""
    try:
        yield
    except OSError as error:
        raise ServeError(f"{error.filename or out}: cannot be written: {error.strerror}") from None


@dataclass(frozen=True)
class Outputs:
    """Where a run writes: ``results``, ``serve``, ``timeline`` and ``simulated`` are files, ``journal`` and ``logs`` folders."""

    results: Path
    serve: Path
    timeline: Path
    simulated: Path
    journal: Path
    logs: Path

    @classmethod
    def at(cls, out: Path, requests: Path) -> "Outputs":
        """``out`` is a folder, or a file of JSON lines (by its suffix), beside which the others then lie under its name.

        Raises ServeError where the results would overwrite ``requests``.
        """
        if out.suffix in LINE_SUFFIXES and not out.is_dir():
            ends = (".serve.json", ".timeline.json", ".simulated.json", ".journal", ".logs")
            places = [out, *(out.with_suffix(end) for end in ends)]
        else:
            places = [out / name for name in ("requests.jsonl", "serve.json", "timeline.json", "simulated.json", "journal", "logs")]
        for place in places[:4]:
            if place.exists() and requests.exists() and place.samefile(requests):
                raise ServeError(f"{place}: these are the requests themselves, the results would overwrite them; choose another --out")
        return cls(*places)


def write_results(
    path: Path, intake: Intake, finished: Mapping[Any, Mapping[str, Any]], decode: Decode | None, settings: Settings, fingerprint: str
) -> None:
    """One line for each line of the file of requests.

    ``finished`` are the journal's records by id, in the order in which they finished; ``decode`` turns token ids into text (without it
    ``text`` is null); ``fingerprint`` is the digest of the weights. ``settings.margins`` adds every token's top-2 margin; in the
    ``settings.order`` finished refused requests come first: they were known before the first token.
    """
    created = int(time.time())
    by_id = {request["id"]: request for request in intake.requests}

    def served(identifier: str | int) -> dict[str, Any]:
        row = _row(by_id[identifier], finished[identifier], decode, settings.margins)
        origin = intake.origins.get(identifier)
        if origin is None or origin.url is None:
            return row
        return openai_batch.answer(row, origin.url, origin.model, created, fingerprint)

    def in_request_order() -> Iterator[dict[str, Any]]:
        waiting = iter(intake.refusals)
        refusal = next(waiting, None)
        for request in intake.requests:
            while refusal is not None and refusal.line < intake.origins[request["id"]].line:
                yield _refused(refusal, intake.openai)
                refusal = next(waiting, None)
            yield served(request["id"])
        while refusal is not None:
            yield _refused(refusal, intake.openai)
            refusal = next(waiting, None)

    def as_finished() -> Iterator[dict[str, Any]]:
        yield from (_refused(refusal, intake.openai) for refusal in intake.refusals)
        yield from (served(identifier) for identifier in finished)

    with artifacts.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for line in in_request_order() if settings.order == "request" else as_finished():
            file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _row(request: Mapping[str, Any], record: Mapping[str, Any], decode: Decode | None, margins: bool) -> dict[str, Any]:
    """Our own line: id, prompt_tokens (count), tokens, text, finish_reason, seed (if any), min_margin, min_margin_token.

    ``tokens`` are all that were generated; where a stop string ended them, ``text`` ends before it.
    """
    text = record["text"] if "text" in record else decode(record["tokens"]) if decode else None
    return {
        "id": request["id"],
        "prompt_tokens": len(request["prompt_tokens"]),
        "tokens": record["tokens"],
        "text": text,
        "finish_reason": record["finish_reason"],
        **({"seed": request["sampling"]["seed"]} if "sampling" in request else {}),
        "min_margin": record["min_margin"],
        "min_margin_token": record["min_margin_token"],
        **({"margins": record["margins"]} if margins else {}),
    }


def _refused(refusal: Refusal, openai: bool) -> dict[str, Any]:
    if openai if refusal.openai is None else refusal.openai:
        return openai_batch.refusal(refusal.id, refusal.line, refusal.code, refusal.key, refusal.message)
    error = {"code": refusal.code, "key": refusal.key, "message": f"line {refusal.line}: {refusal.message}"}
    return {"id": refusal.id, "line": refusal.line, "error": error}
