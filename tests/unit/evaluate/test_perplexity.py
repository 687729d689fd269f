"""Perplexity: equal to transformers' own loss, worked out by hand on a toy, and never of other weights than the plan's."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import artifacts, cli
from llmpq.errors import ArtifactError
from llmpq.evaluate.perplexity import EvaluationError, perplexity, scored_tokens
from llmpq.evaluate.quality import evaluate_quality, plan_options, write_quality
from llmpq.evaluate.reference import make_reference, read_reference, write_reference
from llmpq.model.tokenizer import load_tokenizer
from llmpq.text import token_windows


class Toy:
    """Always the same two logits: token 0 with probability 3/4, token 1 with 1/4."""

    def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([math.log(3.0), 0.0]).expand(*inputs.shape, 2)

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


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
    assert (found["tokens"], found["context_tokens"], found["windows"]) == (6, 1, 2)
    half = 12.7062 * found["nll_se"]  # Student's quantile of one degree of freedom
    assert found["perplexity_low"] == pytest.approx(math.exp(found["nll_mean"] - half), rel=1e-4)
    assert found["perplexity_high"] == pytest.approx(math.exp(found["nll_mean"] + half), rel=1e-4)
    assert "kl" not in found
    assert seen == [(1, 2), (2, 2)]


def test_a_stride_scores_the_end_of_each_window() -> None:
    windows = torch.tensor([[1, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
    found = perplexity(Toy(), windows, stride=2)
    assert found["nll_windows"] == pytest.approx([(math.log(4 / 3) + math.log(4)) / 2, math.log(4 / 3)])
    assert (found["tokens"], found["context_tokens"]) == (4, 3)
    assert perplexity(Toy(), windows, stride=5)["nll_windows"] == perplexity(Toy(), windows)["nll_windows"]
    assert (scored_tokens(5, None), scored_tokens(5, 5), scored_tokens(5, 4), scored_tokens(5, 1)) == (4, 4, 4, 1)


def test_divergence_and_agreement_worked_out_by_hand() -> None:
    """The reference thinks 1/2 and 1/2, then 1/4 and 3/4; the model always 3/4 and 1/4. Of two equal ones the first is the likeliest."""
    reference = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)]]])
    found = perplexity(Toy(), torch.tensor([[1, 0, 1]]), reference=reference)
    first = math.log(0.5) - 0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    second = 0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)
    assert found["kl"]["mean"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert found["kl"]["low"] is None  # one window says nothing of their spread
    assert found["top1"]["mean"] == 0.5


def test_equal_to_the_loss_of_transformers(tiny_llama_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    windows = torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(0))
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    with torch.inference_mode():
        losses = [float(reference(window[None], labels=window[None]).loss) for window in windows]
    body = evaluate_quality(tiny_llama_dir, None, ["32"] * 4, {"toy": windows}, ends=("32", "32"), progress=lambda text: None)
    assert body["texts"][0]["nll_windows"] == pytest.approx(losses, abs=1e-4)
    assert body["texts"][0]["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-4)


def test_divergence_is_that_of_the_logits_and_nothing_at_16_bit(tiny_llama_dir: Path, tmp_path: Path) -> None:
    from llmpq.model.stage import StageModel

    texts = {"a": torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(2))}
    write_reference(tmp_path / "16.safetensors", make_reference(tiny_llama_dir, texts, stride=10, progress=lambda _: None))
    reference = read_reference(tmp_path / "16.safetensors")
    common = {"stride": 10, "reference": reference, "progress": lambda _: None}
    same = evaluate_quality(tiny_llama_dir, None, ["16"] * 4, texts, **common)
    assert same["texts"][0]["kl"]["windows"] == [0, 0, 0]
    assert same["texts"][0]["top1"]["mean"] == 1
    assert same["reference"]["weights_sha256"] == same["weights_sha256"]
    p, q = (StageModel.load(tiny_llama_dir, None, first_layer=0, options=[o] * 4, embedding=o, head=o) for o in ("16", "32"))
    logs = [torch.log_softmax(model.logits(texts["a"])[:, 13:-1].double(), -1) for model in (p, q)]
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(1)
    other = evaluate_quality(tiny_llama_dir, None, ["32"] * 4, texts, ends=("32", "32"), **common)["texts"][0]
    assert other["kl"]["mean"] > 0
    assert other["kl"]["windows"] == pytest.approx(expected.tolist(), abs=1e-6)
    assert other["kl"]["low"] <= other["kl"]["mean"] <= other["kl"]["high"]


def test_a_reference_of_something_else_is_refused(tiny_llama_dir: Path, write_llama: Callable[..., Path], tmp_path: Path) -> None:
    texts = {"a": torch.zeros(1, 8, dtype=torch.long)}
    write_reference(tmp_path / "16.safetensors", make_reference(tiny_llama_dir, texts, progress=lambda _: None))
    reference = read_reference(tmp_path / "16.safetensors")
    for other, words in (
        ({"b": texts["a"]}, r"16\.safetensors: has no text 'b' \(a\)"),
        ({"a": texts["a"] + 1}, "its windows of 'a' are other than those to be scored; delete it"),
    ):
        with pytest.raises(ArtifactError, match=words):
            evaluate_quality(tiny_llama_dir, None, ["16"] * 4, other, reference=reference)
    with pytest.raises(ArtifactError, match="its windows of 'a' are other than those to be scored; delete it"):
        evaluate_quality(tiny_llama_dir, None, ["16"] * 4, texts, reference=reference, stride=3)
    other = write_llama(tmp_path / "other", seed=1)
    for head in ("16", "32"):
        with pytest.raises(ArtifactError, match=r"16\.safetensors: is of another model"):
            evaluate_quality(other, None, ["16"] * 4, texts, ends=("16", head), reference=reference)
    with pytest.raises(ArtifactError, match="no such file; make the reference first"):
        read_reference(tmp_path / "gone.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match=r"cut\.safetensors: not a complete safetensors file"):
        read_reference(tmp_path / "cut.safetensors")


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
    class Broken(Toy):
        def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.full((*inputs.shape, 2), torch.nan)

    with pytest.raises(EvaluationError, match="window 0: the model's logits are not finite"):
        perplexity(Broken(), torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.real_model
def test_the_real_model_reads_english(real_model_dir: Path) -> None:
    """fp32 perplexity of SmolLM2-135M on Wikipedia is 16 to 19 by region; 510 tokens put it between 8 and 35."""
    text = real_model_dir.parents[2] / "texts" / "wikipedia.txt"
    windows = torch.tensor(token_windows(load_tokenizer(real_model_dir), text, (1 / 3, 0.5), windows=2, tokens=256))
    body = evaluate_quality(real_model_dir, None, ["16"] * 30, {"wikipedia": windows}, progress=lambda line: None)
    assert 8 < body["texts"][0]["perplexity"] < 35


def test_two_texts_of_one_name_are_refused(tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a" / "news.txt", tmp_path / "b" / "news.txt"]
    assert cli.main(["evaluate", str(tiny_llama_dir), *map(str, paths), "--option", "16"]) == 2
    assert "two of the texts are called 'news', by which quality.json lists them; rename one" in capsys.readouterr().err
