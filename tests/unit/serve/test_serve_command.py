"""``llmpq serve``: the settings are the experiment's, all of them, and a configuration that is not one is refused with its key."""

import json
from pathlib import Path
from typing import Any

import pytest
import serve_cases
from serve_cases import Case, requests

from llmpq import artifacts, cli
from llmpq.model.stage import StageModel


def serve_command(case: Case, config: Path, *more: str) -> int:
    plan = serve_cases.write_plan(case.directory / "plan.json", case.body)
    paths = {"--requests": case.workload, "--config": config, "--checkpoint": case.checkpoint, "--out": case.directory}
    return cli.main(["serve", str(plan), *(str(part) for pair in paths.items() for part in pair), *more])


def weights(case: Case, ends: str) -> str:
    options = ["32"] * serve_cases.LAYERS
    return StageModel.load(case.checkpoint, None, first_layer=0, options=options, embedding=ends, head=ends).weights_digest


def test_ends_are_the_plans_and_margins_those_of_the_configuration(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [6], (1, 2))
    config = serve_cases.configuration(case, tmp_path / "config.yaml")
    assert serve_command(case, config) == 0
    document = artifacts.read(tmp_path / "serve.json", "serve")
    assert document["weights_sha256"] == weights(case, "32")
    assert document["experiment"] == "test"
    assert all(len(row["margins"]) == 3 for row in case.results())


def test_the_schedule_can_be_chosen(tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 4, [3, 1, 1, 1]), [6], (1, 2), slots=2)
    assert serve_command(case, serve_cases.configuration(case, tmp_path / "config.yaml"), "--schedule", "continuous") == 0
    assert artifacts.read(tmp_path / "serve.json", "serve")["schedule"] == "continuous"
    assert "predicted" not in capsys.readouterr().out


def test_other_ends_of_the_plan_are_other_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [6], (1, 2), ends="16")
    assert serve_command(case, serve_cases.configuration(case, tmp_path / "config.yaml")) == 0
    assert artifacts.read(tmp_path / "serve.json", "serve")["weights_sha256"] == weights(case, "16") != weights(case, "32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["workload"].pop("slots"), "workload.slots"),
        (lambda config: config["serve"].update(timeout_s="soon"), "key 'serve.timeout_s': Value 'soon'"),
        (lambda config: config["serve"].update(time_out=3), "time_out"),
        (lambda config: config["cluster"]["types"]["cpu"].update(memory_mib="much"), "memory_mib"),
        (lambda config: config.pop("backend"), "key 'backend' is missing"),
        (lambda config: config.update(backend=[1]), "key 'backend' is [1], expected a group of keys"),
        (lambda config: config.update(sverve={}), "sverve"),
    ],
)
def test_a_configuration_that_is_not_one_is_refused_in_one_line(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [6], (1, 2))
    path = serve_cases.configuration(case, tmp_path / "config.yaml")
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    assert serve_command(case, path) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"llmpq: error: {path}: ")
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "serve.json").exists()
