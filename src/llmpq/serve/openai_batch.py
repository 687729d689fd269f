"""The batch format of OpenAI's API: a line in, as a request of ours; a result of ours out, as a line of theirs."""

import hashlib
from collections.abc import Mapping
from typing import Any

from llmpq.serve.request import RefusedError, is_text, shown

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LINE_KEYS = ("custom_id", "method", "url", "body")
_TAKEN = ("model", "prompt", "messages", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p", "seed")
_LIMIT_KEYS = ("max_completion_tokens", "max_tokens")  # the first counts where both are there
# Parameters that change nothing here, whatever they say.
_WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Parameters that may be there as long as they ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
}
FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


def is_line(values: Mapping[str, Any]) -> bool:
    """Whether a line's object is meant as one of this format."""
    return any(key in values for key in ("custom_id", "body", "url"))


def endpoint(values: Mapping[str, Any]) -> str:
    """The address of a line, CHAT where it has none of the two."""
    return COMPLETIONS if values.get("url") == COMPLETIONS else CHAT


def model_name(values: Mapping[str, Any]) -> str:
    """The model that a line asks for: whatever it says, the plan's is served, and the answer repeats the name."""
    body = values.get("body")
    found = body.get("model") if isinstance(body, dict) else None
    return found if isinstance(found, str) and is_text(found) else ""


def own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The line as values of llmpq.serve.request.parse, but for its id; raises RefusedError naming what is not supported."""
    unknown = [key for key in values if key not in LINE_KEYS]
    if unknown:
        raise _unsupported(unknown[0])
    if values.get("method", "POST") != "POST":
        raise RefusedError("invalid_value", "method", f"key 'method' is {shown(values['method'])}; POST is expected")
    if values.get("url") not in (CHAT, COMPLETIONS):
        raise RefusedError("invalid_value", "url", f"key 'url' is {shown(values.get('url'))}; {CHAT} or {COMPLETIONS} is expected")
    body = values.get("body")
    if not isinstance(body, dict):
        raise RefusedError("invalid_value", "body", "key 'body' is not an object; the parameters of the request are expected")
    wrong = {CHAT: "prompt", COMPLETIONS: "messages"}[values["url"]]
    for key, value in body.items():
        if value is None or key in _WITHOUT_EFFECT:
            continue
        if key == wrong or key not in (*_TAKEN, *_NEUTRAL):
            raise _unsupported(f"body.{key}")
        if key in _NEUTRAL and value not in _NEUTRAL[key]:
            only = " or ".join(map(repr, _NEUTRAL[key]))
            raise RefusedError(
                "unsupported_parameter", f"body.{key}", f"key 'body.{key}' is {shown(value)}; only {only} is supported; leave it out"
            )
    limits = [body[key] for key in _LIMIT_KEYS if body.get(key) is not None]
    prompt = body.get("prompt")
    texts = {"prompt_tokens": prompt} if isinstance(prompt, list) else {"prompt": prompt}
    same = {key: body.get(key) for key in ("messages", "stop", "temperature", "top_p", "seed")}
    return {**texts, **same, "max_new_tokens": limits[0] if limits else None}


def _unsupported(key: str) -> RefusedError:
    return RefusedError("unsupported_parameter", key, f"key '{key}' is not supported by this runtime; leave it out")


def names(values: Mapping[str, Any]) -> dict[str, str]:
    """How a line calls what we call otherwise; for messages about a key. Of the prompts, those that its address takes."""
    prompts = {"messages": "body.messages"} if values["url"] == CHAT else {"prompt": "body.prompt", "prompt_tokens": "body.prompt"}
    same = {key: f"body.{key}" for key in ("stop", "temperature", "top_p", "seed")}
    limit = next((key for key in _LIMIT_KEYS if values["body"].get(key) is not None), "max_tokens")
    return {**prompts, **same, "max_new_tokens": f"body.{limit}"}


def answer(row: Mapping[str, Any], url: str, model: str, created: int, fingerprint: str) -> dict[str, Any]:
    """The line for a finished request: ``row`` is our own line for it, ``created`` seconds since 1970, ``fingerprint`` of the weights."""
    number = _number(row["id"])
    message = {"message": {"role": "assistant", "content": row["text"]}} if url == CHAT else {"text": row["text"]}
    generated = len(row["tokens"])
    body = {
        "id": f"{'chatcmpl' if url == CHAT else 'cmpl'}-{number}",
        "object": "chat.completion" if url == CHAT else "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, **message, "logprobs": None, "finish_reason": FINISH_REASONS[row["finish_reason"]]}],
        "usage": {
            "prompt_tokens": row["prompt_tokens"],
            "completion_tokens": generated,
            "total_tokens": row["prompt_tokens"] + generated,
        },
        "system_fingerprint": f"fp_{fingerprint[:12]}",
        **({"seed": row["seed"]} if "seed" in row else {}),
    }
    response = {"status_code": 200, "request_id": f"req-{number}", "body": body}
    return {"id": f"batch_req-{number}", "custom_id": row["id"], "response": response, "error": None}


def refusal(custom_id: Any, line: int, code: str, key: str | None, message: str) -> dict[str, Any]:
    """The line for a request that was refused: status 400, and the fault where either kind of reader looks for it."""
    number = _number(f"{custom_id}/{line}")
    said = f"line {line}: {message}"
    body = {"error": {"message": said, "type": "invalid_request_error", "param": key, "code": code}}
    response = {"status_code": 400, "request_id": f"req-{number}", "body": body}
    return {"id": f"batch_req-{number}", "custom_id": custom_id, "response": response, "error": {"code": code, "message": said}}


def _number(identifier: Any) -> str:
    return hashlib.sha256(str(identifier).encode()).hexdigest()[:24]
