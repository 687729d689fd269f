"""Run by `make test-oracle`, which builds the package's environment first: our GPTQ against auto-gptq, and auto-gptq as a quantiser."""

import time
from pathlib import Path

import pytest
import torch
from compare import LAYERS_EACH, Case, compare, write_page

from llmpq import artifacts
from llmpq.errors import LlmpqError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.quant.auto_gptq import AutoGptq
from llmpq.quant.calibration import Calibration
from llmpq.quant.dequantise import dequantise
from llmpq.quant.files import read_layer
from llmpq.quant.gptq import output_loss
from llmpq.quant.grid import Grid, to_bf16
from llmpq.quant.options import OPTIONS
from llmpq.quant.quantise import quantise_group, read_manifests

ROOT = Path(__file__).parents[2]
CALIBRATION = ROOT / "results/calibration/smollm2-135m-instruct/gptq.safetensors"
WORSE = 1.01
OFFERED = ["16", "8", "w8a8", "8a", "8-g64", "4", "4a", "4-row", "4-g32", "3", "3a-row", "2", "2a"]


@pytest.fixture(scope="module")
def cases(real_model_dir: Path) -> list[Case]:
    started = time.perf_counter()
    found = compare(real_model_dir, CALIBRATION)
    write_page(ROOT / "docs/oracle.md", found, real_model_dir.parent.name, AutoGptq().version, time.perf_counter() - started)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.timeout(3600)
def test_our_loss_is_the_packages_or_less(cases: list[Case], bits: int) -> None:
    own = [case for case in cases if case.setting.bits == bits]
    assert len(own) == 8 * LAYERS_EACH * 4  # settings, layers, operators
    assert not [case for case in own if not case.ratio <= WORSE]


def test_every_layer_and_operator_was_compared(cases: list[Case]) -> None:
    assert {(case.layer, case.operator) for case in cases} == {
        (layer, name) for layer in range(30) for name in ("qkv", "o", "gate_up", "down")
    }


@pytest.fixture(scope="module")
def groups(tiny_llama_dir: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantised")
    for method in ("auto-gptq", "rtn"):
        out = folder / method / "layers-000-003"
        quantise_group(tiny_llama_dir, calibration, out, first=0, last=3, options=OFFERED, settings={"method": method})
    return {method: folder / method / "layers-000-003" for method in ("auto-gptq", "rtn")}


def test_the_same_files_with_a_loss_below_round_to_nearest(groups: dict[str, Path], tiny_llama_dir: Path, calibration: Path) -> None:
    manifest = artifacts.read(groups["auto-gptq"] / "manifest.json", "quantised")
    assert manifest["settings"]["package"] == f"auto-gptq {AutoGptq().version}"
    found, nearest = (read_manifests([groups[method]]) for method in ("auto-gptq", "rtn"))
    checkpoint, statistics = Checkpoint(tiny_llama_dir), Calibration(calibration)
    assert found.keys() == nearest.keys()
    for (layer, option), row in found.items():
        stored, other = read_layer(row["path"], layer, option), read_layer(nearest[layer, option]["path"])
        described = {name: (tensor.dtype, tensor.shape) for name, tensor in stored.named().items()}
        assert described == {name: (tensor.dtype, tensor.shape) for name, tensor in other.named().items()}
        for name, operator in row["operators"].items():
            weight, hessian = checkpoint.layer(layer)[f"{name}.weight"], statistics.operator(layer, name).hessian
            loss = output_loss(weight, dequantise(OPTIONS[option], stored.operators[name]), hessian)
            assert operator["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-8)
    for option in ("4", "4-row"):  # below that the package's grid, which clips nothing, loses more than rounding gains from its errors
        losses = [
            sum(each["loss"] for layer in range(4) for each in rows[layer, option]["operators"].values()) for rows in (found, nearest)
        ]
        assert losses[0] < losses[1], option


@pytest.mark.parametrize("option", OFFERED)
def test_a_stage_runs_from_the_files(groups: dict[str, Path], tiny_llama_dir: Path, option: str) -> None:
    ends = {"first_layer": 0, "embedding": "16", "head": "16"}
    ids = torch.arange(20).view(2, 10)
    exact = StageModel.load(tiny_llama_dir, None, options=["32"] * 4, **ends).logits(ids)
    error = (
        StageModel.load(tiny_llama_dir, groups["auto-gptq"].parent, options=[option] * 4, **ends).logits(ids) - exact
    ).norm() / exact.norm()
    assert float(error) < {16: 5e-3, 8: 0.06, 4: 0.35, 3: 0.7, 2: 1.2}[OPTIONS[option].bits]


def test_one_process_serves_all_operators_and_its_grid_is_what_files_hold() -> None:
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(32, 128, generator=draw), torch.randn(512, 128, generator=draw)
    hessian = x.t() @ x / 512
    with AutoGptq() as package:
        for grid in (Grid(4, 64), Grid(3, 0, symmetric=False), Grid(8, 0)):
            for act_order in (False, True):
                found = package.quantise(weight, hessian, grid, damping=0.01, act_order=act_order)
                own = package.own_weight(weight, hessian, grid, damping=0.01, act_order=act_order)
                assert torch.equal(found.scales, to_bf16(found.scales))
                assert (found.offsets is None) == grid.symmetric
                losses = [output_loss(weight, each, hessian) for each in (found.dequantised(grid.group_size), own)]
                assert losses[0] == pytest.approx(losses[1], rel=0.1)
        with pytest.raises(LlmpqError, match=r"auto-gptq failed: .*not positive"):
            package.quantise(weight, -hessian, Grid(4, 64), damping=0.01)
        assert package.quantise(weight, hessian, Grid(4, 64), damping=0.01).codes.shape == (32, 128)
