"""Changing a value, a source file or a result re-runs the right rules and no others."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from dry_runs import ON_SLURM, ROOT, NeedRun, dry_run

from llmpq.config import Experiment
from llmpq.config_slurm import SlurmCluster, SlurmDevice

TABLE: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "triggers.yaml").read_text(encoding="utf-8"))
CHANGES = [(group, row["change"], row["rules"]) for group, rows in TABLE["changes"].items() for row in rows]


def expand(rules: list[str]) -> set[str]:
    return {name for rule in rules for name in TABLE["chains"].get(rule, [rule])}


@pytest.mark.parametrize(("group", "change", "rules"), CHANGES, ids=[change for _, change, _ in CHANGES])
def test_a_changed_value_runs_exactly_these_rules(need_run: NeedRun, group: str, change: str, rules: list[str]) -> None:
    assert need_run([change]) == expand(rules), f"{group}: {change}"


@pytest.mark.parametrize(("change", "rules"), [(row["change"], row["rules"]) for row in TABLE["on_slurm"]])
def test_what_a_job_on_slurm_is_given_runs_nothing_again(up_to_date_on_slurm: Path, change: str, rules: list[str]) -> None:
    ran = {rule for rule, _ in dry_run(up_to_date_on_slurm, ["duo"], [*ON_SLURM, change])}
    assert ran == expand(rules)


def test_every_setting_for_slurm_is_tried() -> None:
    known = {f"cluster.slurm.{each.name}" for each in fields(SlurmCluster)} | {f"slurm.{each.name}" for each in fields(SlurmDevice)}
    tried = [row["change"].split("=")[0] for row in TABLE["on_slurm"]]
    assert [key for key in known if not any(change.endswith(key) for change in tried)] == []


def test_nothing_runs_without_a_change(need_run: NeedRun) -> None:
    assert need_run() == set()


def test_every_group_is_tried_with_at_least_two_values() -> None:
    groups = {path.name for path in (ROOT / "config").iterdir() if path.is_dir()}
    assert set(TABLE["changes"]) == groups
    for group, rows in TABLE["changes"].items():
        keys = {row["change"].split("=")[0] for row in rows}
        assert len(keys) >= 2, group


def test_every_group_of_an_experiment_is_in_the_table() -> None:
    groups = {name for name, kind in Experiment.__annotations__.items() if hasattr(kind, "__dataclass_fields__")}
    assert groups <= set(TABLE["changes"])


@pytest.mark.parametrize(
    ("path", "rules"),
    [
        # the front (rule pareto) does not read a plan
        ("results/experiments/duo/llmpq/plan.json", ["plan", "explain", "serve", "evaluate", "report", "track"]),
        ("results/experiments/duo/llmpq/serve.json", ["from_serve"]),
        ("results/experiments/duo/problem.json", ["from_problem"]),
        ("results/experiments/duo/report.html", ["report", "track"]),
        ("results/profiles/default/smollm2-135m-instruct/cpu-slow.json", ["from_profile"]),
        ("results/indicators/smollm2-135m-instruct/gptq/residual-error.json", ["from_indicator"]),
        ("results/quantised/smollm2-135m-instruct/gptq/layers-000-014", ["from_quantise"]),
        ("results/quantised/smollm2-135m-instruct/ends", ["quantise_ends", "from_indicator"]),
        ("results/references/smollm2-135m-instruct/perplexity.safetensors", ["reference", "evaluate", "report", "track"]),
    ],
)
def test_a_deleted_result_runs_its_rule_and_what_follows(editable_copy: Path, path: str, rules: list[str]) -> None:
    target = editable_copy / path
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    assert {rule for rule, _ in dry_run(editable_copy, ["duo"])} == expand(rules)


def test_a_second_device_is_profiled_alone(editable_copy: Path) -> None:
    jobs = dry_run(editable_copy, ["duo"], ["cluster.types.cpu-slow.slowdown=4"])
    assert [outputs for rule, outputs in jobs if rule == "profile"] == [["results/profiles/default/smollm2-135m-instruct/cpu-slow.json"]]


def test_an_experiment_beside_a_finished_one_shares_its_results(up_to_date: Path) -> None:
    ran = {rule for rule, _ in dry_run(up_to_date, ["trio"])}
    assert not ran & {"prepare_model", "prepare_text", "calibrate", "quantise", "indicator", "profile", "fit"}
    assert {"links", "problem", "plan", "serve"} <= ran


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("plan/milp.py", ["from_plan"]),
        ("serve/worker.py", ["from_serve"]),
        ("report/page.py", ["report", "track"]),
        ("profile/layers.py", ["from_profile"]),
        ("indicator/variance.py", ["from_indicator"]),
        ("evaluate/reference.py", ["reference", "evaluate", "report", "track"]),
        ("evaluate/continuation.py", ["evaluate", "report", "track"]),
    ],
)
def test_an_edited_source_file_runs_the_stages_that_use_it(need_run: NeedRun, sources: Path, file: str, rules: list[str]) -> None:
    text = (sources / file).read_text(encoding="utf-8")
    (sources / file).write_text(text + "\n# an edit\n", encoding="utf-8")
    try:
        assert need_run() == expand(rules)
    finally:
        (sources / file).write_text(text, encoding="utf-8")
