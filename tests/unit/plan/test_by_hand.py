"""The problem written by hand in docs/artifacts.md is complete, plans on the command line, and gives the plan worked out below."""

import json
from pathlib import Path

import pytest

from llmpq import artifacts
from llmpq.cli import main

DOCUMENT = Path(__file__).parents[3] / "docs" / "artifacts.md"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    text = DOCUMENT.read_text(encoding="utf-8").split("```json\n")[1].split("```")[0]
    path = tmp_path / "problem.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("solver", ["glpk", "highs"])
def test_the_documented_example_plans_and_checks(example: Path, solver: str) -> None:
    """On the server alone, worked out by hand.

    Of 32000 bytes the workspace leaves 31000 or 31500; embedding 8000 and head 8000 or 4000 leave at most 19500 for two layers: only
    two of 6000 + 500 fit, 13000, and both heads do (29000 + workspace). Micro-batches of 2 and 2: prefill 6 + 6 + 1 + 2 = 15; decode
    7 rounds of 0.9 + 0.9 + 0.1 and the head's 0.5 or 0.3: 16.8 or 15.4. The 8-bit head saves 1.4 ms for 0.05 x 20 = 1 ms of damage.
    Objective: 15 + 15.4 + 20 x 1.05 = 51.4.
    """
    out = example.parent / "plan.json"
    assert main(["plan", str(example), "--out", str(out), "--solver", solver, "--gap", "0"]) == 0
    assert main(["check", str(example), str(out)]) == 0
    plan = artifacts.read(out, "plan")
    assert [stage["device"] for stage in plan["stages"]] == ["server"]
    stage = plan["stages"][0]
    assert (stage["options"], stage["embedding_option"], stage["head_option"]) == (["4/kv8", "4/kv8"], "16", "8")
    assert stage["bytes"]["kv"] == 2 * 500
    assert plan["objective_ms"] == pytest.approx(15 + 15.4 + 21)


def test_every_key_of_the_problem_schema_is_described() -> None:
    """What a person may write is explained where it is defined, down to the tables' own keys."""
    schema = json.loads((DOCUMENT.parents[1] / "src" / "llmpq" / "schemas" / "problem.schema.json").read_text(encoding="utf-8"))
    self_explaining = {"schema", "version", "name", "description", "from", "to", "layers", "model", "workload", "prefill", "decode"}
    missing = []

    def visit(node: object, where: str) -> None:
        if isinstance(node, dict):
            for key, entry in node.get("properties", {}).items():
                if "description" not in entry and key not in self_explaining:
                    missing.append(f"{where}.{key}")
            for key, item in node.items():
                visit(item, f"{where}.{key}")
        elif isinstance(node, list):
            for item in node:
                visit(item, where)

    visit(schema, "")
    assert missing == []
