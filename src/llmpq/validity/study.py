"""Does an indicator work? Random assignments ranked, mixed against uniform, pairs of layers, all measured on the real model.

Four questions, in the order of the artifact: does the summed omega rank random assignments as their measured loss does (within one
average width and over all); is the assignment that an indicator thinks best better than a uniform one of the same bytes; is the loss
of two layers the sum of their own; and does another calibration choose the same?
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llmpq.progress import Progress
from llmpq.quant.options import weight_option
from llmpq.validity.assignments import Assignment, best_for_bytes, ends_high, random_assignments
from llmpq.validity.measure import Losses, Measurements
from llmpq.validity.settings import PLAIN
from llmpq.validity.statistics import paired_difference, spearman_interval

Omega = Mapping[str, Sequence[float]]
"""Option → damage of every layer, uniform 4 bit summing to 1."""

POOLED = "all widths"


@dataclass(frozen=True)
class Model:
    """What a study compares with: every indicator's omega, the stored bytes of a layer by option, and how many layers there are."""

    omegas: Mapping[str, Omega]
    stored: Mapping[str, int]
    layers: int

    def bytes_of(self, assignment: Assignment) -> int:
        return sum(self.stored[option] for option in assignment)

    def omega_of(self, indicator: str, assignment: Assignment) -> float:
        omega = self.omegas[indicator]
        return sum(omega[option][layer] for layer, option in enumerate(assignment))


def rank(
    model: Model, measured: Measurements, options: Sequence[str], widths: Sequence[float], count: int, seed: int, texts: Sequence[str]
) -> dict[str, Any]:
    """Spearman's correlation of every predictor with the measured loss: one row per predictor, text and width, and over all widths.

    The predictors are the indicators and, as the trivial one, fewer stored bytes.
    """
    drawn = {f"{width:g} bits": random_assignments(options, model.layers, width, count, seed) for width in widths}
    drawn[POOLED] = list(itertools.chain.from_iterable(drawn.values()))
    losses = _all_measured(measured, drawn[POOLED], "rank")
    predictors: dict[str, Callable[[Assignment], float]] = {
        name: lambda assignment, name=name: model.omega_of(name, assignment)  # type: ignore[misc]
        for name in model.omegas
    }
    predictors["stored bytes"] = lambda assignment: -model.bytes_of(assignment)
    rows = []
    for (name, predict), text, (width, some) in itertools.product(predictors.items(), texts, drawn.items()):
        found = spearman_interval([predict(one) for one in some], [_mean(losses[one][text]) for one in some])
        rows.append({"predictor": name, "text": text, "width": width, "assignments": len(some), **asdict(found)})
    points = [
        {
            "width": width,
            "options": list(one),
            "stored_bytes": model.bytes_of(one),
            "omega": {name: model.omega_of(name, one) for name in model.omegas},
            "nll": {text: _mean(losses[one][text]) for text in texts},
        }
        for width, some in drawn.items()
        if width != POOLED
        for one in some
    ]
    return {"rows": rows, "points": points}


def compare(
    model: Model, measured: Measurements, options: Sequence[str], indicator: str, seed: int, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """The least summed omega at the bytes of uniform 3, uniform 4 and 5.5 bits beside what one would take without an indicator.

    At 5.5 bits the rivals are the first and last layers at 8 bits with the others at 3, and the best of ten random assignments, as
    measured on the very windows of the comparison; every time ours has the rival's bytes at most. Differences are of mean log-likelihood,
    window by window: below 0 the indicator's assignment is better.
    """
    half = _half_high(model)
    limits = {"uniform 3": ("3",) * model.layers, "uniform 4": ("4",) * model.layers, "first and last layers at 8 bits": half}
    rows = []
    for rival, other in limits.items():
        limit = model.bytes_of(other)
        mine = best_for_bytes({option: model.omegas[indicator][option] for option in options}, model.stored, limit)
        rows += _against(measured, mine, rival, other, limit, texts)
    tens = random_assignments(options, model.layers, 5.5, 10, seed + 1)
    losses = _all_measured(measured, tens, "ten at random")
    for text in texts:
        best = min(tens, key=lambda one: _mean(losses[one][text]))
        mine = best_for_bytes({option: model.omegas[indicator][option] for option in options}, model.stored, model.bytes_of(best))
        rows += _against(measured, mine, f"best of {len(tens)} at random, 5.5 bits", best, model.bytes_of(best), [text])
    return rows


def _half_high(model: Model) -> Assignment:
    """5.5 bits: the first and last layers, half of all, at 8 bits, the others at 3."""
    return ends_high(model.layers, "8", "3", model.layers // 2)


def stability(
    model: Model, measured: Measurements, options: Sequence[str], indicator: str, others: Mapping[str, Omega], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """What ``indicator`` chooses among ``options`` after other calibrations (quantizer → its omega), beside its own after the study's.

    At the bytes of uniform 3, uniform 4 and 5.5 bits: the share of layers with the same option, how many bits their options differ by on
    average, the damage that the study's own omega sees in the other choice over that in its own, and the measured difference of the two
    (both from the study's quantised layers: what the choice alone does).
    """
    own = {option: model.omegas[indicator][option] for option in options}
    limits = {"uniform 3": ("3",) * model.layers, "uniform 4": ("4",) * model.layers, "5.5 bits": _half_high(model)}
    rows = []
    for (size, one), (quantizer, omega) in itertools.product(limits.items(), others.items()):
        limit = model.bytes_of(one)
        mine, its = (best_for_bytes(each, model.stored, limit) for each in (own, {option: omega[option] for option in own}))
        bits = [abs(weight_option(a).bits - weight_option(b).bits) for a, b in zip(mine, its, strict=True)]
        least = model.omega_of(indicator, mine)
        rows.append({
            "quantizer": quantizer,
            "size": size,
            "options": list(its),
            "own_options": list(mine),
            "same_share": _mean([float(a == b) for a, b in zip(mine, its, strict=True)]),
            "mean_bits_apart": _mean(bits),
            "omega_ratio": model.omega_of(indicator, its) / least if least > 0 else 1.0,
            "difference": {
                text: asdict(paired_difference(measured.losses(its)[text], measured.losses(mine)[text])) for text in texts
            },
        })  # fmt: skip
    return rows


def pairs(
    model: Model, measured: Measurements, options: Sequence[str], count: int, seed: int, texts: Sequence[str]
) -> list[dict[str, Any]]:
    """What two quantised layers do together, beside the sum of what each does alone; all other layers at 16 bits."""
    draw = random.Random(f"{seed} pairs")
    plain = (PLAIN,) * model.layers
    rows = []
    base = measured.losses(plain)
    possible = list(itertools.product(itertools.combinations(range(model.layers), 2), (each for each in options if each != PLAIN)))
    for (first, second), option in draw.sample(possible, min(count, len(possible))):
        alone = [_replaced(plain, {layer: option}) for layer in (first, second)]
        both = _replaced(plain, {first: option, second: option})
        found = _all_measured(measured, [*alone, both], "pairs")
        for text in texts:
            start = _mean(base[text])
            apart = sum(_mean(found[one][text]) - start for one in alone)
            together = _mean(found[both][text]) - start
            rows.append({"layers": [first, second], "option": option, "text": text, "sum_of_both": apart, "together": together})
    return rows


def _against(
    measured: Measurements, mine: Assignment, rival: str, other: Assignment, limit: int, texts: Sequence[str]
) -> list[dict[str, Any]]:
    own, its = measured.losses(mine), measured.losses(other)
    return [
        {
            "rival": rival,
            "text": text,
            "limit_bytes": limit,
            "options": list(mine),
            "rival_options": list(other),
            "nll": _mean(own[text]),
            "rival_nll": _mean(its[text]),
            "difference": asdict(paired_difference(own[text], its[text])),
            "windows": len(own[text]),
        }
        for text in texts
    ]


def _all_measured(measured: Measurements, assignments: Sequence[Assignment], what: str) -> dict[Assignment, Losses]:
    progress, found = Progress(f"validity, {what}", len(assignments)), {}
    for one in assignments:
        found[one] = measured.losses(one)
        progress.step("assignments")
    return found


def _replaced(assignment: Assignment, changes: Mapping[int, str]) -> Assignment:
    return tuple(changes.get(layer, option) for layer, option in enumerate(assignment))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
