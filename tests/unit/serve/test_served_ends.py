"""Embedding and head at 8 bits from the planner's choice to the perplexity of what was served, on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import serve_cases
import torch
from planned_cases import VOCAB, planned_and_served, quantised_model

from llmpq.errors import ArtifactError, LlmpqError
from llmpq.evaluate.quality import evaluate_quality, plan_ends, plan_options, write_quality


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quantised_model(tmp_path_factory.mktemp("tied"), True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return quantised_model(tmp_path_factory.mktemp("untied"), False)


# In MiB a layer takes 0.5 at 16 bit and 0.02 at 4, the embedding 0.5 or 0.26, the head 4 (padded by its kernel) or 0.26.
@pytest.mark.parametrize(
    ("model", "memory_mib", "ends"),
    [("tied", [64.0], ("16", "16")), ("untied", [3.0], ("16", "8")), ("tied", [1.7, 1.7], ("16", "8"))],
    ids=["ample", "tight", "two tight stages"],
)
def test_the_ends_that_fit_are_planned_served_and_evaluated(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, memory_mib: list[float], ends: tuple[str, str]
) -> None:
    made = request.getfixturevalue(model)
    plan, served = planned_and_served(made, tmp_path, memory_mib)
    assert plan_ends(plan) == ends
    assert len(plan["stages"]) == len(memory_mib) or ends == ("16", "16")
    assert (served["stages"][0]["embedding_option"], served["stages"][-1]["head_option"]) == ends
    windows = {"toy": torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))}
    quality = evaluate_quality(made["model"], made["quantised"], plan_options(plan), windows, ends=ends, progress=lambda _: None)
    assert quality["weights_sha256"] == served["weights_sha256"]
    document = write_quality(tmp_path / "quality.json", plan, quality)
    assert (document["embedding_option"], document["head_option"]) == ends


def test_tied_ends_share_a_table_where_two_do_not_fit(tied: dict[str, Any], untied: dict[str, Any], tmp_path: Path) -> None:
    """0.5 MiB hold four layers at 4 bit, their cache and one table of 8 bit, not two."""
    with pytest.raises(LlmpqError, match="no plan fits in memory"):
        planned_and_served(untied, tmp_path, [0.5], 1.2)
    plan, served = planned_and_served(tied, tmp_path, [0.5], 1.2)
    assert plan_ends(plan) == ("8", "8")
    held = served["stages"][0]["bytes"]["measured"]
    assert (held["embedding"], held["head"]) == (VOCAB * (64 + 2), 64 * 4)  # codes and scales once, and the final norm


def test_ends_that_were_not_quantised_are_named_before_anything_starts(tied: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no file head\.8\.safetensors .* quantise the head at option '8'"):
        planned_and_served({**tied, "quantised": tied["quantised"][:1]}, tmp_path, [3.0])
    assert serve_cases.stage_processes() == []
