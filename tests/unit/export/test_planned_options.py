"""What a planner is offered for a backend: what its export can say, the rest named with the reason."""

import pytest

from llmpq.errors import ConfigError
from llmpq.export.choice import choice_for

OPTIONS, ENDS, CACHES = ["16", "8", "w8a8-outlier", "w8a8", "4", "3"], ["16", "8", "w8a8"], ["16", "8"]


def test_llmpq_itself_serves_everything() -> None:
    choice = choice_for("native", OPTIONS, ENDS, CACHES)
    assert (choice.options, choice.end_options, choice.kv_options, choice.notes) == (OPTIONS, ENDS, CACHES, [])


def test_vllm_is_left_what_it_has_kernels_for_and_the_rest_has_its_reason() -> None:
    choice = choice_for("vllm", OPTIONS, ENDS, CACHES)
    assert (choice.options, choice.end_options, choice.kv_options) == (["16", "w8a8"], ["16"], ["16"])
    options, ends, caches = choice.notes
    for name, reason in (
        ("8", "no kernel on the CPU"),
        ("w8a8-outlier", "outlier columns"),
        ("3", "kernel for 3 bits"),
        ("4", "bf16 alone"),
    ):
        assert f"{name} (" in options
        assert reason in options
    why = "(readers keep embedding and head alike and unquantised)"
    assert ends == f"not offered for vllm, of embedding and head: 8 {why}; w8a8 {why}"
    assert "8 (a checkpoint cannot say it of single layers)" in caches


def test_other_unquantised_options_are_the_same_to_vllm() -> None:
    choice = choice_for("vllm", ["16", "bf16", "w8a8"], ["16", "bf16"], ["16"])
    assert (choice.options, choice.end_options) == (["16", "w8a8"], ["16"])
    assert "bf16 (vLLM keeps every unquantised layer in the type that it computes in" in choice.notes[0]


def test_nothing_is_noted_where_nothing_is_left_out() -> None:
    assert choice_for("vllm", ["16", "w8a8"], ["16"], ["16"]).notes == []


@pytest.mark.parametrize(
    ("options", "ends", "caches", "key"),
    [
        (["8", "3"], ["16"], ["16"], "quantizer.options"),
        (["16"], ["8"], ["16"], "model.end_options"),
        (["16"], ["16"], ["8"], "kv_options"),
    ],
)
def test_where_nothing_is_left_the_key_is_named(options: list[str], ends: list[str], caches: list[str], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}': nothing is left of it for vllm"):
        choice_for("vllm", options, ends, caches)
