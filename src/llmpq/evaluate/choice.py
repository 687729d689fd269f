"""Log-likelihoods of continuations and multiple choice by them, through the serving kernels."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmpq.evaluate.intervals import wilson
from llmpq.evaluate.perplexity import EvaluationError, Model

_BATCH_TOKENS = 512  # in a call, padding included: enough for the kernels to work at their best, little enough for memory


@dataclass(frozen=True)
class Request:
    """Token ids of a context (at least one) and of what follows it (at least one)."""

    context: Sequence[int]
    continuation: Sequence[int]

    @property
    def read(self) -> int:
        """Tokens that the model reads: all but the last one, which is only predicted."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Answer:
    """Log-likelihood (nats) of a continuation, and whether each of its tokens was the model's first choice."""

    log_likelihood: float
    greedy: bool


@torch.inference_mode()
def log_likelihoods(model: Model, requests: Sequence[Request], progress: Callable[[int], None] | None = None) -> list[Answer]:
    """One answer per request, in their order. Requests of similar length share a call, padded on the right, where attention never looks.

    ``progress`` is called with the number of requests just finished. Raises EvaluationError when the logits are not finite.
    """
    answers: list[Answer | None] = [None] * len(requests)
    for batch in _batches(requests):
        longest = requests[batch[0]].read
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, index in enumerate(batch):
            tokens = [*requests[index].context, *requests[index].continuation][:-1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        hidden = model.hidden(ids)
        for row, index in enumerate(batch):
            answers[index] = _answer(model, hidden[row], requests[index])
        if progress is not None:
            progress(len(batch))
    return [answer for answer in answers if answer is not None]


def _batches(requests: Sequence[Request]) -> list[list[int]]:
    """Numbers of requests, longest first, in batches of at most _BATCH_TOKENS with padding (or one request)."""
    order = sorted(range(len(requests)), key=lambda index: -requests[index].read)
    batches: list[list[int]] = []
    for index in order:
        if not batches or requests[batches[-1][0]].read * (len(batches[-1]) + 1) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _answer(model: Model, hidden: Tensor, request: Request) -> Answer:
    targets = torch.tensor(request.continuation)
    first = len(request.context) - 1
    logits = torch.log_softmax(model.predict(hidden[None, first : first + len(targets)])[0], -1)
    total = float(logits.gather(1, targets[:, None]).double().sum())
    if not total == total or total == float("-inf"):
        raise EvaluationError("the model's logits are not finite; its weights are damaged, quantise them again")
    return Answer(total, bool((logits.argmax(-1) == targets).all()))


@dataclass(frozen=True)
class Question:
    """A context, the continuations to choose from, and the number of the right one."""

    context: str
    choices: tuple[str, ...]
    right: int


def multiple_choice(
    model: Model,
    encode: Callable[[str], list[int]],
    questions: Sequence[Question],
    task: str,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """An entry of ``tasks`` in a ``quality`` artifact: a question is answered by the choice of the largest log-likelihood per character.

    Characters, not tokens: the same measure for every tokenizer. ``margins`` (nats a character) says by how much the right choice is
    ahead of the best wrong one; compared question by question it tells models apart that differ in few answers.
    """
    started = time.perf_counter()
    requests = [Request(encode(question.context), encode(choice)) for question in questions for choice in question.choices]
    found = iter(log_likelihoods(model, requests, progress))
    margins = []
    for question in questions:
        scores = [next(found).log_likelihood / len(choice) for choice in question.choices]
        own = scores.pop(question.right)
        margins.append(own - max(scores))
    right = sum(margin > 0 for margin in margins)
    low, high = wilson(right, len(questions))
    return {
        "task": task,
        "accuracy": right / len(questions),
        "low": low,
        "high": high,
        "questions": len(questions),
        "chance": sum(1 / len(question.choices) for question in questions) / len(questions),
        "margins": [round(margin, 6) for margin in margins],
        "seconds": round(time.perf_counter() - started, 3),
    }
