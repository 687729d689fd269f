"""Perplexity: equal to transformers' own loss, worked out by hand on a toy, and never of other weights than the plan's."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import artifacts, cli
from llmpq.evaluate.perplexity import EvaluationError, evaluate_quality, perplexity, plan_options, write_quality
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import token_windows


class Toy:
    """Always the same two logits: token 0 with probability 3/4, token 1 with 1/4."""

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([math.log(3.0), 0.0]).expand(*ids.shape, 2)


def test_worked_out_by_hand() -> None:
    windows = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1]])  # the first token of a window is not scored
    seen: list[tuple[int, int]] = []
    found = perplexity(Toy(), windows, lambda done, of: seen.append((done, of)))
    first = (2 * math.log(4 / 3) + math.log(4)) / 3
    second = math.log(4)
    assert found["nll_windows"] == pytest.approx([first, second])
    assert found["nll_mean"] == pytest.approx((first + second) / 2)
    assert found["perplexity"] == pytest.approx(math.exp((first + second) / 2))
    assert found["nll_se"] == pytest.approx(abs(second - first) / 2)  # standard deviation of two values over √2
    assert (found["tokens"], found["windows"]) == (6, 2)
    assert seen == [(1, 2), (2, 2)]


def test_equal_to_the_loss_of_transformers(tiny_llama_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    windows = torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    with torch.inference_mode():
        losses = [float(reference(window[None], labels=window[None]).loss) for window in windows]
    body = evaluate_quality(tiny_llama_dir, None, ["32"] * 4, {"toy": windows}, ends=("32", "32"), progress=lambda text: None)
    assert body["texts"][0]["nll_windows"] == pytest.approx(losses, abs=1e-4)
    assert body["texts"][0]["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)


def test_several_texts_progress_and_digest(tiny_llama_dir: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    texts = {"a": torch.randint(0, 96, (2, 16), generator=draw), "b": torch.randint(0, 96, (1, 16), generator=draw)}
    said: list[str] = []
    body = evaluate_quality(tiny_llama_dir, None, ["16", "32", "16", "16"], texts, progress=said.append)
    again = evaluate_quality(tiny_llama_dir, None, ["16", "32", "16", "16"], texts, progress=said.append)
    other = evaluate_quality(tiny_llama_dir, None, ["32", "16", "16", "16"], texts, progress=said.append)
    assert [row["text"] for row in body["texts"]] == ["a", "b"]
    assert body["texts"] == again["texts"]
    assert body["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]
    assert len(said) == 3  # quick ones say when they are done
    assert said[0].startswith("perplexity: 3/3 windows (1 of 1 of b), ")
    plan = {"strategy": "llmpq", "stages": [
        {"first_layer": 2, "options": ["16", "16"], "embedding_option": None, "head_option": body["head_option"]},
        {"first_layer": 0, "options": ["16", "32"], "embedding_option": body["embedding_option"], "head_option": None},
    ]}  # fmt: skip
    document = write_quality(tmp_path / "quality.json", plan, body)
    assert artifacts.read(tmp_path / "quality.json", "quality") == document
    assert document["strategy"] == "llmpq"
    plan["stages"][0]["head_option"] = "8"
    with pytest.raises(EvaluationError, match="plan llmpq keeps embedding and head at 16 and 8, the evaluation is of 16 and 16"):
        write_quality(tmp_path / "quality.json", plan, body)


def test_an_evaluation_of_other_weights_is_refused(tmp_path: Path) -> None:
    plan: dict[str, Any] = {"strategy": "uniform", "stages": [{"first_layer": 0, "options": ["4", "4"]}]}
    assert plan_options(plan) == ["4", "4"]
    with pytest.raises(EvaluationError, match="of other options than those of plan uniform"):
        write_quality(tmp_path / "quality.json", plan, {"options": ["4", "8"]})
    plan["stages"][0] |= {"embedding_option": "8", "head_option": "8"}
    with pytest.raises(EvaluationError, match="plan uniform keeps embedding and head at 8 and 8, the evaluation is of 16 and 8"):
        write_quality(tmp_path / "quality.json", plan, {"options": ["4", "4"], "embedding_option": "16", "head_option": "8"})
    assert not (tmp_path / "quality.json").exists()


def test_windows_too_short_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"windows of at least 2 tokens, got a table of \(3, 1\)"):
        perplexity(Toy(), torch.zeros(3, 1, dtype=torch.long))


def test_weights_that_give_no_number_are_named() -> None:
    class Broken:
        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.full((*ids.shape, 2), torch.nan)

    with pytest.raises(EvaluationError, match="window 0: the model's logits are not finite"):
        perplexity(Broken(), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.real_model
def test_the_real_model_reads_english(real_model_dir: Path) -> None:
    """fp32 perplexity of SmolLM2-135M on Wikipedia is 16 to 19 by region (toolchain's figures); 510 tokens put it between 8 and 35."""
    text = real_model_dir.parents[2] / "texts" / "wikipedia.txt"
    windows = torch.tensor(token_windows(load_tokenizer(real_model_dir), text, (1 / 3, 0.5), windows=2, tokens=256))
    body = evaluate_quality(real_model_dir, None, ["16"] * 30, {"wikipedia": windows}, progress=lambda line: None)
    assert 8 < body["texts"][0]["perplexity"] < 35


def test_two_texts_of_one_name_are_refused(tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a" / "news.txt", tmp_path / "b" / "news.txt"]
    assert cli.main(["evaluate", str(tiny_llama_dir), *map(str, paths), "--option", "16"]) == 2
    assert "two of the texts are called 'news', by which quality.json lists them; rename one" in capsys.readouterr().err
