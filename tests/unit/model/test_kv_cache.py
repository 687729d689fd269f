"""KV caches of 16 and 8 bits: what rounding does, and that a prompt, its continuation and a whole text see the same cache."""

from pathlib import Path

import pytest
import torch

from llmpq.errors import ConfigError
from llmpq.model.cache import EightBit
from llmpq.model.stage import StageModel
from llmpq.quant.options import layer_option, layer_options

EIGHT = EightBit()


def ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(1))


def load(directory: Path, options: list[str]) -> StageModel:
    return StageModel.load(directory, None, first_layer=0, options=options, embedding="32", head="32")


def test_an_element_is_off_by_half_a_step_of_its_own_token_and_head() -> None:
    x = torch.randn(3, 2, 7, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 7)[:, None]
    codes, scales = EIGHT.pack(x)
    step = x.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(scales, step)
    assert codes.abs().amax(-1).eq(127).all()
    assert ((EIGHT.unpack((codes, scales)) - x).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("value", [0.0, 1e-42, 3e38])
def test_extreme_tokens_stay_finite(value: float) -> None:
    x = torch.tensor([[value, -value, 0.0, value / 2]])
    found = EIGHT.unpack(EIGHT.pack(x))
    assert found.isfinite().all()
    torch.testing.assert_close(found, x, rtol=0.01, atol=1e-40)


def test_rounding_twice_changes_nothing() -> None:
    once = EIGHT.pack(torch.randn(4, 2, 5, 8))
    again = EIGHT.pack(EIGHT.unpack(once))
    assert torch.equal(once[0], again[0])


@pytest.mark.parametrize(
    ("options", "atol"),
    # In fp16 now and then a key's last bit rounds the other way in another batch; a wrong key moves the logits by 1.
    [(["32/kv8"] * 4, 1e-4), (["32/kv8", "32", "32", "32/kv8"], 1e-4), (["32/kv16"] * 4, 3e-3)],
)
def test_prompt_continuation_and_whole_text_see_the_same_cache(tiny_llama_dir: Path, options: list[str], atol: float) -> None:
    """The logits that score a text are those that decoding it token by token gives, however a layer keeps its cache."""
    model, text = load(tiny_llama_dir, options), ids(3, 9)
    expected, cache, rows = model.logits(text), model.new_cache(3, 9), slice(0, 3)
    found = [model.prefill(text[:, :4], cache, rows, torch.full((3,), 4))]
    for position in range(4, 9):
        found.append(model.decode(text[:, position], cache, rows, torch.full((3,), position)))
    torch.testing.assert_close(torch.stack(found, 1), expected[:, 3:], atol=atol, rtol=0)


def test_fewer_bits_move_the_logits_a_little(tiny_llama_dir: Path) -> None:
    text = ids(2, 12)
    plain, half, one, all_layers = (
        load(tiny_llama_dir, options).logits(text)
        for options in (["32"] * 4, ["32/kv16"] * 4, ["32", "32/kv8", "32", "32"], ["32/kv8"] * 4)
    )
    off = [(found - plain).norm() / plain.norm() for found in (half, one, all_layers)]
    assert 0 < off[0] < 1e-3
    assert off[0] < off[1] < off[2] < 0.02


def test_an_option_says_how_its_cache_is_kept() -> None:
    assert layer_options(["16", "4", "4"], ["16", "8"]) == ["16", "4", "16/kv8", "4/kv8"]
    assert (layer_option("4/kv8").weights.name, layer_option("4/kv8").kv, layer_option("4/kv16").name) == ("4", "8", "4")
    assert [layer_option(name).kv for name in ("4", "32", "32/kv16")] == ["16", "32", "16"]
    assert layer_options(["32", "4"], ["16"]) == ["32/kv16", "4"]
    with pytest.raises(ConfigError, match="option '4/kv3' keeps its cache at '3'; a cache may have 16, 8"):
        layer_option("4/kv3")
    with pytest.raises(ConfigError, match="unknown weight option '5'"):
        layer_option("5/kv8")
