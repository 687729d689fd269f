"""Latency of one device as a function of micro-batch and length: non-negative fits with their held-out error.

Two forms compete for every (part, phase, option), and the one with the smaller held-out error is kept:

- ``terms``: milliseconds as a non-negative combination of v·s, v·s², s, v, 1 (prefill; v micro-batch, s prompt tokens) or of v·t, v, t, 1
  (decode; t context length): the regressors of LLM-PQ (PPoPP'24), section 4.1, with coefficients that cannot be negative;
- ``knots``: at each measured micro-batch a non-negative polynomial in the length (s, s², 1 or t, 1), piecewise linear between the
  micro-batches, because packed integer and half-precision kernels work in row blocks and are not linear in v.

Both minimise the relative error. Held-out error: each interior micro-batch, then each interior length, is left out with all of its rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from llmpq import artifacts
from llmpq.errors import ArtifactError

Term = Callable[[np.ndarray, np.ndarray], np.ndarray]

TERMS: dict[str, dict[str, Term]] = {
    "prefill": {
        "v*s": lambda v, s: v * s,
        "v*s^2": lambda v, s: v * s * s,
        "s": lambda v, s: s,
        "v": lambda v, s: v,
        "1": lambda v, s: np.ones_like(v),
    },
    "decode": {
        "v*t": lambda v, t: v * t,
        "v": lambda v, t: v,
        "t": lambda v, t: t,
        "1": lambda v, t: np.ones_like(v),
    },
}
KNOT_TERMS: dict[str, dict[str, Term]] = {
    "prefill": {name: TERMS["prefill"][name] for name in ("s", "1")} | {"s^2": lambda v, s: s * s},
    "decode": {name: TERMS["decode"][name] for name in ("t", "1")},
}
NATIVE = "native"
"""The backend of a profile that names none."""
DEGRADED_MAPE = 0.10  # a fit worse than this on held-out shapes marks its artifact ``degraded``
REFUSED_MAPE = 0.25  # and one worse than this is no basis for a plan


@dataclass(frozen=True)
class LatencyFit:
    """Fitted time of one part (decoder layer, embedding, head, overhead) in one phase with one weight option."""

    part: str
    phase: str
    option: str
    form: str
    terms: dict[str, float] = field(default_factory=dict)
    knots: dict[int, dict[str, float]] = field(default_factory=dict)

    def predict(self, micro_batch: float, length: float) -> float:
        """Milliseconds for ``micro_batch`` rows at ``length`` tokens (prompt tokens in prefill, context in decode); never negative."""
        if self.form == "terms":
            return _evaluate(self.terms, TERMS[self.phase], micro_batch, length)
        sizes = sorted(self.knots)
        times = np.maximum.accumulate([_evaluate(self.knots[size], KNOT_TERMS[self.phase], size, length) for size in sizes])
        if micro_batch <= sizes[-1]:
            return float(np.interp(micro_batch, sizes, times))
        # In proportion: a slope taken from two measured sizes could fall with the length, and a plan must not be tempted off the grid.
        return float(times[-1]) * micro_batch / sizes[-1]


def _evaluate(coefficients: Mapping[str, float], terms: Mapping[str, Term], micro_batch: float, length: float) -> float:
    v, s = np.array([float(micro_batch)]), np.array([float(length)])
    return float(sum(value * terms[name](v, s)[0] for name, value in coefficients.items()))


def fit_terms(points: Sequence[tuple[float, float, float]], terms: Mapping[str, Term]) -> dict[str, float]:
    """Non-negative least squares on the relative error of ``points`` (micro_batch, length, ms); terms that vanish are left out.

    Columns are scaled to unit norm before solving (a v·s² column is 10⁵ times a constant one) and scaled back afterwards.
    """
    data = np.asarray(points, dtype=float)
    v, length, ms = data.T
    if np.any(ms <= 0):
        raise ArtifactError(f"a time of {ms.min()} ms cannot be fitted; measure the profile again")
    design = np.stack([term(v, length) for term in terms.values()], axis=1) / ms[:, None]
    norms = np.linalg.norm(design, axis=0)
    solution, _ = nnls(design / norms, np.ones(len(ms)))
    found = {name: float(value / norm) for name, value, norm in zip(terms, solution, norms, strict=True) if value > 1e-9 * solution.sum()}
    return found or {"1": 0.0}


def fit(part: str, phase: str, option: str, form: str, points: Sequence[tuple[float, float, float]]) -> LatencyFit:
    """Fit one form to ``points`` (micro_batch, length, ms)."""
    if form == "terms":
        return LatencyFit(part, phase, option, form, terms=fit_terms(points, TERMS[phase]))
    by_size: dict[int, list[tuple[float, float, float]]] = {}
    for point in points:
        by_size.setdefault(int(point[0]), []).append(point)
    knots = {size: fit_terms(group, _knot_terms(phase, group)) for size, group in sorted(by_size.items())}
    return LatencyFit(part, phase, option, form, knots=knots)


def _knot_terms(phase: str, group: Sequence[tuple[float, float, float]]) -> dict[str, Term]:
    """No more terms than lengths: one length gives a time proportional to it in prefill and a constant one in decode."""
    lengths = len({length for _, length, _ in group})
    names = {"prefill": ("s", "1", "s^2"), "decode": ("1", "t")}[phase][:lengths]
    return {name: KNOT_TERMS[phase][name] for name in names}


def mape(model: LatencyFit, points: Iterable[tuple[float, float, float]]) -> float:
    """Mean absolute relative error (a fraction) of ``model`` on ``points``."""
    return float(np.mean([abs(model.predict(v, length) / ms - 1.0) for v, length, ms in points]))


def held_out_error(part: str, phase: str, option: str, form: str, points: Sequence[tuple[float, float, float]]) -> float:
    """Mean absolute relative error over left-out groups: each interior micro-batch, then each interior length, with all its rows.

    With no interior group (a grid of at most two sizes and two lengths) it is the error on the points themselves.
    """
    errors: list[float] = []
    for axis in (0, 1):
        levels = sorted({point[axis] for point in points})
        for level in levels[1:-1]:
            kept = [point for point in points if point[axis] != level]
            left_out = [point for point in points if point[axis] == level]
            model = fit(part, phase, option, form, kept)
            errors.extend(abs(model.predict(v, length) / ms - 1.0) for v, length, ms in left_out)
    return float(np.mean(errors)) if errors else mape(fit(part, phase, option, form, points), points)


def fit_profile(profile: Mapping[str, Any]) -> dict[str, Any]:
    """Body of a ``cost`` artifact from a ``profile`` artifact: one fit per (part, phase, option) on the median times.

    Raises ArtifactError where a fit misses held-out shapes by more than ``REFUSED_MAPE``; above ``DEGRADED_MAPE`` the body is marked
    ``degraded`` and says which fit. Workspace bytes are carried over as measured.
    """
    groups: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
    for row in profile["rows"]:
        length = row["tokens"] if row["phase"] == "prefill" else row["context"]
        groups.setdefault((row["part"], row["phase"], row["option"]), []).append((row["micro_batch"], length, row["p50_ms"]))
    fits, notes = [], []
    for (part, phase, option), points in groups.items():
        errors = {form: held_out_error(part, phase, option, form, points) for form in ("terms", "knots")}
        form = min(errors, key=lambda name: round(errors[name], 6))  # the simpler one where they are alike
        model = fit(part, phase, option, form, points)
        fits.append(_fit_row(model, errors, points))
        if part in ("layer", "head") and errors[form] > DEGRADED_MAPE:
            notes.append(f"{part} {phase} option {option}: held-out error {100 * errors[form]:.1f} %")
        if part == "layer" and errors[form] > REFUSED_MAPE:
            raise ArtifactError(
                f"profile of {profile['device']}: the fit of {part} {phase} option {option} misses held-out shapes by "
                f"{100 * errors[form]:.0f} % (limit {100 * REFUSED_MAPE:.0f} %); profile again on a quiet machine or on a finer grid"
            )
    layer_errors = [row["heldout_mape"] for row in fits if row["part"] == "layer"]
    return {
        "model": profile["model"],
        "device": profile["device"],
        "backend": profile.get("backend", NATIVE),
        "slowdown": profile["slowdown"],
        "degraded": bool(notes),
        "heldout_mape": round(float(np.mean(layer_errors)), 6) if layer_errors else 0.0,
        "notes": notes,
        "fits": fits,
        "workspace": [
            {key: row[key] for key in ("part", "phase", "micro_batch", "tokens", "context")} | {"bytes": row["workspace_bytes"]}
            for row in _largest_workspace(profile["rows"])
        ],
    }


def write_cost(
    profile_path: str | Path, out: str | Path, *, model: str | None = None, device: str | None = None, backend: str | None = None
) -> dict[str, Any]:
    """Fit the profile in ``profile_path`` and write the ``cost`` artifact; returns the document.

    Raises ArtifactError for a profile of another ``model`` or ``device``, or through another ``backend``, than expected (None: any).
    """
    profile = artifacts.read(profile_path, "profile")
    for key, expected in (("model", model), ("device", device), ("backend", backend)):
        found = profile.get(key, NATIVE)
        if expected is not None and found != expected:
            raise ArtifactError(f"{profile_path}: key '{key}' is {found!r}, expected {expected!r}; profile that {key} instead")
    source = profile["provenance"].get("source", "measured")
    return artifacts.write(out, "cost", fit_profile(profile), source=source, inputs=[profile_path])


def _fit_row(model: LatencyFit, errors: Mapping[str, float], points: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"part": model.part, "phase": model.phase, "option": model.option, "form": model.form}
    row["terms"] = model.terms or fit_terms(points, TERMS[model.phase])
    if model.form == "knots":
        row["knots"] = {str(size): terms for size, terms in model.knots.items()}
    row["heldout_mape"] = round(errors[model.form], 6)
    row["heldout_mape_by_form"] = {name: round(value, 6) for name, value in errors.items()}
    row["train_mape"] = round(mape(model, points), 6)
    row["points"] = len(points)
    return row


def _largest_workspace(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Per part and shape the row of the option that needs most."""
    largest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("part", "phase", "micro_batch", "tokens", "context"))
        if key not in largest or row["workspace_bytes"] > largest[key]["workspace_bytes"]:
            largest[key] = row
    return list(largest.values())


class LatencyModel:
    """All fits of one device, read from a ``cost`` artifact."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.device: str = document["device"]
        self.backend: str = document.get("backend", NATIVE)
        self.model: str = document["model"]
        self._fits: dict[tuple[str, str, str], LatencyFit] = {}
        for row in document["fits"]:
            knots = {int(size): dict(terms) for size, terms in row.get("knots", {}).items()}
            key = (row["part"], row["phase"], row["option"])
            self._fits[key] = LatencyFit(*key, form=row["form"], terms=dict(row["terms"]), knots=knots)

    def options(self) -> list[str]:
        """Weight options with a fitted layer in both phases, in the artifact's order."""
        found = [option for part, phase, option in self._fits if part == "layer" and phase == "prefill"]
        return [option for option in found if ("layer", "decode", option) in self._fits]

    def predict(self, part: str, phase: str, option: str, micro_batch: float, length: float) -> float:
        """Milliseconds; raises ArtifactError where the device was never profiled for that part and option."""
        fitted = self._fits.get((part, phase, option))
        if fitted is None:
            raise ArtifactError(f"cost of {self.device}: no fit of {part} in {phase} for option '{option}'; add it to the profile")
        return fitted.predict(micro_batch, length)

    def overhead(self, phase: str, micro_batch: float, length: float, part: str = "overhead") -> float:
        """Milliseconds of one stage call besides its layers, embedding and head, or of the ``scheduler`` between two calls; 0 where the
        profile has none (catalogue devices)."""
        fitted = next((found for (name, of, _), found in self._fits.items() if name == part and of == phase), None)
        return fitted.predict(micro_batch, length) if fitted else 0.0
