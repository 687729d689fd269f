"""Requests in vLLM's words, and its answers in ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmpq.serve.job import Settings
from llmpq.serve.output import write_results
from llmpq.serve.prompts import Prompts
from llmpq.serve.request_file import Intake
from llmpq.serve.stops import Decode, StopWatch

_ENDS = {"stop": "eos", "length": "length"}  # why a request ended, in vLLM's words and ours
_STOP = "stop"


def asked(intake: Intake) -> list[dict[str, Any]]:
    """The requests as engine.py takes them: ``prompt_tokens``, ``max_new_tokens``, and arguments of vLLM's sampling by their names."""
    found = []
    for request in intake.requests:
        sampling = {**request.get("sampling", {}), **({"stop": request["stop"]} if "stop" in request else {})}
        found.append({key: request[key] for key in ("prompt_tokens", "max_new_tokens")} | {"sampling": sampling})
    return found


def write_answers(
    path: Path, intake: Intake, answers: Sequence[Mapping[str, Any]], prompts: Prompts, options: Settings, fingerprint: str
) -> list[int]:
    """Write the results, a line for each line of the file of requests; returns how many tokens each request made."""
    finished = {request["id"]: _record(request, answer, prompts.decode) for request, answer in zip(intake.requests, answers, strict=True)}
    write_results(path, intake, finished, prompts.decode, options, fingerprint)
    return [len(record["tokens"]) for record in finished.values()]


def _record(request: Mapping[str, Any], answer: Mapping[str, Any], decode: Decode | None) -> dict[str, Any]:
    """What a journal of llmpq's own runtime has of a request. Where a stop string ends is decided as there, by the text."""
    tokens, margins = answer["tokens"], answer.get("margins")
    stopped: dict[str, Any] = {}
    if decode is not None and request.get("stop"):
        watch = StopWatch(decode, request["stop"])
        at = next((place for place, token in enumerate(tokens, start=1) if watch.push(token)), None)
        if at is not None:
            tokens, margins, stopped = tokens[:at], margins and margins[:at], {"text": watch.text, "finish_reason": _STOP}
    least = {"min_margin": None, "min_margin_token": None}
    if margins:
        least = {"min_margin": min(margins), "min_margin_token": margins.index(min(margins))}
    kept = {"margins": margins} if margins else {}
    return {"tokens": tokens, "finish_reason": _ENDS[answer["finish_reason"]], **least, **kept, **stopped}
