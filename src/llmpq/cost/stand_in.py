"""A stand-in for the sensitivity of models that were not measured here: SmolLM2-135M's measured curve, stretched to their depth.

It is no measurement of the model it is used for, and problem.json says so. Rows: the residual-error indicator of SmolLM2-135M-Instruct's
30 layers (GPTQ, 4 × 128 calibration tokens, measured 2026-11-22), scaled so that uniform 4 bit sums to 1; ``w8a8`` is what was measured
with 32 outlier columns, since large models are served with LLM.int8 and its successors.
"""

from collections.abc import Sequence

import numpy as np

LABEL = "omega is a stand-in, not measured on this model: SmolLM2-135M's residual-error indicator stretched to its depth"
REFERENCE_OPTION = "4"

# fmt: off
MEASURED: dict[str, tuple[float, ...]] = {
    "8": (
        0.00108, 0.00042, 0.0006, 0.00052, 0.00046, 0.00049, 0.00047, 0.00044, 0.00045, 0.00046,
        0.00039, 0.0004, 0.00028, 0.00025, 0.00027, 0.00026, 0.00027, 0.00024, 0.00039, 0.00039,
        0.00041, 0.00033, 0.00036, 0.00047, 0.00036, 0.00022, 0.00024, 0.00028, 0.00064, 0.00081,
    ),
    "w8a8": (
        0.06921, 0.00901, 0.00533, 0.00499, 0.00555, 0.00617, 0.00667, 0.00757, 0.00799, 0.00591,
        0.0052, 0.00454, 0.00406, 0.00361, 0.00354, 0.00337, 0.00359, 0.00335, 0.00526, 0.0052,
        0.00907, 0.00706, 0.00913, 0.01145, 0.0076, 0.00474, 0.00611, 0.0059, 0.00391, 0.02631,
    ),
    "4": (
        0.07635, 0.03286, 0.03446, 0.04309, 0.03949, 0.03999, 0.04123, 0.03829, 0.03563, 0.03019,
        0.03194, 0.0322, 0.02374, 0.02189, 0.02236, 0.02142, 0.0219, 0.02169, 0.03524, 0.03096,
        0.03542, 0.02782, 0.03295, 0.04001, 0.03074, 0.0212, 0.02349, 0.02554, 0.03222, 0.0557,
    ),
    "3": (
        0.32403, 0.13085, 0.13076, 0.1425, 0.14277, 0.14474, 0.13862, 0.13514, 0.13651, 0.11997,
        0.12456, 0.12463, 0.09011, 0.08612, 0.08374, 0.07894, 0.08113, 0.08075, 0.11395, 0.10962,
        0.1316, 0.10436, 0.1239, 0.14404, 0.118, 0.08113, 0.08941, 0.09351, 0.10626, 0.2148,
    ),
}
# fmt: on

MEASURED_ENDS = {"embedding": {"8": 0.00098}, "head": {"8": 0.01157, "w8a8": 0.18807}}
"""SmolLM2's embedding and head on the same tokens: divergence of its predictions over that of uniform 4 bit by GPTQ (2026-11-23)."""


def end_omega(options: Sequence[str]) -> dict[str, dict[str, float]]:
    """Omega of embedding and head at those of ``options`` that were measured; 16 bit is harmless."""
    return {end: {name: measured[name] for name in options if name in measured} for end, measured in MEASURED_ENDS.items()}


def omega(layers: int, options: tuple[str, ...]) -> dict[str, list[float]]:
    """Omega per option and layer for a model of ``layers`` layers; every option keeps its ratio to the reference, which sums to 1."""
    unit = _stretched("4", layers).sum()
    return {
        name: [0.0] * layers if name == "16" else [round(float(value), 9) for value in _stretched(name, layers) / unit] for name in options
    }


def _stretched(option: str, layers: int) -> np.ndarray:
    """The measured curve read at the layers' relative depths (the first and the last stay first and last)."""
    measured = np.array(MEASURED[option])
    return np.interp(np.linspace(0, 1, layers), np.linspace(0, 1, len(measured)), measured)
