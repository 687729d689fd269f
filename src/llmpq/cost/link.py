"""Links as alpha-beta models: ms = alpha + bytes / beta, per ordered pair of devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from llmpq.errors import ArtifactError

MAX_BYTES_PER_MS = 1e12  # stands for "no measurable cost per byte"


def fit_alpha_beta(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(alpha_ms, bytes_per_ms) from (bytes, ms) points: non-negative least squares on the relative error.

    Raises ArtifactError with fewer than two different payloads or a time that is not positive.
    """
    data = np.asarray(points, dtype=float)
    if len({size for size, _ in points}) < 2:
        raise ArtifactError("a link needs times of at least two payload sizes; add sizes to profile.link_bytes")
    size, ms = data.T
    if np.any(ms <= 0):
        raise ArtifactError(f"a link time of {ms.min()} ms cannot be fitted; measure the links again")
    design = np.stack([1.0 / ms, size / ms], axis=1)
    norms = np.linalg.norm(design, axis=0)
    (alpha, per_byte), _ = nnls(design / norms, np.ones(len(ms)))
    per_byte /= norms[1]
    return float(alpha / norms[0]), float(min(1.0 / per_byte, MAX_BYTES_PER_MS)) if per_byte > 0 else MAX_BYTES_PER_MS


def fit_links(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row {from, to, alpha_ms, bytes_per_ms, heldout_mape} per ordered pair of a ``links`` artifact, from its median times.

    The held-out error leaves out each payload size between the smallest and the largest in turn.
    """
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in document["rows"]:
        pairs.setdefault((row["from"], row["to"]), []).append((row["bytes"], row["p50_ms"]))
    fitted = []
    for (sender, receiver), points in pairs.items():
        points.sort()
        alpha, beta = fit_alpha_beta(points)
        errors = []
        for index in range(1, len(points) - 1):
            left_alpha, left_beta = fit_alpha_beta(points[:index] + points[index + 1 :])
            size, ms = points[index]
            errors.append(abs((left_alpha + size / left_beta) / ms - 1.0))
        fitted.append(
            {
                "from": sender,
                "to": receiver,
                "alpha_ms": round(alpha, 6),
                "bytes_per_ms": round(beta, 3),
                "heldout_mape": round(float(np.mean(errors)), 6) if errors else 0.0,
            }
        )
    return fitted
