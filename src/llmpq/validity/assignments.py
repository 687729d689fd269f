"""Assignments of options to layers to try an indicator on: at random, uniform, or the best that an indicator knows for so many bytes."""

import random
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from llmpq.errors import ConfigError
from llmpq.quant.options import weight_option

Assignment = tuple[str, ...]
"""An option per decoder layer."""

_WANDER = 0.1
"""How often a draw that leads away from the wanted width is kept, so that none gets stuck."""


def average_width(assignment: Sequence[str]) -> float:
    """Mean bits of a weight."""
    return sum(weight_option(option).bits for option in assignment) / len(assignment)


def random_assignments(options: Sequence[str], layers: int, width: float, count: int, seed: int) -> list[Assignment]:
    """``count`` different assignments whose average width is ``width`` to within half a bit of one layer.

    Every layer draws an option from a mixture that is itself drawn, so that some assignments are mixed and others lopsided; then random
    layers are drawn again, and mostly kept only where that brings the average nearer, until it is near enough. Raises ConfigError where
    the options cannot reach the width.
    """
    draw = random.Random(f"{seed} {width} {layers}")
    bits = {option: weight_option(option).bits for option in options}
    if not min(bits.values()) < width < max(bits.values()):
        raise ConfigError(f"no mixture of {', '.join(options)} has {width:g} bits on average, other than one option alone")
    found: dict[Assignment, None] = {}
    tries = 0
    while len(found) < count:
        tries += 1
        if tries > 100 * count:
            raise ConfigError(f"there are fewer than {count} assignments of {layers} layers at {width:g} bits")
        found[_near(draw, list(options), bits, layers, width)] = None
    return list(found)


def _near(draw: random.Random, options: list[str], bits: Mapping[str, int], layers: int, width: float) -> Assignment:
    weights = [draw.expovariate(1.0) for _ in options]
    chosen = draw.choices(options, weights, k=layers)
    excess = sum(bits[option] for option in chosen) - width * layers
    while abs(excess) > 0.5:
        place, option = draw.randrange(layers), draw.choice(options)
        moved = excess + bits[option] - bits[chosen[place]]
        if abs(moved) < abs(excess) or draw.random() < _WANDER:
            chosen[place], excess = option, moved
    return tuple(chosen)


def best_for_bytes(omega: Mapping[str, Sequence[float]], stored: Mapping[str, int], limit: int) -> Assignment:
    """The assignment of least summed ``omega`` (option → [layers]) whose layers' ``stored`` bytes sum to at most ``limit``.

    Solved exactly (HiGHS through scipy). Raises ConfigError where nothing is that small.
    """
    options, layers = list(omega), len(next(iter(omega.values())))
    costs = np.array([omega[option] for option in options]).T.ravel()
    sizes = np.tile([stored[option] for option in options], layers)
    each = np.kron(np.eye(layers), np.ones(len(options)))
    constraints = [LinearConstraint(each, 1, 1), LinearConstraint(sizes[None, :] / limit, 0, 1)]
    scale = float(np.abs(costs).max()) or 1.0
    found = milp(costs / scale, integrality=np.ones_like(costs), bounds=Bounds(0, 1), constraints=constraints, options={"mip_rel_gap": 0})
    if found.x is None:
        raise ConfigError(f"no assignment of {', '.join(options)} takes {limit} bytes or less")
    picked = found.x.reshape(layers, len(options)).argmax(axis=1)
    return tuple(options[index] for index in picked)


def ends_high(layers: int, high: str, low: str, count: int) -> Assignment:
    """``count`` layers at ``high``, half of them at the front and half at the back (the front gets the odd one); the rest at ``low``."""
    front = (count + 1) // 2
    return tuple(high if index < front or index >= layers - (count - front) else low for index in range(layers))
