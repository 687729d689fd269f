"""One plan served, evaluated and exported: all three name the same weights, and another layer anywhere is noticed."""

from pathlib import Path

import pytest
import serve_cases
import torch
from serve_cases import LAYERS, VOCAB, Case, requests

from llmpq import artifacts, cli
from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options, write_quality
from llmpq.quant.files import read_layer, write_layer

OPTIONS = ["4", "8", "16", "w8a8", "4", "8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Case:
    """A plan of two stages, served and evaluated: plan.json, serve.json and quality.json in its directory."""
    directory = tmp_path_factory.mktemp("same")
    layers = serve_cases.quantised_layers(tiny_checkpoint, directory / "layers", OPTIONS)
    case = Case(directory, tiny_checkpoint, requests([5, 7], 3), [2, 4], (1, 2), options=OPTIONS, quantised=layers, ends="16")
    case.serve()
    evaluate(case)
    return case


def evaluate(case: Case) -> None:
    plan = artifacts.read(case.directory / "plan.json", "plan")
    windows = {"text": torch.randint(0, VOCAB, (1, 16), generator=torch.Generator().manual_seed(0))}
    body = evaluate_quality(case.checkpoint, case.quantised, plan_options(plan), windows, ends=plan_ends(plan), progress=str)
    write_quality(case.directory / "quality.json", plan, body)


def export(case: Case, out: Path) -> int:
    same = [str(case.directory / name) for name in ("serve.json", "quality.json")]
    call = ["export", str(case.directory / "plan.json"), "--to", "compressed-tensors", str(out), "--checkpoint", str(case.checkpoint)]
    return cli.main([*call, "--quantised", str(case.quantised), "--same-as", *same])


def test_served_evaluated_and_exported_weights_are_the_same(finished: Case, tmp_path: Path) -> None:
    assert export(finished, tmp_path / "out") == 0
    folders = {"serve": finished.directory, "quality": finished.directory, "export": tmp_path / "out"}
    assert len({artifacts.read(folder / f"{kind}.json", kind)["weights_sha256"] for kind, folder in folders.items()}) == 1


@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_one_other_weight_in_one_layer_is_another_digest(
    finished: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: int
) -> None:
    """A layer file that is itself valid: the export says whose weights it is not; evaluated again, the two agree and serving does not."""
    path = finished.quantised / f"layer-{layer:03d}.{OPTIONS[layer]}.safetensors"
    before, tensors = path.read_bytes(), read_layer(path)
    tensors.operators["o"]["scales"].view(-1)[0] *= 2
    write_layer(path, tensors)
    try:
        assert export(finished, tmp_path / "out") == 2
        assert f"{finished.directory / 'serve.json'} is of other weights" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
        evaluate(finished)
        assert export(finished, tmp_path / "out") == 2
        assert "serve.json is of other weights" in capsys.readouterr().err
    finally:
        path.write_bytes(before)
        evaluate(finished)
    assert export(finished, tmp_path / "out") == 0
