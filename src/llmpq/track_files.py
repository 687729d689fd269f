"""Which files a run of the workflow leaves behind, by the stage that writes them: what MLflow is given and docs/artifacts.md explains."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import Formatter
from typing import Any

from llmpq import artifacts
from llmpq.config_evaluate import used_texts
from llmpq.config_simulated import is_simulated

MAX_ARTIFACT_BYTES = 50 * 1024 * 1024


@dataclass(frozen=True)
class Tracked:
    """A path pattern and its stage; ``copy`` false: too many bytes to keep twice, so that only location and sha256 are recorded."""

    pattern: str
    stage: str
    copy: bool = True

    def belongs_to(self, experiment: Mapping[str, Any]) -> bool:
        """Whether ``experiment`` leaves such a file."""
        if self.stage == "explain" and not experiment["planner"]["explain"]:
            return False
        if self.stage in (_OWN_STAGES if experiment["backend"]["name"] == "vllm" else _VLLM_STAGES):
            return False
        return self.stage in _SIMULATED_STAGES if is_simulated(experiment) else self.stage != "simulate"


_SIMULATED_STAGES = ("config_record", "problem", "plan", "explain", "pareto", "simulate", "report", "track")
_OWN_STAGES = ("profile", "fit")  # of those that llmpq's own runtime serves
_VLLM_STAGES = ("export", "profile_vllm", "fit_vllm")  # of experiments that vLLM serves
_STAGE_OF = {
    "data_sheet_problem": "problem",
    "links_on_nodes": "links",
    "serve_on_nodes": "serve",
}  # rules with another name than their stage
_EXPERIMENT = "results/experiments/{experiment}"
TRACKED = (
    Tracked("resources/models/{model}/model.json", "prepare_model"),
    Tracked("resources/models/{model}/checkpoint/", "prepare_model", copy=False),
    Tracked("resources/texts/{text}.txt", "prepare_text"),
    Tracked("results/profiles/{profile}/{model}/{device}.json", "profile"),
    Tracked("results/vllm/profiles/{profile}/{model}/{device}.json", "profile_vllm"),
    Tracked("results/links/{profile}/{cluster}.json", "links"),
    Tracked("results/vllm/cost/{profile}/{model}/{device}.json", "fit_vllm"),
    Tracked("results/cost/{profile}/{model}/{device}.json", "fit"),
    Tracked("results/calibration/{model}/{quantizer}.safetensors", "calibrate", copy=False),
    Tracked("results/quantised/{model}/{quantizer}/{group}/manifest.json", "quantise"),
    Tracked("results/quantised/{model}/{quantizer}/{group}/*.safetensors", "quantise", copy=False),
    Tracked("results/quantised/{model}/ends/manifest.json", "quantise_ends"),
    Tracked("results/quantised/{model}/ends/*.safetensors", "quantise_ends", copy=False),
    Tracked("results/indicators/{model}/{quantizer}/{indicator}.json", "indicator"),
    Tracked("results/references/{model}/{evaluate}.safetensors", "reference", copy=False),
    Tracked(f"{_EXPERIMENT}/config.yaml", "config_record"),
    Tracked(f"{_EXPERIMENT}/workload.json", "workload"),
    Tracked(f"{_EXPERIMENT}/problem.json", "problem"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/plan.json", "plan"),
    Tracked(f"{_EXPERIMENT}/explain.json", "explain"),
    Tracked(f"{_EXPERIMENT}/pareto.json", "pareto"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/vllm/", "export", copy=False),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/requests.jsonl", "serve"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/serve.json", "serve"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/timeline.json", "serve"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/simulated.json", "serve"),
    Tracked(f"{_EXPERIMENT}/{{strategy}}/quality.json", "evaluate"),
    Tracked(f"{_EXPERIMENT}/simulation.json", "simulate"),
    Tracked(f"{_EXPERIMENT}/timeline.json", "simulate"),
    Tracked(f"{_EXPERIMENT}/summary.json", "report"),
    Tracked(f"{_EXPERIMENT}/summary.csv", "report"),
    Tracked(f"{_EXPERIMENT}/report.html", "report"),
    Tracked(f"{_EXPERIMENT}/figures/*.csv", "report"),
    Tracked(f"{_EXPERIMENT}/mlflow.json", "track"),
)
_LABELS = ("device", "group", "text")  # a stage that runs once for each of these has a run for each


@dataclass(frozen=True)
class StageFile:
    """One existing file: the ``strategy`` (or None) and ``label`` (``profile/cpu-fast``) of the stage that wrote it."""

    path: Path
    strategy: str | None
    label: str
    copy: bool

    def record(self) -> dict[str, Any]:
        """Location, size and sha256 of the file, and whether a copy is kept."""
        return {
            "path": str(self.path),
            "bytes": self.path.stat().st_size,
            "sha256": artifacts.sha256_file(self.path),
            "copied": self.copied,
        }

    @property
    def copied(self) -> bool:
        return self.copy and self.path.stat().st_size <= MAX_ARTIFACT_BYTES


def stage_label(rule: str, names: Mapping[str, str]) -> str:
    """The name of one job of a stage within an experiment: ``plan``, ``profile/cpu-fast``, ``quantise/layers-000-009``."""
    return "/".join([_STAGE_OF.get(rule, rule), *(names[key] for key in _LABELS if key in names)])


def names_of(experiment: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each placeholder of a pattern the names that the experiment uses."""
    names = {group: [experiment[group]["name"]] for group in ("model", "cluster", "profile", "quantizer", "indicator")}
    layers, step = experiment["model"]["layers"], experiment["quantizer"]["layers_per_job"]
    return {
        **names,
        "evaluate": [experiment["evaluate"]["name"]] if experiment["evaluate"]["compare"] else [],  # names its reference
        "experiment": [experiment["name"]],
        "suite": [],  # what is made of many experiments is a result of none of them
        "strategy": list(experiment["strategies"]),
        "device": sorted({member["device"] for member in experiment["cluster"]["members"]}),
        "text": used_texts(experiment),
        "group": [f"layers-{first:03}-{min(first + step, layers) - 1:03}" for first in range(0, layers, step)],
    }


def targets(experiment: Mapping[str, Any]) -> list[str]:
    """Everything that the workflow makes for ``experiment``; a folder whose files are not all known beforehand stands for them.

    Asking for all of it, not for the last file alone, makes Snakemake notice a result in the middle that was deleted.
    """
    mine = [tracked.pattern for tracked in TRACKED if tracked.belongs_to(experiment)]
    outputs = {pattern.split("*")[0].removesuffix("manifest.json").rstrip("/") for pattern in mine}
    return sorted(path for output in outputs for path, _ in _filled(output, names_of(experiment)))


def _filled(pattern: str, names: Mapping[str, list[str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """The pattern with every combination of names in its braces, and the names taken."""
    keys = sorted({key for _, key, _, _ in Formatter().parse(pattern) if key})
    for values in product(*(names[key] for key in keys)):
        chosen = dict(zip(keys, values, strict=True))
        yield pattern.format(**chosen), chosen


def stage_files(experiment: Mapping[str, Any], root: Path = Path(".")) -> Iterator[StageFile]:
    """Every file of TRACKED that exists for ``experiment`` under ``root`` (the folder that holds results/)."""
    names = names_of(experiment)
    for tracked in (each for each in TRACKED if each.belongs_to(experiment)):
        for path, chosen in _filled(tracked.pattern, names):
            label = stage_label(tracked.stage, chosen)
            yield from (StageFile(file, chosen.get("strategy"), label, tracked.copy) for file in _expand(root, path))


def _expand(root: Path, pattern: str) -> list[Path]:
    if pattern.endswith("/"):
        return sorted(path for path in (root / pattern).rglob("*") if path.is_file() and not path.name.startswith("."))
    return sorted(root.glob(pattern)) if "*" in pattern else [root / pattern] if (root / pattern).is_file() else []
