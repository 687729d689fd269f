"""No pickle between stages or on disk, and no secret of the environment in anything that a run writes or says."""

import ast
import os
import subprocess
from pathlib import Path

import pytest
from serve_cases import Case, requests
from test_faults import launcher

from llmpq.sources import PACKAGE, all_modules, closure

SERIALISERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def tree(module: str) -> ast.Module:
    file = PACKAGE.parent.joinpath(*module.split("."))
    return ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", sorted(closure("llmpq.serve.*", "llmpq.profile.*")))
def test_nothing_that_serves_or_times_links_pickles(module: str) -> None:
    """No module for it, no torch.load or torch.save, and none of torch.distributed's calls for objects."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & SERIALISERS
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] not in SERIALISERS
        elif isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save")
            assert "object_list" not in node.attr
            assert not node.attr.endswith("_object")


def test_wherever_a_checkpoint_of_pickles_is_read_it_may_hold_tensors_only() -> None:
    calls = [
        node
        for module in all_modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    for call in calls:
        assert {word.arg: ast.unparse(word.value) for word in call.keywords}["weights_only"] == "True"


def test_secrets_of_the_environment_are_in_no_file_and_no_line(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends well, and one whose stage fails with its log shown."""
    secrets = {name: f"very-secret-{name}" for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    case = Case(tmp_path, tiny_checkpoint, requests([4] * 2, 3), [3, 3], (1, 1))
    said = "".join(launcher(case).communicate(timeout=120))
    assert "2 requests, 6 tokens" in said
    case.cluster["members"][1]["prefix"] = ["sh", "-c", "echo this host is broken >&2; exit 5", "sh"]
    process = launcher(case)
    said += "".join(process.communicate(timeout=120))
    assert process.returncode == 2
    assert "this host is broken" in said
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [text for text in (*written, said.encode()) if b"very-secret" in text]
    assert subprocess.run(["printenv", "HF_TOKEN"], capture_output=True, env=os.environ, check=True).stdout.startswith(b"very-secret")
