"""The experiments of a suite as its page compares them: what each is, its summary, and its plans."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless
from llmpq.errors import ConfigError
from llmpq.report.verdict import how

Document = dict[str, Any]

TUNED = ("adabits", "pipeedge", "uniform", "het", "even")
"""Baselines with the device order and the micro-batches that suit them best, as llmpq itself has."""

AS_PUBLISHED = ("adabits-published", "pipeedge-published", "uniform-published", "even-published")
"""The same in the order in which the devices are given, with the published micro-batches."""

ONE_WIDTH = AS_PUBLISHED[1:]
"""Those of them that have one width for all layers."""


@dataclass(frozen=True)
class Facts:
    """What the configuration says of an experiment; ``devices`` in words (``3 × t4, 1 × v100-32g``)."""

    suite: str
    cluster: str
    devices: str
    workload: str
    kernels: str


@dataclass(frozen=True)
class Best:
    """A strategy and its tokens/s."""

    strategy: str
    tokens_per_s: float


@dataclass(frozen=True)
class Member:
    """One experiment; ``plans`` are those that there are, by strategy."""

    name: str
    directory: Path
    facts: Facts
    summary: Document
    plans: dict[str, Document]

    @property
    def focus(self) -> Document:
        """The entry of the strategy that the experiment's own page is about."""
        return self.entries[self.summary["verdict"]["focus"]]

    @property
    def entries(self) -> dict[str, Document]:
        """The summary's entries by strategy."""
        return {entry["strategy"]: entry for entry in self.summary["strategies"]}

    @property
    def how(self) -> str:
        """How the speeds were found: measured, simulated or predicted."""
        return how(self.summary)

    def tokens_per_s(self, strategy: str) -> float | None:
        """Of one strategy; None where it has no plan, or where speeds are not claimed."""
        entry = self.entries.get(strategy)
        if entry is None or not self.summary["speed_claimed"]:
            return None
        side = self.summary["verdict"]["side"]
        return float(entry["tokens_per_s"][side])

    def best(self, strategies: tuple[str, ...]) -> Best | None:
        """The fastest of ``strategies`` whose plan keeps the quality that was asked for; None where none does.

        None too where damage has a price and no limit: plans of unlike damage are not compared by speed.
        """
        if "quality_budget" not in self.summary["objective"]:
            return None
        speeds = {name: self.tokens_per_s(name) for name in strategies if self.entries.get(name, {}).get("quality_budget_met") is not False}
        found = [Best(name, speed) for name, speed in speeds.items() if speed is not None]
        return max(found, key=lambda each: each.tokens_per_s, default=None)

    def speedup(self, strategies: tuple[str, ...]) -> float | None:
        """tokens/s of the focus over those of the best of ``strategies``."""
        best, own = self.best(strategies), self.tokens_per_s(self.focus["strategy"])
        return None if best is None or own is None else own / best.tokens_per_s


def load_members(directories: Mapping[str, str | Path], facts: Mapping[str, Mapping[str, str]]) -> list[Member]:
    """The experiments in ``directories`` (folder by name), in that order; ArtifactError for a missing or broken file of one."""
    if not directories:
        raise ConfigError("no experiment to compare; name a suite that has one (config/experiment)")
    members = []
    for name, folder in directories.items():
        folder = Path(folder)
        summary = artifacts.read(folder / "summary.json", "summary")
        found = {entry["strategy"]: artifacts.read(folder / entry["strategy"] / "plan.json", "plan") for entry in summary["strategies"]}
        plans = {strategy: plan for strategy, plan in found.items() if planless.reason(plan) is None}
        members.append(Member(name, folder, Facts(**facts[name]), summary, plans))
    return members


def facts_of(experiment: Mapping[str, Any]) -> dict[str, str]:
    """The facts of an experiment from its configuration."""
    kinds = [member["device"] for member in experiment["cluster"]["members"]]
    return {
        "suite": experiment["suite"],
        "cluster": experiment["cluster"]["name"],
        "devices": ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)),
        "workload": experiment["workload"]["name"],
        "kernels": experiment["kernels"],
    }
