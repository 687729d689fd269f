"""The packages form a line: each imports only what lies before it, and the planner nothing but artifacts."""

import ast
from pathlib import Path

import pytest

from llmpq.sources import PACKAGE, all_modules, closure

# What each part may import besides itself. `quant` and `model` know each other: a layer is made of packed operators, and
# quantising runs layers.
BASE = {"errors", "artifacts", "schemas", "planless"}
MODEL = {"model", "native", "quant", "sources", "progress"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "artifacts": {"errors", "schemas"},
    "planless": {"errors", "artifacts", "schemas"},
    "emulation": BASE,
    "processes": BASE,
    "heartbeat": set(),
    "slurm": BASE | {"heartbeat", "processes"},
    "progress": set(),
    "sources": set(),
    "config": BASE
    | {
        "config_checks",
        "config_cluster",
        "config_evaluate",
        "config_messages",
        "config_slurm",
        "config_suites",
        "emulation",
        "plan",
        "quant",
    },
    "config_evaluate": set(),
    "config_simulated": set(),
    "config_suites": {"errors"},
    "config_cluster": {"config_slurm"},
    "config_slurm": set(),
    "config_messages": set(),
    "config_checks": BASE | {"config", "config_evaluate", "config_simulated", "emulation", "plan", "quant"},
    "config_cache": BASE | {"config", "config_suites"},
    "config_groups": BASE | {"config", "config_messages"},
    "wikitext": BASE,
    "benchmark_texts": BASE,
    "text": BASE | {"benchmark_texts", "model", "wikitext"},
    "workload": BASE | {"model", "text"},
    "native": set(),
    "model": BASE | MODEL,
    "quant": BASE | MODEL,
    "profile": BASE | MODEL | {"emulation", "processes", "slurm"},
    "cost": BASE | MODEL | {"plan"},
    "bench": BASE | MODEL | {"cost", "plan", "report"},
    "bench_backends": BASE | MODEL | {"bench", "config_groups", "serve", "vllm_serve"},
    "bench_faults": BASE | MODEL | {"bench", "bench_serve", "processes", "serve"},
    "bench_serve": BASE | MODEL | {"bench", "evaluate", "report", "schedule", "serve", "text"},
    "indicator": BASE | MODEL,
    "plan": BASE,
    "schedule": set(),
    "trace": set(),
    "simulate": BASE | {"plan", "schedule", "trace"},
    "planning": BASE | {"plan", "simulate"},
    "serve": BASE | MODEL | {"emulation", "processes", "schedule", "simulate", "slurm", "trace"},
    "vllm_serve": BASE | MODEL | {"export", "processes", "profile", "serve", "trace"},
    "validity": BASE | MODEL | {"evaluate", "text", "report"},
    "evaluate": BASE | MODEL | {"text"},
    "export": BASE | MODEL | {"schedule"},
    "report": BASE,
    "suites": BASE | {"report"},
    "session": BASE | {"heartbeat", "slurm"},
    "job": BASE | {"heartbeat", "session"},
    "track_files": BASE | {"config_evaluate", "config_simulated"},
    "archive": BASE | {"config_evaluate", "config_simulated", "track_files"},
    "track_metrics": BASE,
    "track_store": BASE,
    "track": BASE | {"config_evaluate", "config_simulated", "session", "track_files", "track_metrics", "track_store"},
    "doctor": BASE | MODEL | {"plan", "vllm_serve"},
    "cli": {"errors", "commands"},
    "__main__": {"cli"},
}


def imports(module: str) -> set[str]:
    """Dotted llmpq names that a module imports, also inside functions."""
    file = PACKAGE.parent.joinpath(*module.split("."))
    source = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str:
    return name.split(".")[1] if "." in name else "errors"


@pytest.mark.parametrize("module", sorted(all_modules() - {"llmpq"}))
def test_a_module_imports_only_what_lies_upstream(module: str) -> None:
    own = part(module)
    used = {part(name) for name in imports(module) if name.startswith("llmpq.") and name != "llmpq.__version__"}
    if own == "commands":
        assert "cli" not in used
        return
    assert own in ALLOWED, f"{module}: say in this test what it may import"
    assert used <= ALLOWED[own] | {own}


@pytest.mark.parametrize("module", sorted(all_modules() - {"llmpq"}))
def test_only_the_workflows_scripts_know_snakemake(module: str) -> None:
    assert not [name for name in imports(module) if name.split(".")[0] == "snakemake"]


def test_the_planner_and_its_bench_need_neither_torch_nor_pandas() -> None:
    heavy = {"torch", "pandas", "transformers", "mlflow", "hydra", "omegaconf"}
    for module in closure("llmpq.plan.*", "llmpq.simulate.*", "llmpq.bench.*"):
        assert not {name.split(".")[0] for name in imports(module)} & heavy, module


def test_no_file_and_no_function_is_too_long() -> None:
    long = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 300:
            long.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno > 60:
                long.append(f"{path.name}: {node.name} has {node.end_lineno - node.lineno} lines")
    assert not long


@pytest.mark.parametrize("script", sorted((Path(__file__).parents[2] / "workflow" / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_a_short_adapter_named_as_its_rule(script: Path) -> None:
    rules = "".join(path.read_text(encoding="utf-8") for path in sorted((script.parents[1] / "rules").glob("*.smk")))
    assert f"rule {script.stem}:" in rules
    assert f'"../scripts/{script.name}"' in rules
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 45
