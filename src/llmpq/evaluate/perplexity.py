"""Perplexity of exactly the weights that are served, through the very kernels that serve them.

A text is cut into windows of equal length, each starting fresh; the first token of a window has no context and is not scored. The
perplexity is exp of the mean negative log-likelihood per scored token, and its standard error is taken over windows, because tokens of
one window are not independent.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.model.stage import StageModel
from llmpq.progress import Progress
from llmpq.quant.layer_index import Folders


class EvaluationError(LlmpqError):
    """A text too short for its windows, or a model whose logits are not finite."""


class LogitsModel(Protocol):
    """What perplexity needs of a model."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor: ...


def window_nll(model: LogitsModel, window: torch.Tensor) -> float:
    """Mean negative log-likelihood (nats) of tokens 1 … t−1 of one window [t] given those before them."""
    logits = model.logits(window[None, :])[0, :-1]
    scored = window[1:]
    chosen = logits.gather(1, scored[:, None])[:, 0]
    return float((torch.logsumexp(logits, dim=-1) - chosen).double().mean())


def perplexity(model: LogitsModel, windows: torch.Tensor, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """{perplexity, nll_mean, nll_se, tokens, windows, nll_windows} of ``windows`` [w, t] of token ids, t ≥ 2.

    ``nll_se`` is the standard error of the mean over windows (0 with one window); it is mostly the text's own variety, so two assignments
    on the same windows are compared window by window (``nll_windows``). ``tokens`` counts scored tokens. ``progress`` is called with
    (windows done, windows). Raises EvaluationError when the logits are not finite.
    """
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise EvaluationError(f"perplexity needs windows of at least 2 tokens, got a table of {tuple(windows.shape)}; use a longer text")
    losses = []
    for index, window in enumerate(windows):
        loss = window_nll(model, window)
        if not math.isfinite(loss):
            raise EvaluationError(f"window {index}: the model's logits are not finite; its weights are damaged, quantise them again")
        losses.append(loss)
        if progress is not None:
            progress(index + 1, len(windows))
    values = torch.tensor(losses, dtype=torch.float64)
    mean = float(values.mean())
    error = float(values.std() / math.sqrt(len(losses))) if len(losses) > 1 else 0.0
    return {
        "perplexity": math.exp(mean),
        "nll_mean": mean,
        "nll_se": error,
        "tokens": int(windows.shape[0] * (windows.shape[1] - 1)),
        "windows": len(losses),
        "nll_windows": [round(loss, 9) for loss in losses],
    }


def evaluate_quality(
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    options: Sequence[str],
    texts: Mapping[str, torch.Tensor],
    *,
    ends: tuple[str, str] = ("16", "16"),
    progress: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Body of a ``quality`` artifact for one assignment of weight options.

    ``options``: one per decoder layer; ``ends``: of embedding and head; ``texts``: windows [w, t] of token ids by name. The model
    is loaded through the serving path, all layers in this process. The result depends on the arguments only: plans with equal options
    share it.
    """
    started = time.perf_counter()
    model = StageModel.load(checkpoint_dir, quantised_dir, first_layer=0, options=list(options), embedding=ends[0], head=ends[1])
    windows_done, rows = Progress("perplexity", sum(len(windows) for windows in texts.values()), progress), []
    for name, windows in texts.items():

        def report(count: int, of: int, name: str = name) -> None:
            windows_done.step(f"windows ({count} of {of} of {name})")

        rows.append({"text": name, **perplexity(model, windows, report)})
    return {
        "weights_sha256": model.weights_digest,
        "options": list(options),
        "embedding_option": ends[0],
        "head_option": ends[1],
        "window_tokens": max(int(windows.shape[1]) for windows in texts.values()),
        "texts": rows,
        "seconds": round(time.perf_counter() - started, 3),
    }


def write_quality(out: str | Path, plan: Mapping[str, Any], body: Mapping[str, Any], inputs: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Write ``quality.json`` of one plan; refuses a ``body`` that was computed for another assignment."""
    options = plan_options(plan)
    if list(body["options"]) != options:
        raise EvaluationError(f"{out}: the evaluation is of other options than those of plan {plan['strategy']}; evaluate that plan")
    ends, found = plan_ends(plan), (body["embedding_option"], body["head_option"])
    if found != ends:
        kept = f"plan {plan['strategy']} keeps embedding and head at {' and '.join(ends)}"
        raise EvaluationError(f"{out}: {kept}, the evaluation is of {' and '.join(found)}; evaluate that plan")
    return artifacts.write(out, "quality", {"strategy": plan["strategy"], **body}, source="measured", inputs=inputs)


def plan_options(plan: Mapping[str, Any]) -> list[str]:
    """The option of every decoder layer, in layer order."""
    stages = sorted(plan["stages"], key=lambda stage: stage["first_layer"])
    return [str(option) for stage in stages for option in stage["options"]]


def plan_ends(plan: Mapping[str, Any]) -> tuple[str, str]:
    """The options of embedding and head."""
    stages = sorted(plan["stages"], key=lambda stage: stage["first_layer"])
    return str(stages[0]["embedding_option"]), str(stages[-1]["head_option"])
