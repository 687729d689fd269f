"""The real model, uneven stages, layers at 16 and at W8A8: vLLM, transformers and llmpq's own runtime on the same exported weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm_models import scores

from llmpq.export.assignment import Assignment
from llmpq.export.vllm import Vllm
from llmpq.export.write import export_checkpoint
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.files import write_layer
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.vllm_bytes import cache_bytes
from llmpq.vllm_serve.cut import rounded_layer
from llmpq.vllm_serve.process import run_engine
from llmpq.vllm_serve.settings import compiling, environment_of

CUT = (10, 20)
OPTIONS = tuple("w8a8" if layer % 3 == 1 or layer == 29 else "16" for layer in range(30))  # 19 at 16, 11 at w8a8
WINDOWS, WINDOW, PROMPTS, PROMPT, NEW = 8, 512, 8, 128, 24
TEXT = Path(__file__).parents[2] / "resources/texts/wikipedia.txt"
NEAR_TIE = 0.6  # natural logarithms between the two likeliest tokens; 0.40 seen where greedy texts part, at differences of up to 1.3
PERPLEXITY, OWN_PERPLEXITY = 0.01, 0.03


def texts(model: Path, count: int, length: int) -> list[list[int]]:
    """Consecutive windows from the middle of the packaged Wikipedia."""
    text = TEXT.read_text(encoding="utf-8")
    ids = load_tokenizer(model).encode(text[len(text) // 2 :][: 8 * count * length], add_special_tokens=False).ids
    return [ids[first * length : (first + 1) * length] for first in range(count)]


def perplexity(found: list[Tensor]) -> float:
    return math.exp(-float(torch.cat(found).double().mean()))


def rms(first: list[Tensor], second: list[Tensor]) -> float:
    return float((torch.cat(first) - torch.cat(second)).square().mean().sqrt())


def asked(export: Path, model: Path) -> dict[str, Any]:
    """Two stages on the first two cores; greedy requests with margins, and windows to be scored."""
    engine = {
        "dtype": "float32",
        "pipeline_parallel_size": len(CUT),
        "max_model_len": WINDOW + 1,
        "max_num_seqs": PROMPTS,
        "max_num_batched_tokens": 2 * PROMPT,
        "kv_cache_memory_bytes": max(CUT) * cache_bytes(Checkpoint(model).spec, PROMPTS, WINDOW + 1, "float32"),
        "distributed_executor_backend": "mp",
        "enable_prefix_caching": False,
        **compiling(False),
    }
    requests = [{"prompt_tokens": prompt, "max_new_tokens": NEW} for prompt in texts(model, PROMPTS, PROMPT)]
    scored = texts(model, WINDOWS, WINDOW)
    job = {"model": str(export), "engine": engine, "environment": environment_of(CUT, [[0], [1]])}
    return {**job, "requests": requests, "ends": [], "margins": True, "scored": scored}


@pytest.mark.slow
@pytest.mark.real_model
@torch.inference_mode()
def test_three_programs_agree_on_the_weights_of_one_export(python: Path, real_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    layers, checkpoint = tmp_path / "layers", Checkpoint(real_model_dir)
    layers.mkdir()
    for index, option in enumerate(OPTIONS):
        write_layer(layers / layer_file_name(index, option), rounded_layer(checkpoint, index, option))
    export_checkpoint(real_model_dir, layers, Assignment("test", OPTIONS), Vllm("cpu"), tmp_path / "export")
    job = asked(tmp_path / "export", real_model_dir)
    found = run_engine(python, job, tmp_path / "log", load_timeout_s=500, timeout_s=120)
    assert len(found["stages"]) == len(CUT)
    in_vllm = [torch.tensor(score) for score in found["scores"]]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    in_transformers = [scores(model(torch.tensor([text])).logits, text) for text in job["scored"]]
    own = StageModel.load(real_model_dir, layers, first_layer=0, options=list(OPTIONS), embedding="16", head="16")
    in_llmpq = [scores(own.predict(own.hidden(torch.tensor([text]))), text) for text in job["scored"]]

    figures = {name: perplexity(each) for name, each in (("vllm", in_vllm), ("transformers", in_transformers), ("llmpq", in_llmpq))}
    distances = {name: rms(in_vllm, each) for name, each in (("transformers", in_transformers), ("llmpq", in_llmpq))}
    told = f"perplexity {figures}, rms of log-probabilities against vLLM {distances}"
    print(told)
    assert abs(figures["transformers"] / figures["vllm"] - 1) < PERPLEXITY, told
    assert abs(figures["llmpq"] / figures["vllm"] - 1) < OWN_PERPLEXITY, told
    assert distances["transformers"] < 0.4, told  # 0.19 seen, 0.10 with GPTQ's codes: activations rounded by 127.5 where vLLM has 127
    assert distances["llmpq"] < 0.5, told  # 0.18 seen with activations of 8 bits, 0.09 with GPTQ's codes, and 0.25 with 7 bits
    _parts_at_near_ties(model, job, found["answers"])


def _parts_at_near_ties(model: Any, job: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Greedy tokens of transformers are vLLM's until the two likeliest are close in one of them."""
    prompts = torch.tensor([request["prompt_tokens"] for request in job["requests"]])
    made = model.generate(
        prompts, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    alike = 0
    for row, answer in enumerate(answers):
        theirs = made.sequences[row, PROMPT:].tolist()
        parted = next((place for place, pair in enumerate(zip(theirs, answer["tokens"], strict=True)) if pair[0] != pair[1]), None)
        if parted is None:
            alike += 1
            continue
        first, second = made.logits[parted][row].float().log_softmax(-1).topk(2).values.tolist()
        assert min(first - second, answer["margins"][parted]) < NEAR_TIE, f"request {row}, token {parted}"
    print(f"{alike} of {len(answers)} greedy texts the same")
