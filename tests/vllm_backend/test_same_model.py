"""Stock vLLM loads exports of tiny models, whole and as uneven pipelines, and says what the weights of the export say."""

from pathlib import Path

import pytest
import torch
from export_cases import make
from vllm_models import NEW, as_vllm_rounds, asked, scores, texts

from llmpq.model.cache import FORMATS
from llmpq.model.stage import StageModel
from llmpq.vllm_serve.process import run_engine

TOLERANCE = 1e-4  # of a log-probability; 4.8e-6 seen
CACHE_TOLERANCE = 5e-3  # the same with keys and values in fp16, on a tiny random model; 1.2e-3 seen
HALF_TOLERANCE = 0.05  # the same in fp16, where activations also round to other levels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "options", "partition"),
    [
        ("llama", ("16", "w8a8", "16", "w8a8"), (3, 1)),
        ("opt", ("w8a8", "16", "w8a8", "16"), (4,)),
        ("qwen2-gqa", ("16", "w8a8", "16", "w8a8"), (1, 3)),
    ],
)
@torch.inference_mode()
def test_vllm_says_what_the_exported_weights_say(
    python: Path, tmp_path: Path, case: str, options: tuple[str, ...], partition: tuple[int, ...]
) -> None:
    made = make(case, tmp_path, options, 128)
    made.export("vllm", tmp_path / "out")
    found = run_engine(python, asked(tmp_path / "out", partition), tmp_path / "log", load_timeout_s=400, timeout_s=60)
    assert len(found["stages"]) == len(partition)
    model = as_vllm_rounds(tmp_path / "out")
    for text, score, answer in zip(texts(), found["scores"], found["answers"], strict=True):
        torch.testing.assert_close(torch.tensor(score), scores(model(torch.tensor([text])).logits, text), atol=TOLERANCE, rtol=0)
        limits = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
        expected = model.generate(torch.tensor([text]), **limits)[0, len(text) :].tolist()
        assert min(answer["margins"]) > TOLERANCE  # no near-tie, so that the tokens must be the same
        assert answer["tokens"] == expected


@pytest.mark.slow
@torch.inference_mode()
def test_all_layers_at_16_bits_are_what_llmpq_itself_computes(python: Path, tmp_path: Path) -> None:
    made = make("llama", tmp_path, ("16", "16", "16"), 128)
    made.export("vllm", tmp_path / "out")
    found = run_engine(python, asked(tmp_path / "out", (3,)), tmp_path / "log", load_timeout_s=400, timeout_s=60)
    own = StageModel.load(made.peer.directory, made.quantised, first_layer=0, options=list(made.options), embedding="16", head="16")
    for kv, tolerance in (("16", CACHE_TOLERANCE), ("32", TOLERANCE)):  # as llmpq serves, and with a cache in fp32, as vLLM has here
        for layer in own.layers:
            layer.kv, layer.kv_format = kv, FORMATS[kv]
        for text, score in zip(texts(), found["scores"], strict=True):
            expected = scores(own.predict(own.hidden(torch.tensor([text]))), text)
            torch.testing.assert_close(torch.tensor(score), expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@torch.inference_mode()
def test_on_a_gpu_every_option_says_what_the_exported_weights_say(gpu_python: Path, tmp_path: Path) -> None:
    made = make("llama", tmp_path, ("16", "w8a8", "8", "4"), 128)
    made.export("vllm", tmp_path / "out")
    found = run_engine(gpu_python, asked(tmp_path / "out", (4,), "float16"), tmp_path / "log", load_timeout_s=500, timeout_s=60)
    model = as_vllm_rounds(tmp_path / "out")
    for text, score in zip(texts(), found["scores"], strict=True):
        torch.testing.assert_close(torch.tensor(score), scores(model(torch.tensor([text])).logits, text), atol=HALF_TOLERANCE, rtol=0)
