"""problem.json of an experiment whose devices are known from data sheets alone: its configuration in, numbers out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmpq import artifacts
from llmpq.cost.catalogue import Shape
from llmpq.cost.paper import catalogue_problem


def data_sheet_problem(
    name: str, model: Mapping[str, Any], cluster: Mapping[str, Any], workload: Mapping[str, Any], planner: Mapping[str, Any], kernels: str
) -> dict[str, Any]:
    """Body of problem.json for the groups of an experiment; ``kernels`` is the generation of GPU kernels (``2023``, ``today``).

    Damage is the stand-in of ``cost.stand_in``, which the problem's description says.
    """
    objective = {key: float(value) for key, value in planner["objective"].items() if value is not None}
    return catalogue_problem(
        name,
        str(model["name"]),
        Shape(layers=int(model["layers"]), **model["shape"]),
        cluster,
        cluster["types"],
        workload,
        kernels,
        objective,
        model["end_options"],
        {phase: sizes for phase, sizes in planner["micro_batches"].items() if sizes},
    )


def write_data_sheet_problem(out: str | Path, **groups: Any) -> dict[str, Any]:
    """Write the problem of an experiment (arguments of ``data_sheet_problem``); returns the document."""
    return artifacts.write(out, "problem", data_sheet_problem(**groups), source="catalogue", inputs=[], config=groups)
