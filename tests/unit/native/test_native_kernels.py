"""The kernels in C beside the same arithmetic in torch and in double precision."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from llmpq.model.positions import alibi_slopes, rotate
from llmpq.native import available, kernels

pytestmark = pytest.mark.skipif(not available(), reason="the native kernels cannot be compiled here (no C compiler)")

WIDTHS = (1, 8, 15, 16, 17, 64, 576)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", WIDTHS)
def test_rms_norm_is_the_definition(n):
    x, weight = torch.randn(5, 3, n), torch.randn(n)
    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", WIDTHS)
def test_silu_mul_is_the_definition(n):
    x = torch.randn(4, 2 * n) * 20
    gate, up = x.double().chunk(2, -1)
    torch.testing.assert_close(kernels.silu_mul(x).double(), F.silu(gate) * up, rtol=2e-6, atol=1e-30)


def test_silu_mul_far_out_is_its_limits():
    gate = torch.tensor([[-1e30, -200.0, -88.0, 88.0, 200.0, 1e30]])
    found = kernels.silu_mul(torch.cat((gate, torch.ones_like(gate)), -1))
    torch.testing.assert_close(found, F.silu(gate.double()).float(), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("n", "columns"), [(n, columns) for n in WIDTHS for columns in (None, [0], [n - 1, 0])])
def test_rows_are_divided_by_their_largest_magnitude(n, columns):
    x, chosen = torch.randn(6, n), None if columns is None else torch.tensor(columns)
    found, largest, taken = kernels.normalise_rows(x, 1e-30, chosen)
    rest = x if chosen is None else x.index_fill(1, chosen, 0.0)
    assert torch.equal(largest, rest.abs().amax(1, keepdim=True).clamp_min(1e-30))
    assert torch.equal(found, rest / largest)
    assert torch.equal(taken, x[:, :0] if chosen is None else x[:, chosen])


def test_a_row_of_zeros_stays_zeros():
    found, largest, _ = kernels.normalise_rows(torch.zeros(2, 40), 1e-30)
    assert not found.any()
    assert torch.equal(largest, torch.full((2, 1), 1e-30))


SHAPES = ((5, 3, 3, 64, 192, 160), (5, 2, 1, 8, 40, 33), (3, 2, 5, 80, 64, 17), (4, 1, 8, 128, 100, 100), (2, 4, 2, 20, 30, 30))


def attention_case(rows, kv_heads, group, d, capacity, length):
    heads = kv_heads * group
    fused = torch.randn(rows, heads + 2 * kv_heads, d)
    cache = torch.randn(rows, kv_heads, capacity, d).half(), torch.randn(rows, kv_heads, capacity, d).half()
    positions = torch.randint(0, length, (rows,))
    positions[0] = length - 1
    return fused[:, :heads], fused[:, heads : heads + kv_heads], fused[:, heads + kv_heads :], cache, positions


def written(keys, values, cache, positions, rotary):
    """Copies of the caches with the new token in them."""
    cache = cache[0].clone(), cache[1].clone()
    for stored, new in zip(cache, (keys if rotary is None else rotate(keys, *rotary), values), strict=True):
        stored[torch.arange(len(new)), :, positions] = new.half()
    return cache


def attended(queries, cache, positions, length, rotary, slopes):
    """Attention over caches that have the new token in them, in double precision."""
    rows, heads, d = queries.shape
    kv_heads = cache[0].shape[1]
    if rotary is not None:
        queries = rotate(queries, *rotary)
    bias = torch.zeros(rows, 1, 1, length).masked_fill((torch.arange(length) > positions[:, None])[:, None, None], -torch.inf)
    if slopes is not None:
        bias = bias + (slopes[:, None] * torch.arange(length)).view(1, kv_heads, -1, length)
    grouped = queries.reshape(rows, kv_heads, heads // kv_heads, d).double()
    seen = (stored[:, :, :length].double() for stored in cache)
    return F.scaled_dot_product_attention(grouped, *seen, attn_mask=bias.double()).reshape(rows, heads, d)


@pytest.mark.parametrize(
    ("shape", "rotated", "alibi"), [(shape, *how) for shape in SHAPES for how in itertools.product((None, "own", "common"), (False, True))]
)
def test_attention_over_the_cache_is_the_definition(shape, rotated, alibi):
    *arguments, cache, positions = attention_case(*shape)
    rows, _, _, d, _, length = shape
    if rotated == "common":
        positions.fill_(length - 1)
    angles = torch.rand(1 if rotated == "common" else rows, 1, d // 2) * 6
    tables = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((-angles.sin(), angles.sin()), -1)
    rotary = None if rotated is None else tables if rotated == "own" else tuple(table[0] for table in tables)
    slopes = alibi_slopes(shape[1] * shape[2]) if alibi else None
    queries, *new = arguments
    kept = written(*new, cache, positions, rotary)
    found = kernels.decode_attention(*arguments, cache, positions, length, rotary, slopes)
    for mine, other in zip(cache, kept, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)  # a rotation's last bit may round the other way
    # With the caches as they are now: both read the same numbers.
    torch.testing.assert_close(found.double(), attended(queries, cache, positions, length, rotary, slopes), rtol=2e-5, atol=2e-5)


def test_a_row_has_the_same_bits_in_any_batch_and_with_any_threads():
    shape = (16, 3, 3, 64, 192, 160)
    queries, keys, values, cache, positions = attention_case(*shape)
    x, gate_up, columns = torch.randn(1024, 576), torch.randn(1024, 1152), torch.tensor([3, 500])

    def all_of(rows, length):
        own = cache[0][rows].clone(), cache[1][rows].clone()
        return [
            kernels.decode_attention(queries[rows], keys[rows], values[rows], own, positions[rows], length),
            kernels.rms_norm(x[rows], x[0], 1e-5),
            kernels.silu_mul(gate_up[rows]),
            *kernels.normalise_rows(x[rows], 1e-30, columns),
        ]

    torch.set_num_threads(1)
    together = all_of(slice(0, 16), 160)
    for row in range(16):
        alone = all_of(slice(row, row + 1), int(positions[row]) + 1)
        assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, together, strict=True))
    torch.set_num_threads(2)
    assert all(torch.equal(two, one) for two, one in zip(all_of(slice(0, 16), 160), together, strict=True))
    wide = kernels.rms_norm(x, x[0], 1e-5)
    torch.set_num_threads(1)
    assert torch.equal(kernels.rms_norm(x, x[0], 1e-5), wide)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    x = torch.randn(2, 40)
    x[1, 7] = bad
    assert torch.isfinite(kernels.rms_norm(x, torch.ones(40), 1e-5)).all(1).tolist() == [True, False]
    found, largest, _ = kernels.normalise_rows(x, 1e-30)
    assert torch.isfinite(found * largest).all(1).tolist() == [True, False]
    assert not torch.isfinite(kernels.silu_mul(x)[1, 7])
    queries, keys, values, cache, positions = attention_case(2, 2, 2, 16, 20, 20)
    values[1, 0, 3] = bad
    out = kernels.decode_attention(queries, keys, values, cache, positions, 20)
    assert torch.isfinite(out[0]).all()
    assert not torch.isfinite(out[1]).all()


def test_what_the_kernels_cannot_take_is_refused():
    with pytest.raises(ValueError, match="contiguous fp32"):
        kernels.rms_norm(torch.randn(4, 8, dtype=torch.float64), torch.ones(8), 1e-5)
    with pytest.raises(ValueError, match="contiguous fp32"):
        kernels.silu_mul(torch.randn(8, 4).t())
    with pytest.raises(ValueError, match="no gradients"):
        kernels.silu_mul(torch.randn(4, 8, requires_grad=True))
    with pytest.raises(ValueError, match="7 weights on rows of 8"):
        kernels.rms_norm(torch.randn(4, 8), torch.ones(7), 1e-5)
    queries, keys, values, cache, positions = attention_case(2, 2, 2, 16, 20, 20)
    with pytest.raises(ValueError, match="up to position 20"):
        kernels.decode_attention(queries, keys, values, cache, positions, 21)
    with pytest.raises(ValueError, match="next to each other"):
        kernels.decode_attention(queries.transpose(1, 2), keys, values, cache, positions, 20)
    with pytest.raises(ValueError, match=r"positions must be \[2\] in int64"):
        kernels.decode_attention(queries, keys, values, cache, positions.int(), 20)
    with pytest.raises(ValueError, match="a rotation of 15 numbers on 2 rows of 16"):
        kernels.decode_attention(queries, keys, values, cache, positions, 20, (torch.ones(1, 15), torch.ones(1, 15)))
    with pytest.raises(ValueError, match="3 slopes on 4 heads"):
        kernels.decode_attention(queries, keys, values, cache, positions, 20, slopes=torch.ones(3))
    with pytest.raises(ValueError, match="columns must be int64"):
        kernels.normalise_rows(torch.randn(2, 8), 1e-30, torch.tensor([1], dtype=torch.int32))
    with pytest.raises(ValueError, match="must be contiguous and fp16"):
        kernels.decode_attention(queries, keys, values, (cache[0].float(), cache[1].float()), positions, 20)
