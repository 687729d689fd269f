"""The digest of a stage's sources changes with what the stage can reach, and with nothing else."""

import re
import shutil
from pathlib import Path

import pytest

from llmpq.sources import PACKAGE, all_modules, closure, code_digest

RULES = Path(__file__).parents[2] / "workflow" / "rules"
# Beside the stages: exports, the command line, the bench of the planner, the workflow's own frame, and what reads the configuration.
BESIDE = re.compile(r"llmpq(\.(cli|__main__|commands.*|config.*|doctor|export.*|job|session|sources|bench.*|plan\.textbook))?$")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE, tmp_path / "llmpq", ignore=shutil.ignore_patterns("__pycache__")))


def edit(package: Path, file: str) -> None:
    path = package / file
    path.write_text(path.read_text(encoding="utf-8") + "\n# an edit\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "stages", "others"),
    [
        ("plan/milp.py", ["llmpq.plan.*"], ["llmpq.quant.calibrate", "llmpq.profile.layers", "llmpq.serve.*", "llmpq.cost.problem"]),
        ("profile/layers.py", ["llmpq.profile.layers"], ["llmpq.plan.*", "llmpq.serve.*", "llmpq.quant.calibrate"]),
        ("serve/worker.py", ["llmpq.serve.*"], ["llmpq.evaluate.*", "llmpq.plan.*", "llmpq.profile.layers"]),
        ("quant/kernels/cpu.py", ["llmpq.profile.layers", "llmpq.serve.*", "llmpq.evaluate.*"], ["llmpq.plan.*", "llmpq.text"]),
        ("model/families/llama.py", ["llmpq.model.prepare", "llmpq.quant.calibrate", "llmpq.serve.*"], ["llmpq.plan.*", "llmpq.report.*"]),
        ("emulation.py", ["llmpq.profile.layers", "llmpq.serve.*"], ["llmpq.evaluate.*", "llmpq.quant.calibrate", "llmpq.plan.*"]),
    ],
)
def test_an_edit_reaches_the_stages_that_import_it(package: Path, file: str, stages: list[str], others: list[str]) -> None:
    before = {name: code_digest(name, package=package) for name in stages + others}
    edit(package, file)
    changed = [name for name in before if code_digest(name, package=package) != before[name]]
    assert changed == stages


def test_a_file_added_to_a_package_that_looks_into_its_folder_counts(package: Path) -> None:
    before = code_digest("llmpq.model.checkpoint", package=package)
    (package / "model/families/newcomer.py").write_text("NAMES = None\n", encoding="utf-8")
    assert "llmpq.model.families.newcomer" in closure("llmpq.model.checkpoint", package=package)
    assert code_digest("llmpq.model.checkpoint", package=package) != before


def test_every_module_belongs_to_a_rule() -> None:
    calls = [call for path in RULES.glob("*.smk") for call in re.findall(r"code_digest\(([^)]*)\)", path.read_text(encoding="utf-8"))]
    entries = [name for call in calls for name in re.findall(r'"([^"]+)"', call)]
    covered = closure(*entries)
    assert not {name for name in all_modules() - covered if not BESIDE.match(name)}


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"llmpq\.nowhere"):
        code_digest("llmpq.nowhere")
