"""GPTQ against brute force and against its own definition."""

import itertools
from dataclasses import replace

import pytest
import torch
from quant_cases import random_weight
from torch import Tensor

from llmpq.errors import LlmpqError
from llmpq.quant.gptq import Quantised, factorise, gptq, gptq_refitted, output_loss, refit
from llmpq.quant.grid import Grid, to_bf16
from llmpq.quant.rtn import rtn


def hessian(columns: int, seed: int = 3, rank: int | None = None) -> Tensor:
    """E[x xᵀ] of correlated inputs with a few large columns."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, rank or columns, generator=draw)
    x = torch.randn(4 * columns, rank or columns, generator=draw) @ mix.t()
    x[:, ::7] *= 5.0
    return x.t() @ x / len(x)


def loss(weight: Tensor, found: object, grid: Grid, h: Tensor) -> float:
    return output_loss(weight, found.dequantised(grid.group_size), h)  # type: ignore[attr-defined]


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", [Grid(3, 64), Grid(4, 64), Grid(4, 0), Grid(8, 0)], ids=str)
def test_the_output_error_is_far_below_round_to_nearest(grid: Grid, act_order: bool) -> None:
    weight, h = random_weight(48, 128), hessian(128)
    found = gptq(weight, factorise(h, damping=0.01, act_order=act_order), grid)
    assert loss(weight, found, grid, h) < 0.6 * loss(weight, rtn(weight, grid), grid, h)


def test_nothing_to_compensate_means_round_to_nearest() -> None:
    """With uncorrelated inputs every column stands alone."""
    weight, grid = random_weight(16, 128), Grid(4, 64)
    found, nearest = gptq(weight, factorise(torch.eye(128), damping=0.01), grid), rtn(weight, grid)
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.scales, nearest.scales)


def test_two_columns_by_hand() -> None:
    """The first column is rounded; the second takes up its error times H12 / H22 before it is rounded itself."""
    h = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    weight = torch.tensor([[1.3, 127.0]])
    found = gptq(weight, factorise(h, damping=0.0), Grid(8, 0))
    assert found.scales.item() == 1.0
    error = 1.3 - 1.0
    assert found.codes.tolist() == [[1, round(127.0 + error * 0.5)]]
    weight = torch.tensor([[1.49, 20.2, 127.0]])
    h = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert gptq(weight, factorise(h, damping=0.0), Grid(8, 0)).codes.tolist() == [[1, 21, 127]]  # 20.2 + 0.49 · 0.9 = 20.641


def test_close_to_the_best_of_all_codes() -> None:
    """Four columns of 3 bits can be searched: GPTQ lies nearer to the optimum than to round to nearest, on average."""
    grid, excess = Grid(3, 0), {"gptq": 0.0, "rtn": 0.0}
    for seed in range(12):
        weight, h = random_weight(1, 4, seed), hessian(4, seed)
        nearest = rtn(weight, grid)
        found = gptq(weight, factorise(h, damping=1e-6), grid)
        scale = found.scales[0, 0]
        every = torch.tensor(list(itertools.product(range(-4, 4), repeat=4)), dtype=torch.float32) * scale
        error = every - weight
        best = float(((error @ h) * error).sum(1).min())
        assert loss(weight, found, grid, h) >= best * (1 - 1e-4)
        excess["gptq"] += loss(weight, found, grid, h) - best
        excess["rtn"] += loss(weight, nearest, grid, h) - best
    assert excess["gptq"] < 0.5 * excess["rtn"]


def test_the_factor_is_the_cholesky_factor_of_the_damped_inverse() -> None:
    h = hessian(300)
    factor = factorise(h, damping=0.01)
    inverse = torch.linalg.inv(h.double() + 0.01 * float(h.diagonal().mean()) * torch.eye(300))
    torch.testing.assert_close(factor.upper.double(), torch.linalg.cholesky(inverse, upper=True), rtol=1e-3, atol=1e-4)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, factor = random_weight(16, 128), factorise(hessian(128), damping=0.01)
    reference = gptq(weight, factor, Grid(4, 64))
    for block in (1, 16, 64, 128):
        monkeypatch.setattr("llmpq.quant.gptq._BLOCK", block)
        found = gptq(weight, factor, Grid(4, 64))
        assert int((found.codes != reference.codes).sum()) <= 2  # sums in another order may tip a tie


def test_fused_rows_are_independent() -> None:
    weight, factor, grid = random_weight(48, 128), factorise(hessian(128), damping=0.01), Grid(4, 64)
    fused = gptq(weight, factor, grid)
    parts = [gptq(part, factor, grid) for part in (weight[:16], weight[16:])]
    different = int((fused.codes != torch.cat([part.codes for part in parts])).sum())
    assert different <= 4  # matrix products of another shape may tip a tie


def test_the_same_input_gives_the_same_codes() -> None:
    weight, h = random_weight(32, 128), hessian(128)
    first, second = (gptq(weight, factorise(h, damping=0.01), Grid(3, 64)) for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


@pytest.mark.parametrize("grid", [Grid(2, 64), Grid(2, 0, False), Grid(3, 64, False), Grid(4, 0), Grid(8, 0, False)], ids=str)
def test_refitted_steps_lose_less_and_are_what_bf16_holds(grid: Grid) -> None:
    """A column that outweighs all others, as an attention sink's does: the steps follow what came of it."""
    size = torch.ones(128).index_fill(0, torch.tensor([70]), 40.0)
    weight, h = random_weight(48, 128), hessian(128) * size * size.unsqueeze(1)
    found = gptq(weight, factorise(h, damping=0.01), grid)
    fitted = refit(weight, found, h, grid)
    assert torch.equal(fitted.codes, found.codes)
    assert torch.equal(fitted.scales, to_bf16(fitted.scales))
    for row in range(48):  # no row gets worse
        old, new = (output_loss(weight[row : row + 1], each.dequantised(grid.group_size)[row : row + 1], h) for each in (found, fitted))
        assert new <= old * (1 + 1e-5)
    assert loss(weight, fitted, grid, h) < 0.99 * loss(weight, found, grid, h)


def test_every_row_keeps_the_better_of_two_clippings() -> None:
    """Heavy-tailed rows: some do better with the whole range, some clipped; the sum is below that of either way."""
    h, grid = hessian(96), Grid(4, 0, symmetric=False)
    weight = random_weight(200, 96) * torch.exp(random_weight(200, 96))
    factor = factorise(h, damping=0.01)
    found = gptq_refitted(weight, factor, h, grid)
    ways = [replace(grid, least_range=share) for share in (0.0, 0.88)]
    apart = [refit(weight, gptq(weight, factor, way), h, way) for way in ways]

    def losses(one: Quantised) -> torch.Tensor:
        error = one.dequantised(0) - weight
        return ((error @ h) * error).sum(1)

    expected = torch.minimum(*(losses(one) for one in apart))
    torch.testing.assert_close(losses(found), expected)
    assert float(expected.sum()) < 0.999 * min(float(losses(one).sum()) for one in apart)


def test_one_refitted_scale_by_hand() -> None:
    """Codes 1 and 2 for weights 1.5 and 2.5 with equal and independent inputs: the scale of least squares is (1.5 + 5) / 5 = 1.3."""
    found = Quantised(torch.tensor([[1, 2]], dtype=torch.int8), torch.ones(1, 1), torch.empty(0).long(), torch.empty(1, 0))
    fitted = refit(torch.tensor([[1.5, 2.5]]), found, torch.eye(2), Grid(8, 0))
    assert fitted.scales.item() == to_bf16(torch.tensor(1.3)).item()


def test_refitting_leaves_kept_columns_alone() -> None:
    weight, h = random_weight(16, 128), hessian(128)
    for grid in (Grid(3, 0), Grid(3, 0, False)):
        found = gptq(weight, factorise(h, damping=0.01, kept=(3, 77)), grid)
        fitted = refit(weight, found, h, grid)
        assert torch.equal(fitted.dequantised(0)[:, [3, 77]], found.dequantised(0)[:, [3, 77]])
        assert loss(weight, fitted, grid, h) < loss(weight, found, grid, h)


def test_dead_columns_become_zero() -> None:
    h = hessian(128)
    h[5], h[:, 5] = 0.0, 0.0
    found = gptq(random_weight(16, 128), factorise(h, damping=0.01), Grid(4, 64))
    assert not bool(found.codes[:, 5].any())
    assert bool(found.codes[:, 4].any())


def test_kept_columns_take_up_the_others_errors() -> None:
    weight, h, grid, kept = random_weight(16, 128), hessian(128), Grid(3, 0), (3, 77, 11)
    found = gptq(weight, factorise(h, damping=0.01, kept=kept), grid)
    assert found.kept.tolist() == [3, 11, 77]
    assert not bool(found.codes[:, [3, 11, 77]].any())
    assert found.kept_weight.shape == (16, 3)
    replaced = found.dequantised(0)
    replaced[:, [3, 11, 77]] = weight[:, [3, 11, 77]]
    assert loss(weight, found, grid, h) < output_loss(weight, replaced, h)


def test_a_rank_deficient_hessian_is_damped_until_it_works() -> None:
    weight, h = random_weight(16, 128), hessian(128, rank=3)
    for damping in (0.0, 0.01):
        found = gptq(weight, factorise(h, damping=damping), Grid(4, 64))
        assert loss(weight, found, Grid(4, 64), h) < loss(weight, rtn(weight, Grid(4, 64)), Grid(4, 64), h)


def test_hopeless_hessians_are_refused() -> None:
    h = hessian(64)
    h[0, 1] = h[1, 0] = 1e9
    with pytest.raises(LlmpqError, match="not positive definite"):
        factorise(h, damping=0.01)
    with pytest.raises(LlmpqError, match="negative"):
        factorise(hessian(64), damping=-1.0)


@pytest.mark.parametrize("grid", [Grid(3, 64), Grid(4, 64), Grid(8, 0)], ids=str)
def test_scales_are_what_bf16_holds_and_codes_lie_on_the_grid(grid: Grid) -> None:
    for found in (rtn(random_weight(16, 128), grid), gptq(random_weight(16, 128), factorise(hessian(128), damping=0.01), grid)):
        assert torch.equal(found.scales, to_bf16(found.scales))
        assert int(found.codes.min()) >= grid.lowest
        assert int(found.codes.max()) <= grid.highest


def test_round_to_nearest_is_nearest() -> None:
    weight, grid = random_weight(16, 128), Grid(4, 64)
    found = rtn(weight, grid)
    error = (found.dequantised(64) - weight).abs().view(16, 2, 64)
    inside = (found.codes > grid.lowest) & (found.codes < grid.highest)
    assert bool((error <= found.scales.abs().unsqueeze(-1) * 0.5001)[inside.view(16, 2, 64)].all())


def test_zero_weights_stay_zero() -> None:
    for grid in (Grid(3, 64), Grid(8, 0)):
        found = gptq(torch.zeros(16, 128), factorise(hessian(128), damping=0.01), grid)
        assert not bool(found.codes.any())
        assert bool(torch.isfinite(found.scales).all())
        assert not bool(found.dequantised(grid.group_size).any())
