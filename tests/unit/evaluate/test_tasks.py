"""Log-likelihoods of continuations, the task made of the news, and lm-eval where it is installed."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from llmpq import cli
from llmpq.errors import ConfigError, LlmpqError
from llmpq.evaluate.choice import Question, Request, log_likelihoods, multiple_choice
from llmpq.evaluate.continuation import CHOICE_WORDS, CONTEXT_WORDS, continuation_questions
from llmpq.evaluate.harness import harness_task
from llmpq.evaluate.intervals import student, wilson
from llmpq.evaluate.tasks import NAMES, make_tasks
from llmpq.model.stage import StageModel

VOCABULARY = 96  # of the tiny model


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A token a character."""
    letters = [chr(32 + n) for n in range(VOCABULARY - 1)]
    made = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate([*letters, "<unk>"])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return made


@pytest.fixture
def model(write_llama: Callable[..., Path], tmp_path: Path) -> StageModel:
    directory = write_llama(tmp_path / "model", max_position_embeddings=512)
    return StageModel.load(directory, None, first_layer=0, options=["16"] * 4, embedding="16", head="16")


@pytest.fixture
def news(tmp_path: Path) -> Path:
    """40 reports of 40 words; every word tells report and place."""
    reports = [" ".join(f"r{report}w{word}" for word in range(40)) for report in range(40)]
    path = tmp_path / "news.txt"
    path.write_text("\n\n".join(reports) + "\n", encoding="utf-8")
    return path


def test_a_continuation_has_the_log_likelihood_of_the_logits_in_any_company(model: StageModel) -> None:
    draw = torch.Generator().manual_seed(0)
    lengths = [(5, 3), (1, 1), (40, 7), (12, 30), (3, 2)]
    requests = [Request(*(torch.randint(0, VOCABULARY, (n,), generator=draw).tolist() for n in pair)) for pair in lengths]
    done: list[int] = []
    answers = log_likelihoods(model, requests, done.append)
    assert sum(done) == len(requests)
    for request, answer in zip(requests, answers, strict=True):
        ids = torch.tensor([*request.context, *request.continuation])
        logs = torch.log_softmax(model.logits(ids[None])[0].double(), -1)[len(request.context) - 1 : -1]
        targets = ids[len(request.context) :]
        assert answer.log_likelihood == pytest.approx(float(logs.gather(1, targets[:, None]).sum()), abs=1e-3)
        assert answer.greedy == bool((logs.argmax(-1) == targets).all())


def test_the_choice_is_the_likeliest_per_character() -> None:
    """The model thinks every "a" as likely as 3/4, every "b" as 1/4; long right answers are not punished for their length."""

    class Toy:
        def hidden(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.tensor([math.log(3.0), 0.0]).expand(*inputs.shape, 2)

        def predict(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    questions = [Question("a", ("b", "aaaa"), 1), Question("a", ("a", "b"), 1)]
    found = multiple_choice(Toy(), lambda text: [int(letter == "b") for letter in text], questions, "toy")
    assert found["accuracy"] == 0.5
    assert found["margins"] == pytest.approx([math.log(3), -math.log(3)], abs=1e-6)
    assert (found["questions"], found["chance"]) == (2, 0.5)
    assert (found["low"], found["high"]) == wilson(1, 2)


def test_intervals_by_hand() -> None:
    low, high = student([1.0, 2.0, 3.0])  # type: ignore[misc]
    assert high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert low == pytest.approx(4 - high)
    assert student([1.0]) is None
    assert wilson(88, 100) == pytest.approx((0.8020, 0.9300), abs=2e-4)
    assert wilson(0, 10)[0] == pytest.approx(0.0)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_questions_are_of_the_region_and_the_same_every_time(news: Path) -> None:
    questions = continuation_questions(news, (0.5, 1.0), 15)
    assert questions == continuation_questions(news, (0.5, 1.0), 15)
    assert len(questions) == 15
    for question in questions:
        report = question.context.split()[0].split("w")[0]
        assert int(report[1:]) >= 20
        assert question.context.split() == [f"{report}w{word}" for word in range(CONTEXT_WORDS)]
        place = range(CONTEXT_WORDS, CONTEXT_WORDS + CHOICE_WORDS)
        assert question.choices[question.right] == " " + " ".join(f"{report}w{word}" for word in place)
        assert len(set(question.choices)) == 4
        assert all(choice.split()[0].endswith(f"w{CONTEXT_WORDS}") for choice in question.choices)
    assert len({question.right for question in questions}) == 4
    with pytest.raises(ConfigError, match=r"news\.txt: region \[0.5, 1.0\] has 19 reports .* key 'evaluate.questions' asks for 30"):
        continuation_questions(news, (0.5, 1.0), 30)


def test_the_task_answers_through_the_model(model: StageModel, tokenizer: Tokenizer, news: Path) -> None:
    (task,) = make_tasks(["continuation"], tokenizer, news=news, region=(0, 1), questions=5, say=lambda _: None)
    found = task(model)
    assert found["accuracy"] == sum(margin > 0 for margin in found["margins"]) / 5
    assert {**task(model), "seconds": 0} == {**found, "seconds": 0}


def test_what_is_missing_is_told_before_a_model_is_loaded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown task 'winogrande'; known: {', '.join(NAMES)}"):
        make_tasks(["winogrande"], tokenizer)
    with pytest.raises(ConfigError, match="the task 'continuation' needs the text 'news'"):
        make_tasks(["continuation"], tokenizer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LlmpqError, match=r"key 'evaluate.tasks' lists piqa, which need lm-eval: pip install -r requirements-lm-eval.txt"):
        make_tasks(["piqa"], tokenizer)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"key 'evaluate.sources.piqa': .*gone.jsonl is no file ending in .parquet"):
        make_tasks(["piqa"], tokenizer, sources={"piqa": str(tmp_path / "gone.jsonl")})


def test_the_command_shows_quality_and_answers(
    write_llama: Callable[..., Path], tokenizer: Tokenizer, news: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, reference = write_llama(tmp_path / "served", max_position_embeddings=512), tmp_path / "16.safetensors"
    tokenizer.save(str(directory / "tokenizer.json"))
    call = ["evaluate", directory, news, "--option", "32", "--windows", 2, "--window-tokens", 32, "--reference", reference, "--news", news]
    asked = ["--tasks", "continuation", "--questions", 4]
    assert cli.main([str(part) for part in [*call, *asked]]) == 0
    shown = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert shown == ["news", "news", "continuation"]
    assert reference.is_file()
    assert cli.main([str(part) for part in [*call, "--tasks", "piqa", "--sources", "piqa"]]) == 2
    assert "--sources is given 'piqa'; expected TASK=FILE" in capsys.readouterr().err
    assert cli.main([str(part) for part in [*call, "--stride", 8]]) == 2
    assert "16.safetensors: its windows of 'news' are other than those to be scored" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lambada_openai", "piqa", "arc_easy"])
def test_lm_evals_tasks_from_local_files(name: str, model: StageModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Scored by lm-eval's own prompts; one question worked out beside it. Where lm-eval is not installed, its absence is an error."""
    rows = {
        "lambada_openai": [{"text": "she gave him a cup of tea"}, {"text": "he sat down on the chair"}],
        "piqa": [{"goal": "Cut bread", "sol1": "with a knife", "sol2": "with soup", "label": 0}] * 3,
        "arc_easy": [
            {"id": "1", "question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
            {"id": "2", "question": "Which is cold?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "A"},
        ],
    }[name]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(LlmpqError, match=f"'evaluate.tasks' lists {name}, which need lm-eval"):
            make_tasks([name], tokenizer, sources={name: str(path)})
        return
    found = harness_task(name, tokenizer, {name: str(path)}, say=lambda _: None)(model)
    assert found["questions"] == len(rows)
    assert 0 <= found["low"] <= found["accuracy"] <= found["high"] <= 1
    if name == "piqa":
        encode = lambda text: tokenizer.encode(text).ids  # noqa: E731
        pairs = [Request(encode("Question: Cut bread\nAnswer:"), encode(f" {end}")) for end in ("with a knife", "with soup")]
        first, second = (answer.log_likelihood for answer in log_likelihoods(model, pairs))
        assert found["accuracy"] == float(first > second)
