"""Every experiment gives a complete plan of jobs, and every mistake one line before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest
from dry_runs import ROOT, dry_run

from llmpq.config import DEFAULT_STRATEGIES, compose
from llmpq.config_simulated import is_simulated
from llmpq.config_suites import ASKED_FOR, experiment_files, experiment_names
from llmpq.track_files import targets

EXPERIMENTS = experiment_names(ROOT / "config")
FILES = experiment_files(ROOT / "config")
SUITES = sorted({each.suite for each in FILES.values()})
# Every experiment that is served, and one of each suite that is simulated.
SAMPLE = sorted(
    {name for name, each in FILES.items() if each.suite == "local"} | {min(n for n in FILES if FILES[n].suite == s) for s in SUITES}
)


@pytest.mark.parametrize("name", SAMPLE)
def test_an_experiment_makes_all_of_its_files(tmp_path: Path, name: str) -> None:
    experiment = compose(ROOT / "config", [name])[name]
    jobs = dry_run(tmp_path, [name])
    made = [path for _, outputs in jobs for path in outputs]
    assert set(targets(experiment)) == set(made)
    assert len(made) == len(set(made))
    ran = [rule for rule, _ in jobs]
    strategies, devices = len(experiment["strategies"]), len({member["device"] for member in experiment["cluster"]["members"]})
    counts = {"plan": strategies, "serve": strategies, "evaluate": strategies, "profile": devices, "simulate": 0}
    if is_simulated(experiment):
        counts = {"plan": strategies, "serve": 0, "evaluate": 0, "profile": 0, "prepare_model": 0, "simulate": 1, "data_sheet_problem": 1}
    assert {rule: ran.count(rule) for rule in counts} == counts


def test_all_runs_every_suite_but_those_asked_for_and_shares_what_can_be_shared(tmp_path: Path) -> None:
    jobs = dry_run(tmp_path, [])
    served = [Path(outputs[0]).parts[2:4] for rule, outputs in jobs if rule == "serve"]
    chosen = {name: each for name, each in compose(ROOT / "config", EXPERIMENTS).items() if each["suite"] not in ASKED_FOR}
    here = [name for name, each in chosen.items() if not is_simulated(each)]
    assert sorted(served) == sorted((name, strategy) for name in here for strategy in DEFAULT_STRATEGIES)
    simulated = [Path(outputs[0]).parts[2] for rule, outputs in jobs if rule == "simulate"]
    assert sorted([*here, *simulated]) == sorted(chosen)
    ran = [rule for rule, _ in jobs]
    assert (ran.count("prepare_model"), ran.count("calibrate"), ran.count("indicator")) == (1, 1, 1)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_is_a_target(tmp_path: Path, suite: str) -> None:
    jobs = dry_run(tmp_path, [], targets=[suite])
    reported = {Path(outputs[0]).parts[2] for rule, outputs in jobs if rule == "report"}
    assert reported == {name for name, each in FILES.items() if each.suite == suite}


def test_an_entry_that_no_experiment_uses_can_be_asked_for_by_its_path(tmp_path: Path) -> None:
    names = {path.stem for path in (ROOT / "config" / "indicator").glob("*.yaml")}
    used = {each["indicator"]["name"] for each in compose(ROOT / "config", EXPERIMENTS).values()}
    assert names - used
    for name in sorted(names - used):
        jobs = dry_run(tmp_path, [], targets=[f"results/indicators/smollm2-135m-instruct/gptq/{name}.json"])
        assert [rule for rule, _ in jobs].count("indicator") == 1


def snakemake(folder: Path, *config: str) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).parent / "snakemake")
    command = [program, "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--workflow-profile", "none", "--config", *config]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (["experiments=duet"], ["unknown experiment 'duet'", "duo, duo-long, duo-mixed"]),
        (["experiments=duo", "overrides=model=gpt"], ["model/gpt", "smollm2-135m-instruct"]),
        (["experiments=duo", "overrides=strategies=[best]"], ["strategies", "best", "llmpq, llmpq-transfer, adabits"]),
        (["experiments=duo", "overrides=workload.colour=red"], ["workload.colour", "new_tokens"]),
        (["experiments=duo", "overrides=workload.new_tokens=many"], ["workload.new_tokens", "many"]),
        (["experiment=duo"], ["experiment", "known: experiments, overrides"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(tmp_path: Path, config: list[str], parts: list[str]) -> None:
    ended = snakemake(tmp_path, *config)
    assert ended.returncode != 0
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("llmpq: error: ")
    for part in parts:
        assert part in lines[0]
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("results/experiments/duet/problem.json", "unknown experiment 'duet'; this run knows: budget-0.1-2023, "),
        ("results/experiments/duo/best/plan.json", "unknown strategy 'best'; strategies are llmpq, llmpq-transfer, adabits, "),
        ("resources/models/gpt/model.json", "unknown model 'gpt'; known: bloom-176b, opt-13b, opt-30b, opt-66b, smollm2-135m-instruct"),
        (
            "results/profiles/default/smollm2-135m-instruct/gpu.json",
            "unknown device 'gpu'; known: a100-40g, a800-80g, cpu-fast, cpu-large, cpu-middle, cpu-slow",
        ),
        ("results/links/default/duet.json", "unknown cluster 'duet'; known: duo, pair, paper-1, "),
        ("resources/texts/bible.txt", "unknown text 'bible'; known: wikipedia, news, python-docs"),
        ("results/quantised/smollm2-135m-instruct/awq/layers-000-014", "unknown quantizer 'awq'; known: auto-gptq, gptq"),
        (
            "results/quantised/smollm2-135m-instruct/gptq/layers-000-099",
            "unknown group 'layers-000-099' of smollm2-135m-instruct with quantizer gptq; its layers_per_job makes: "
            "layers-000-014, layers-015-029",
        ),
        (
            "results/indicators/smollm2-135m-instruct/gptq/best.json",
            "unknown indicator 'best'; known: divergence, gptq-loss, gradient, hessian, random, residual-error, variance",
        ),
    ],
)
def test_an_unknown_name_in_a_path_is_one_line(tmp_path: Path, target: str, message: str) -> None:
    program = str(Path(sys.executable).parent / "snakemake")
    command = [program, "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--workflow-profile", "none", "--", target]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    told = [line for line in ended.stderr.splitlines() if line.startswith("llmpq: error: ")]
    assert len(told) == 1
    assert message in told[0]
    assert "Exception" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_quantizer_that_no_profile_times_can_be_asked_for(tmp_path: Path) -> None:
    program, target = str(Path(sys.executable).parent / "snakemake"), "results/quantised/smollm2-135m-instruct/gptq-fine/layers-000-014"
    command = [program, "--snakefile", str(ROOT / "Snakefile"), "-n", "--cores", "2", "--workflow-profile", "none", "--", target]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "gptq-fine" in ended.stdout + ended.stderr


def test_the_slurm_profile_is_found_and_plans_all(tmp_path: Path) -> None:
    program = str(Path(sys.executable).parent / "snakemake")
    command = [program, "--profile", str(ROOT / "slurm"), "--snakefile", str(ROOT / "Snakefile"), "--dry-run", "--", "all"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "serve" in ended.stdout + ended.stderr


def test_the_snakefile_is_short() -> None:
    assert len((ROOT / "Snakefile").read_text(encoding="utf-8").splitlines()) < 60


def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30)
    for target in ("run", "all", "test", "lint", "ui", "doctor", "clean"):
        assert f"make {target}" in shown.stdout
