"""A plan as a checkpoint that vLLM serves: assignment, settings and weights brought together."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.export.assignment import Assignment
from llmpq.export.target import ExportError
from llmpq.export.vllm import Launch, Vllm, launch
from llmpq.export.write import export_checkpoint
from llmpq.model.spec import ModelSpec
from llmpq.quant.layer_index import Folders


def export_plan(
    plan_path: str | Path,
    problem_path: str | Path,
    checkpoint_dir: str | Path,
    quantised_dir: Folders | None,
    out: str | Path,
    *,
    platform: str,
    same_as: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write ``out`` for vLLM on ``platform`` and return export.json; ExportError where vLLM cannot express the plan, or it is another
    problem's."""
    target = Vllm(platform)
    assignment = Assignment.of_plan(artifacts.read(plan_path, "plan"), str(plan_path))
    served = _launch(Path(plan_path), Path(problem_path), checkpoint_dir, target.platform)
    inputs = (Path(plan_path), Path(problem_path))
    return export_checkpoint(checkpoint_dir, quantised_dir, assignment, target, out, same_as=same_as, launch=served, inputs=inputs)


def _launch(plan_path: Path, problem_path: Path, checkpoint_dir: str | Path, platform: str) -> Callable[[str], Launch]:
    """vLLM's settings for the plan, once the type that the checkpoint computes in is known."""
    plan, problem = artifacts.read(plan_path, "plan"), artifacts.read(problem_path, "problem")
    if plan["problem_sha256"] != artifacts.body_digest(problem):
        raise ExportError(f"{plan_path} was made for another problem than {problem_path}; give the problem it was planned for")
    spec = ModelSpec.from_directory(checkpoint_dir)
    return lambda dtype: launch(plan, problem, spec, platform, dtype)
