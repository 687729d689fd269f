"""A tiny model with layers at 16 bits and W8A8, its plan of an uneven pipeline, the export of both, and requests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import planned_cases
import serve_cases
from planned_cases import NEW, PROMPT, REQUESTS, VOCAB

from llmpq import artifacts
from llmpq.export.plan import export_plan
from llmpq.model.spec import ModelSpec

OPTIONS, CUT = ("16", "w8a8", "16", "w8a8"), [3, 1]


@dataclass(frozen=True)
class Planned:
    """Where everything lies; ``export`` is the checkpoint for vLLM on the CPU."""

    model: Path
    quantised: list[Path]
    plan: Path
    problem: Path
    requests: Path
    export: Path
    cluster: dict[str, Any]

    def asked(self, **changes: Any) -> tuple[Any, ...]:
        """The arguments of ``serve_with_vllm`` up to the export; ``changes`` replace single ones."""
        given = {key: getattr(self, key) for key in ("plan", "problem", "requests", "cluster", "model", "export")}
        return tuple({**given, **changes}.values())


def planned(folder: Path) -> Planned:
    """Make it all under ``folder``. Heads have 32 columns, the fewest that vLLM's attention takes on the CPU."""
    made = planned_cases.quantised_model(folder, False, ["16", "w8a8", "4"], hidden_size=128)
    cluster, body = planned_cases.problem(made, [64.0, 64.0], options=["16", "w8a8"], end_options=["16"])
    problem = artifacts.write(folder / "problem.json", "problem", body, source="computed")
    spec = ModelSpec.from_directory(made["model"])
    plan = serve_cases.plan_body(spec, CUT, (1, 2), OPTIONS, REQUESTS, PROMPT + NEW, "16")
    serve_cases.write_plan(folder / "plan.json", {**plan, "problem_sha256": artifacts.body_digest(problem)})
    rows = serve_cases.requests([PROMPT, 3, PROMPT], NEW, vocab=VOCAB)
    serve_cases.write_workload(folder / "workload.json", rows)
    files = (folder / "plan.json", folder / "problem.json", folder / "workload.json", folder / "vllm")
    export_plan(files[0], files[1], made["model"], made["quantised"], files[3], platform="cpu")
    return Planned(made["model"], made["quantised"], *files, cluster)
