"""``llmpq simulate``: the figures of the simulation, and its timeline."""

import json
from pathlib import Path

import pytest

from llmpq import artifacts
from llmpq.cli import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Path, Path]:
    """The problem written by hand in docs/artifacts.md, and llmpq's plan for it."""
    text = (ROOT / "docs" / "artifacts.md").read_text(encoding="utf-8")
    problem, plan = tmp_path / "problem.json", tmp_path / "plan.json"
    problem.write_text(text.split("```json\n")[1].split("```")[0], encoding="utf-8")
    assert main(["plan", str(problem), "--out", str(plan)]) == 0
    return problem, plan


def test_the_plans_own_workload_takes_what_the_plan_says(
    planned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem, plan = planned
    capsys.readouterr()
    assert main(["simulate", str(problem), str(plan), "--timeline", str(tmp_path / "trace.json")]) == 0
    found, predicted = capsys.readouterr().out, artifacts.read(plan, "plan")["predicted"]
    assert "2 requests, 16 tokens, simulated from computed tables" in found
    seconds = float(found.split("\n")[1].split(" s ")[0])
    assert seconds == pytest.approx(predicted["total_s"], rel=0.05)  # first tokens come back over the link here
    trace = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))
    stages = len(artifacts.read(plan, "plan")["stages"])
    assert trace["otherData"]["source"] == "simulated"
    assert {event["pid"] for event in trace["traceEvents"]} == set(range(stages, 2 * stages))


def test_other_requests_and_another_schedule(planned: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, plan = planned
    rows = [
        {"id": str(index), "prompt_tokens": [1] * length, "max_new_tokens": new}
        for index, (length, new) in enumerate([(3, 2), (9, 8), (5, 4)])
    ]
    artifacts.write(tmp_path / "workload.json", "workload", {"name": "test", "requests": rows}, source="computed")
    capsys.readouterr()
    arguments = ["simulate", str(problem), str(plan), "--requests", str(tmp_path / "workload.json"), "--schedule"]
    assert [main([*arguments, schedule]) for schedule in ("barrier", "continuous")] == [0, 0]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "requests" in line] == ["3 requests, 14 tokens, simulated from computed tables"] * 2
    times = [float(line.split(" s ")[0]) for line in lines if "prefill" in line]
    assert times[1] < times[0]  # the third request need not wait for the longest


def test_a_plan_of_another_problem_is_refused(planned: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    problem, plan = planned
    problem.write_text(problem.read_text(encoding="utf-8").replace('"by-hand"', '"other"'), encoding="utf-8")
    assert main(["simulate", str(problem), str(plan)]) == 2
    assert "key 'problem_sha256' is not the digest of" in capsys.readouterr().err
