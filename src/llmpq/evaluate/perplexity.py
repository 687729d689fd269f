"""Perplexity of exactly the weights that are served, through the very kernels that serve them, and how far they are from 16 bit.

Each window of a text starts fresh. Its last ``stride`` tokens are scored, those before them are context only; with a stride of a whole
window all but the first token are scored, which has no context. The perplexity is exp of the mean negative log-likelihood per scored
token. Beside a reference (the 16-bit model, llmpq.evaluate.reference), two figures say how far its predictions are away at
the same tokens: the divergence KL(p ‖ q) in nats, p of the reference, and the share of tokens at which both think the same one likeliest.

Standard error and 95 % interval are taken over windows, because tokens of one window are not independent: Student's interval of the
windows' means, for the perplexity that of the mean log-loss, exponentiated. Windows that overlap (a stride shorter than the window)
score different tokens, but share context.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.evaluate.intervals import student

# Logits of so many tokens are held at a time: of a vocabulary of 49,152 these are 25 MB, and three such tables stay near the cache.
_ROWS = 128


class EvaluationError(LlmpqError):
    """A text too short for its windows, a model whose logits are not finite, or results that belong to something else."""


class Model(Protocol):
    """What is needed of a model: final hidden states [b, t, h] of ids [b, t], and logits [b, t, vocab] of those."""

    def hidden(self, inputs: Tensor) -> Tensor: ...

    def predict(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Score:
    """One window: mean negative log-likelihood and divergence (nats a token), share of tokens with the reference's first choice."""

    nll: float
    kl: float
    top1: float


def scored_tokens(window_tokens: int, stride: int | None) -> int:
    """How many tokens of a window are scored: its last ``stride``, at most all but the first."""
    return min(stride or window_tokens, window_tokens - 1)


def scored_hidden(model: Model, window: Tensor, scored: int) -> Tensor:
    """Final hidden states [scored, h] at the tokens before each scored one of a window [t], from which those are predicted."""
    return model.hidden(window[None, :])[0, -scored - 1 : -1]


@torch.inference_mode()
def window_score(
    model: Model, window: Tensor, scored: int, reference: Tensor | None = None, predict: Callable[[Tensor], Tensor] | None = None
) -> Score:
    """Score the last ``scored`` tokens of ``window`` [t]; ``reference``: scored_hidden of the reference, ``predict`` its head.

    Without ``predict`` the reference has the model's own head. Without a reference the divergence is 0 and the agreement 1.
    """
    predict = predict or model.predict
    hidden, targets = scored_hidden(model, window, scored), window[-scored:]
    nll, kl, same = 0.0, 0.0, 0
    for start in range(0, scored, _ROWS):
        rows = slice(start, start + _ROWS)
        found = torch.log_softmax(model.predict(hidden[None, rows])[0], -1)
        nll -= float(found.gather(1, targets[rows, None]).double().sum())
        if reference is not None:
            expected = torch.log_softmax(predict(reference[None, rows])[0], -1)
            same += int((found.argmax(-1) == expected.argmax(-1)).sum())
            kl += float((expected.exp() * expected.sub_(found)).sum(-1).double().sum())
    return Score(nll / scored, max(kl / scored, 0.0), same / scored if reference is not None else 1.0)


def perplexity(
    model: Model,
    windows: Tensor,
    progress: Callable[[int, int], None] | None = None,
    *,
    stride: int | None = None,
    reference: Tensor | None = None,
    predict: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Any]:
    """One entry of ``texts`` in a ``quality`` artifact, for ``windows`` [w, t] of token ids, t ≥ 2.

    ``nll_se`` is the standard error of the mean over windows (0 with one window); it is mostly the text's own variety, so two assignments
    on the same windows are compared window by window (``nll_windows``). ``tokens`` counts scored tokens, ``context_tokens`` those before
    them in each window. ``reference`` [w, scored, h], with its head ``predict``, adds ``kl`` and ``top1``. ``progress`` is called with
    (windows done, windows). Raises EvaluationError when the logits are not finite.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise EvaluationError(f"perplexity needs windows of at least 2 tokens, got a table of {tuple(windows.shape)}; use a longer text")
    count, scored = len(windows), scored_tokens(windows.shape[1], stride)
    scores: list[Score] = []
    for index, window in enumerate(windows):
        score = window_score(model, window, scored, None if reference is None else reference[index], predict)
        if not math.isfinite(score.nll):
            raise EvaluationError(f"window {index}: the model's logits are not finite; its weights are damaged, quantise them again")
        scores.append(score)
        if progress is not None:
            progress(index + 1, count)
    losses = [score.nll for score in scores]
    values = torch.tensor(losses, dtype=torch.float64)
    mean, interval = float(values.mean()), student(losses)
    found: dict[str, Any] = {
        "perplexity": math.exp(mean),
        "perplexity_low": math.exp(interval[0]) if interval else None,
        "perplexity_high": math.exp(interval[1]) if interval else None,
        "nll_mean": mean,
        "nll_se": float(values.std() / math.sqrt(count)) if count > 1 else 0.0,
        "tokens": count * scored,
        "context_tokens": windows.shape[1] - scored,
        "windows": count,
        "nll_windows": [round(loss, 9) for loss in losses],
    }
    if reference is not None:
        found["kl"] = _mean([score.kl for score in scores], math.inf)
        found["top1"] = _mean([score.top1 for score in scores], 1.0)
    return found


def _mean(values: list[float], most: float) -> dict[str, Any]:
    """Mean of the windows' values (0 … ``most``) and its interval, null with one window."""
    low, high = student(values) or (None, None)
    return {
        "mean": math.fsum(values) / len(values),
        "low": None if low is None else max(low, 0.0),
        "high": None if high is None else min(high, most),
        "windows": [round(value, 9) for value in values],
    }
