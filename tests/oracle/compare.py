"""Our GPTQ and the package auto-gptq on the same Hessians of a real model: the losses of both, and the page docs/oracle.md about them.

Ours rounds on a grid that layer files can hold (scales and offsets in bf16); the package's is its own, in fp32, and what its files would
lose beyond that is not counted. Losses are tr(ΔW H ΔWᵀ), all rows of an operator together.
"""

import datetime
import itertools
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from llmpq.artifacts import atomic_path
from llmpq.model.checkpoint import Checkpoint
from llmpq.progress import Progress
from llmpq.quant.auto_gptq import AutoGptq
from llmpq.quant.calibration import Calibration
from llmpq.quant.gptq import factorise, gptq_refitted, output_loss
from llmpq.quant.grid import Grid
from llmpq.quant.options import GROUP_SIZE

DAMPING = 0.01
LAYERS_EACH = 3
"""Layers that every setting is tried on, other ones for each, so that all settings together see all layers."""


@dataclass(frozen=True)
class Setting:
    """One way to quantise. ``group_size`` 0: a scale per row."""

    bits: int
    symmetric: bool
    group_size: int
    act_order: bool

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        shared = f"groups of {self.group_size}" if self.group_size else "rows"
        return f"{self.bits} bit, {kind}, {shared}{', act_order' if self.act_order else ''}"


@dataclass(frozen=True)
class Case:
    """One operator of one layer at one setting, with the loss of both."""

    setting: Setting
    layer: int
    operator: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


SETTINGS = [Setting(*each) for each in itertools.product((2, 3, 4, 8), (True, False), (0, GROUP_SIZE), (False, True))]


def compare(checkpoint_dir: Path, calibration_file: Path, settings: Sequence[Setting] = SETTINGS) -> list[Case]:
    """Every setting on LAYERS_EACH layers with all their operators."""
    checkpoint, calibration = Checkpoint(checkpoint_dir), Calibration(calibration_file)
    places = [(layer, setting) for place, setting in enumerate(settings) for layer in _layers(place, checkpoint.spec.layers)]
    progress, cases = Progress("oracle", len(places)), []
    with AutoGptq() as package:
        for layer, setting in sorted(places, key=lambda each: each[0]):
            cases += _compare_layer(checkpoint, calibration, package, layer, setting)
            progress.step(f"(layer {layer}, {setting})")
    return cases


def _layers(place: int, layers: int) -> list[int]:
    return sorted({(place + turn * layers // LAYERS_EACH) % layers for turn in range(LAYERS_EACH)})


def _compare_layer(checkpoint: Checkpoint, calibration: Calibration, package: AutoGptq, layer: int, setting: Setting) -> Iterator[Case]:
    tensors, grid = checkpoint.layer(layer), Grid(setting.bits, setting.group_size, setting.symmetric)
    with ThreadPoolExecutor(1) as beside:
        for name in checkpoint.spec.operators():
            weight, hessian = tensors[f"{name}.weight"], calibration.operator(layer, name).hessian
            asked = beside.submit(package.own_weight, weight, hessian, grid, damping=DAMPING, act_order=setting.act_order)
            factor = factorise(hessian, damping=DAMPING, act_order=setting.act_order)
            own = gptq_refitted(weight, factor, hessian, grid).dequantised(setting.group_size)
            losses = [output_loss(weight, each, hessian) for each in (own, asked.result())]
            yield Case(setting, layer, name, *losses)


def write_page(path: Path, cases: Sequence[Case], model: str, version: str, seconds: float) -> None:
    """docs/oracle.md: median and worst ratio by setting."""
    operators, layers = len(cases), len({case.layer for case in cases})
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        "# Our GPTQ beside auto-gptq",
        f"Written by `make test-oracle` on {datetime.date.today().isoformat()}, revision {revision}: {operators} cases of {model} in "
        f"{seconds:.0f} s.",
        f"Every setting is tried on {LAYERS_EACH} layers with all their operators; together they see {layers} layers. The same weights and",
        f"Hessians (those of the rule `calibrate`), damping {DAMPING:g}; ours on a grid that layer files hold (scales in bf16), auto-gptq",
        f"{version} on its own in fp32. The ratio is our loss over the package's, tr(ΔW H ΔWᵀ); below 1 ours is better. With `act_order`",
        "and groups both choose the groups' scales beforehand.",
        "",
        "| setting | operators | median ratio | best | worst | where |",
        "|---|---|---|---|---|---|",
    ]
    for setting in dict.fromkeys(sorted((case.setting for case in cases), key=SETTINGS.index)):
        own = sorted((case for case in cases if case.setting == setting), key=lambda case: case.ratio)
        ratios, worst = [case.ratio for case in own], own[-1]
        lines.append(
            f"| {setting} | {len(own)} | {statistics.median(ratios):.3f} | {ratios[0]:.3f} | {ratios[-1]:.3f} | "
            f"layer {worst.layer}, {worst.operator} |"
        )
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
