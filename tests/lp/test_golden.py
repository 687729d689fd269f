"""Every constraint of the integer program, built alone on a small model and compared with the LP file kept beside this test.

After a change that is meant: ``LLMPQ_WRITE_GOLDEN=1 pytest tests/lp`` writes the files anew; read the difference before committing it.
"""

import inspect
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pyomo.environ as pyo
import pytest

from llmpq.plan import milp, textbook
from llmpq.plan.candidate import build
from llmpq.plan.microbatch import MicroBatches
from llmpq.plan.problem import Problem

HERE = Path(__file__).parent
NAMES = [constrain.__name__ for constrain in milp.CONSTRAINTS]


def document() -> dict[str, Any]:
    """problem.json with a choice for the ends (the first stage's embedding, the last one's head), and an 8-bit cache on the one between."""
    found: dict[str, Any] = json.loads((HERE / "problem.json").read_text())
    fast, slow, old = found["devices"]
    fast["embedding"]["8"] = {"resident_bytes": 50, "prefill_ms": {"1": 1.25, "2": 2.5}, "decode_ms": {"1": 0.25, "2": 0.5}}
    old["head"]["8"] = {"resident_bytes": 60, "prefill_ms": {"1": 7, "2": 14}, "decode_ms": {"1": 5, "2": 10}}
    slow["options"]["4/kv8"] = {"resident_bytes": 60, "prefill_ms": {"1": 31, "2": 62}, "decode_ms": {"1": 1.5, "2": 3}}
    found["options"].append("4/kv8")
    found["omega"]["4/kv8"] = [0.45, 0.35, 0.25, 0.15]
    found["kv_bytes_per_layer"] = {"16": 20, "8": 12}
    found |= {"end_options": ["16", "8"], "end_omega": {"embedding": {"8": 0.01}, "head": {"8": 0.02}}}
    return found


def small_model() -> milp.Model:
    """Three devices in a row, four layers, three options (some missing on a device), two micro-batches, a quality budget."""
    problem = Problem.from_document(document())
    return milp.declare(problem, build(problem, (0, 1, 2), MicroBatches.choose(problem.slots, 1, 1)))


def written(model: milp.Model, tmp_path: Path) -> str:
    file = tmp_path / "model.lp"
    model.write(str(file), io_options={"symbolic_solver_labels": True})
    return file.read_text()


def compare(name: str, text: str) -> None:
    golden = HERE / f"{name}.lp"
    if os.environ.get("LLMPQ_WRITE_GOLDEN"):
        golden.write_text(text)
    assert golden.is_file(), f"{golden.name} is missing: every constraint needs a golden LP file (see this test's first lines)"
    assert text == golden.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_constraint(name: str, tmp_path: Path) -> None:
    model = small_model()
    getattr(milp, name)(model)
    model.objective = pyo.Objective(expr=0 * model.round)
    compare(name, written(model, tmp_path))


@pytest.mark.parametrize("name", ["one_place", "pairwise_contiguity"])
def test_textbook_constraint(name: str, tmp_path: Path) -> None:
    problem = small_model().problem.value
    model = textbook.declare_textbook(problem, build(problem, (0, 1, 2), MicroBatches.choose(problem.slots, 1, 1)))
    getattr(textbook, name)(model)
    model.objective = pyo.Objective(expr=0 * model.round)
    compare(name, written(model, tmp_path))


def test_objective(tmp_path: Path) -> None:
    model = small_model()
    model.objective = pyo.Objective(expr=milp.time_ms(model) + 100.0 * milp.omega_sum(model))
    compare("objective", written(model, tmp_path))


def test_cutoff(tmp_path: Path) -> None:
    problem = small_model().problem.value
    whole = milp.build_model(problem, build(problem, (0,), MicroBatches.choose(problem.slots, 2, 2)), cutoff_ms=500.0)
    compare("one_stage_with_cutoff", written(whole, tmp_path))


@pytest.mark.parametrize("module", [milp, textbook], ids=lambda module: module.__name__)
def test_every_constraint_is_in_the_list(module: ModuleType) -> None:
    """A function that adds a constraint but is not listed would never be built, nor compared here."""
    functions = [item for _, item in inspect.getmembers(module, inspect.isfunction) if item.__module__ == module.__name__]
    constraining = {item.__name__ for item in functions if "pyo.Constraint(" in inspect.getsource(item)} - {"set_objective"}
    listed = milp.CONSTRAINTS if module is milp else textbook.TEXTBOOK_CONSTRAINTS
    assert constraining == {item.__name__ for item in listed if item.__module__ == module.__name__}
    assert len(set(listed)) == len(listed)
    assert constraining <= {file.stem for file in HERE.glob("*.lp")}


def test_no_golden_file_is_left_over() -> None:
    assert {file.stem for file in HERE.glob("*.lp")} == {*NAMES, "one_place", "pairwise_contiguity", "objective", "one_stage_with_cutoff"}


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_program_holds_every_constraint(name: str) -> None:
    problem = small_model().problem.value
    whole = milp.build_model(problem, build(problem, (0, 1, 2), MicroBatches.choose(problem.slots, 1, 1)))
    assert len(whole.component(name)) > 0


def test_one_pair_of_end_options_needs_no_variable() -> None:
    problem = Problem.from_document(json.loads((HERE / "problem.json").read_text()))
    whole = milp.build_model(problem, build(problem, (0, 1, 2), MicroBatches.choose(problem.slots, 1, 1)))
    assert len(whole.end) == len(whole.one_end) == 0
