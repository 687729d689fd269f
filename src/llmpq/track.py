"""MLflow behind one small interface: what a finished experiment left on disk, and the stages that failed.

Stages never talk to MLflow. They write files; afterwards one job, on the host that runs Snakemake, records them. An MLflow experiment
holds one parent run for each strategy, with the final figures, and one named ``shared``; under each lie the runs of its stages. A run is
found again by its identity, the tag ``llmpq.identity`` = experiment/strategy/config digest[/stage]: the same configuration updates its
run, another one adds a run.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts, planless, session
from llmpq.config_simulated import is_simulated
from llmpq.errors import ArtifactError
from llmpq.track_files import StageFile, names_of, stage_files, stage_label
from llmpq.track_metrics import Metrics, metrics_of, simulated_metrics
from llmpq.track_store import Store, config_digest, one_message

SHARED = "shared"
LOG_TAIL_BYTES = 20_000
_PARENT_PARAMETERS = ("model", "cluster", "workload", "quantizer", "indicator", "planner", "serve")
_SIMULATED_PARAMETERS = ("model", "cluster", "workload", "planner", "kernels")
_STAGE_PARAMETERS = {
    "plan": ["planner"],
    "serve": ["serve", "backend"],
    "reference": ["evaluate"],
    "evaluate": ["evaluate"],
    "profile": ["profile"],
    "profile_vllm": ["profile", "backend"],
    "links": ["profile"],
}
_STAGE_PARAMETERS |= {
    "calibrate": ["quantizer"],
    "quantise": ["quantizer"],
    "quantise_ends": ["model"],
    "indicator": ["indicator"],
    "problem": ["cluster", "planner"],
}
_STAGE_PARAMETERS |= {"workload": ["workload"], "prepare_model": ["model"]}


@one_message()
def track_experiment(experiment: Mapping[str, Any], out: str | Path, root: str | Path = ".") -> dict[str, Any]:
    """Record every file of one finished experiment and write the ``tracking`` artifact ``out`` (which run is which).

    ``experiment`` is its resolved configuration, ``root`` the folder that holds results/ and resources/. Raises LlmpqError when the
    tracking server cannot be used.
    """
    files = list(stage_files(experiment, Path(root)))
    store = Store(experiment, Path(root))
    mine = [marker for marker in session.markers() if _names_match(marker, experiment) and "ended" in marker]
    parents = {strategy: store.open(strategy, None, *_span(mine, strategy)) for strategy in [SHARED, *experiment["strategies"]]}
    finals: dict[str, Metrics] = {strategy: {} for strategy in parents}
    for strategy, label in dict.fromkeys((each.strategy or SHARED, each.label) for each in files if each.label != "track"):
        own = [each for each in files if (each.strategy or SHARED, each.label) == (strategy, label)]
        marker = next((each for each in mine if _is_of(each, strategy, label)), {})
        finals[strategy] |= _record_stage(store, experiment, strategy, label, own, marker)
    for strategy, metrics in _simulated(files).items():
        finals[strategy] |= metrics
    for strategy, run in parents.items():
        groups = _SIMULATED_PARAMETERS if is_simulated(experiment) else _PARENT_PARAMETERS
        parameters = {"strategy": strategy, **_flat({group: experiment[group] for group in groups})}
        store.log(run, parameters, finals[strategy] if strategy != SHARED else {})
        store.tag(run, {"mlflow.note.content": _note(files, strategy), "llmpq.suite": experiment["suite"]})
    if is_simulated(experiment):
        for run in [*store.children(), *parents.values()]:
            store.tag(run, {"llmpq.source": "simulated"})
    body = {"experiment": experiment["name"], "uri": store.shown_uri, "config_sha256": config_digest(experiment), "runs": store.rows()}
    document = artifacts.write(out, "tracking", body, source="computed", config=experiment["tracking"])
    store.artifact(parents[SHARED], Path(out))
    for run in [*store.children(), *parents.values()]:
        store.close(run, "FINISHED")
    return document


def _record_stage(
    store: "Store", experiment: Mapping[str, Any], strategy: str, label: str, files: list[StageFile], marker: Mapping[str, Any]
) -> Metrics:
    """One child run: parameters, metrics, files and log of a stage; returns its metrics."""
    run = store.open(strategy, label, marker.get("started"), marker.get("ended"))
    metrics: Metrics = {}
    for each in files:
        if each.path.suffix == ".json" and each.copied:
            metrics |= metrics_of(json.loads(each.path.read_text(encoding="utf-8")))
    parameters = _flat({group: experiment[group] for group in _STAGE_PARAMETERS.get(label.split("/")[0], [])})
    if marker.get("ended"):
        metrics["job_s"] = marker["ended"] - marker["started"]
    store.log(run, parameters, metrics)
    for each in files:
        if each.copied:
            store.artifact(run, each.path)
    store.text(run, json.dumps([each.record() for each in files], indent=1), "files.json")
    log = Path(marker.get("log", ""))
    if log.is_file():
        store.text(run, _tail(log), "log.txt")
    return metrics


@one_message()
def record_failures() -> list[str]:
    """Tell MLflow of the stages that the latest run of the workflow in this folder left failed or unfinished; returns their names.

    Called when Snakemake ends with an error, and by the next run for one that was killed. Stages that were finished after an earlier
    failure are set right too, and no run is left RUNNING.
    """
    known = session.read_session()
    if known is None:
        return []
    failed: list[str] = []
    shown = set(session.REPORTED.read_text(encoding="utf-8").splitlines()) if session.REPORTED.is_file() else set()
    current = [marker for marker in session.markers() if marker.get("session") == known["id"]]
    for experiment in known["experiments"].values():
        mine = {_job_name(marker, experiment): marker for marker in current if _names_match(marker, experiment)}
        bad = [name for name, marker in mine.items() if marker["state"] in session.UNFINISHED]
        if not bad and not shown & mine.keys():
            continue
        store = Store(experiment, Path("."))
        for name, marker in mine.items():
            strategy, label = marker["wildcards"].get("strategy", SHARED), stage_label(marker["rule"], marker["wildcards"])
            if name in bad:
                _record_failure(store, strategy, label, marker)
            else:
                store.mend(strategy, label)
                shown.discard(name)
        store.end_unfinished()
        failed += bad
    session.write_reported(shown | set(failed))
    return failed


def _job_name(marker: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    strategy, label = marker["wildcards"].get("strategy", SHARED), stage_label(marker["rule"], marker["wildcards"])
    return f"{experiment['name']}/{strategy} {label}"


def _record_failure(store: "Store", strategy: str, label: str, marker: Mapping[str, Any]) -> None:
    error = marker.get("error") or "killed: the job started and never ended"
    run = store.open(strategy, label, marker.get("started"), marker.get("ended"))
    store.tag(run, {"llmpq.error": error[:4000]})
    log = Path(marker.get("log", ""))
    store.text(run, _tail(log) if log.is_file() else error, "log_tail.txt")
    store.close(run, "FAILED")
    parent = store.open(strategy, None)
    store.tag(parent, {"llmpq.error": f"{label}: {error}"[:4000]})
    store.close(parent, "FAILED")


def _is_of(marker: Mapping[str, Any], strategy: str, label: str) -> bool:
    return marker["wildcards"].get("strategy", SHARED) == strategy and stage_label(marker["rule"], marker["wildcards"]) == label


def _span(markers: Iterable[Mapping[str, Any]], strategy: str) -> tuple[float | None, float | None]:
    """When the first stage of a strategy (or of what all share) began and the last one ended."""
    mine = [marker for marker in markers if marker["wildcards"].get("strategy", SHARED) == strategy and marker["rule"] != "track"]
    return (min(marker["started"] for marker in mine), max(marker["ended"] for marker in mine)) if mine else (None, None)


def _names_match(marker: Mapping[str, Any], experiment: Mapping[str, Any]) -> bool:
    """Whether the names in a job's wildcards are those that the experiment uses."""
    names = names_of(experiment)
    return all(value in names.get(key, [value]) for key, value in marker["wildcards"].items())


def _simulated(files: Iterable[StageFile]) -> dict[str, Metrics]:
    """Times and speed of every strategy that was simulated."""
    path = next((each.path for each in files if each.path.name == "simulation.json"), None)
    return {} if path is None else simulated_metrics(artifacts.read(path, "simulation"))


def _note(files: Iterable[StageFile], strategy: str) -> str:
    """What the run's page says at its top: the plan in words."""
    plan = next((each.path for each in files if each.strategy == strategy and each.label == "plan"), None)
    if plan is None:
        return "What the strategies of this experiment share."
    lines = []
    document = json.loads(plan.read_text(encoding="utf-8"))
    if (why := planless.reason(document)) is not None:
        return f"{document['status']}: {why}"
    for stage in document["stages"]:
        options = stage["options"]
        counts = ", ".join(f"{options.count(option)} × {option}" for option in dict.fromkeys(options))
        counts += "".join(f", {end} at {stage[f'{end}_option']}" for end in ("embedding", "head") if stage[f"{end}_option"])
        last = stage["first_layer"] + len(options) - 1
        lines.append(f"- {stage['device']}: layers {stage['first_layer']} to {last}, {counts}; {stage['bytes']['total'] / 2**20:.0f} MiB")
    return "\n".join(lines)


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """``{"a": {"b": [1, 2]}}`` as ``{"a.b": "1, 2"}``; entries of a list that have a name go under it."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        value = {item["name"]: {key: part for key, part in item.items() if key != "name"} for item in value}
    if isinstance(value, Mapping):
        parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: item for part in parts for key, item in part.items()}
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return {prefix: text[:500]}  # MLflow refuses more than 6000


def read_record(path: str | Path) -> dict[str, Any]:
    """The configuration that ``config_record`` wrote beside an experiment's results."""
    import yaml

    try:
        record = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file (expected the configuration beside an experiment's results)") from None
    except (OSError, yaml.YAMLError) as error:
        raise ArtifactError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(record, dict) or "strategies" not in record:
        raise ArtifactError(f"{path}: is not the configuration of an experiment (key 'strategies' is missing)")
    return record
