"""Small real models, plans and clusters for the serving tests."""

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from llmpq import artifacts
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.spec import ModelSpec
from llmpq.quant.files import LayerTensors, layer_vectors, plain_layer, write_layer
from llmpq.quant.layer_index import layer_file_name
from llmpq.quant.options import weight_option
from llmpq.quant.quantise import nearest
from llmpq.serve.batch import serve
from llmpq.serve.job import stage_kv_bytes

LAYERS, VOCAB = 6, 199


def tiny_llama(directory: Path, seed: int = 0, **changes: Any) -> Path:
    """A random Llama of 6 layers with grouped KV heads, saved as safetensors; ``changes`` to its configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": 256, "tie_word_embeddings": False, "eos_token_id": 7, "bos_token_id": 1,
        "initializer_range": 0.4, **changes,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(directory)
    return directory


def requests(lengths: Sequence[int], new_tokens: Sequence[int] | int, vocab: int = VOCAB, seed: int = 0) -> list[dict[str, Any]]:
    """Requests with random prompts of the given lengths."""
    source = random.Random(seed)
    limits = [new_tokens] * len(lengths) if isinstance(new_tokens, int) else new_tokens
    return [
        {"id": f"r{index}", "prompt_tokens": [source.randrange(8, vocab) for _ in range(length)], "max_new_tokens": limit}
        for index, (length, limit) in enumerate(zip(lengths, limits, strict=True))
    ]


def plan_body(
    spec: Any, cut: Sequence[int], sizes: tuple[int, int], options: Sequence[str], slots: int, capacity: int, ends: str = "32"
) -> dict[str, Any]:
    """A plan whose stage j has ``cut[j]`` layers, on device d{j}, with ample budgets; figures that serving does not need are round."""
    stages, layer = [], 0
    for number, count in enumerate(cut):
        kv = stage_kv_bytes(spec, options[layer : layer + count], slots, capacity)
        stages.append(
            {
                "device": f"d{number}",
                "first_layer": layer,
                "options": list(options[layer : layer + count]),
                "has_embedding": number == 0,
                "has_head": number == len(cut) - 1,
                "embedding_option": ends if number == 0 else None,
                "head_option": ends if number == len(cut) - 1 else None,
                "bytes": {
                    "weights": 1,
                    "kv": kv,
                    "embedding": 1,
                    "head": 1,
                    "workspace": 1 << 20,
                    "total": kv + 3 + (1 << 20),
                    "budget": 2**33,
                },
                "stored_bytes": 1,
                "prefill_ms": 1.0,
                "decode_ms": 1.0,
            }
        )
        layer += count
    xi, eta = sizes
    return {
        "strategy": "llmpq",
        "problem_sha256": "0" * 64,
        "source": "emulated",
        "schedule": "barrier",
        "stages": stages,
        "micro_batch": {"prefill": xi, "decode": eta, "prefill_count": -(-slots // xi), "decode_count": -(-slots // eta)},
        "predicted": {"prefill_s": 1.0, "decode_s": 1.0, "total_s": 2.0, "tokens_per_s": 1.0, "simulated_total_s": 2.0},
        "omega_sum": 0.0,
        "objective_ms": 2000.0,
        "quality_budget_met": None,
        "certificate": {
            "objective": 2000.0,
            "bound": 2000.0,
            "gap": 0.0,
            "solver": "none",
            "solver_version": "0",
            "status": "heuristic",
            "seconds": 0.0,
            "candidates": {"enumerated": 1, "pruned": 0, "solved": 1},
            "seed": 0,
        },
        "binding": [],
    }


def cluster(stages: int, **device: Any) -> dict[str, Any]:
    """``stages`` equal devices, spread over the cores."""
    cores = sorted(os.sched_getaffinity(0))
    kind = {"name": "cpu", "kind": "cpu", "source": "emulated", "cores": 1, "slowdown": 1.0, "memory_mib": 8192, **device}
    members = [{"name": f"d{number}", "device": "cpu", "cores": [cores[number % len(cores)]]} for number in range(stages)]
    return {"name": "test", "launch": "local", "types": {"cpu": kind}, "members": members}


def write_workload(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A workload file of these requests."""
    artifacts.write(path, "workload", {"name": "test", "requests": list(rows)}, source="computed")
    return path


def write_plan(path: Path, body: Mapping[str, Any]) -> Path:
    """A plan file."""
    artifacts.write(path, "plan", body, source="computed")
    return path


def quantised_layers(checkpoint: Path, folder: Path, options: Sequence[str]) -> Path:
    """Layer files of layer i at options[i], rounded to nearest (16 as it is)."""
    source = Checkpoint(checkpoint)
    for index, name in enumerate(options):
        tensors, option = source.layer(index), weight_option(name)
        if not option.quantised:
            layer = plain_layer(tensors, source.spec.operators(), index, name)
        else:
            kept = range(8) if option.outliers else ()
            operators = {operator: nearest(option, tensors[f"{operator}.weight"], kept) for operator in source.spec.operators()}
            layer = LayerTensors(index, name, operators, layer_vectors(tensors, operators))
        write_layer(folder / layer_file_name(index, name), layer)
    return folder


class Case:
    """A serving run in ``directory``: workload and plan files, cluster and settings; ``serve()`` runs it."""

    def __init__(
        self,
        directory: Path,
        checkpoint: Path,
        rows: Sequence[Mapping[str, Any]],
        cut: Sequence[int],
        sizes: tuple[int, int],
        *,
        slots: int = 0,
        options: Sequence[str] = (),
        quantised: Path | None = None,
        ends: str = "32",
        **settings: Any,
    ) -> None:
        spec = ModelSpec.from_directory(checkpoint)
        capacity = max(len(row["prompt_tokens"]) + row["max_new_tokens"] for row in rows)
        slots = slots or len(rows)
        self.directory, self.checkpoint, self.quantised = directory, checkpoint, quantised
        self.cluster = cluster(len(cut))
        self.settings = {"slots": slots, "ignore_eos": True, "timeout_s": 20, "margins": True, **settings}
        self.body = plan_body(spec, cut, sizes, options or ["32"] * sum(cut), slots, capacity, ends)
        self.workload = write_workload(directory / "workload.json", rows)
        self.said: list[str] = []

    def serve(self) -> dict[str, Any]:
        """Write the plan, serve, and return serve.json."""
        plan = write_plan(self.directory / "plan.json", self.body)
        arguments = (plan, None, self.workload, self.cluster, self.checkpoint, self.quantised, self.directory, self.settings)
        return serve(*arguments, say=self.said.append)

    def results(self) -> list[dict[str, Any]]:
        """The lines of requests.jsonl."""
        return [json.loads(line) for line in (self.directory / "requests.jsonl").read_text(encoding="utf-8").splitlines()]

    def journal(self) -> dict[str, Any]:
        """Finished requests in the journal, by id, read beside a running process."""
        records: dict[str, Any] = {}
        for path in (self.directory / "journal").glob("journal-*.jsonl"):
            for line in path.read_bytes().splitlines(keepends=True)[1:]:
                if line.endswith(b"\n"):
                    record = json.loads(line)
                    records[record["id"]] = record
        return records


def configuration(case: Case, path: Path, **changes: Any) -> Path:
    """The groups of the configuration that ``llmpq serve`` reads, for this case; ``changes`` are whole groups."""
    settings = {"slots": case.settings["slots"], "ignore_eos": case.settings["ignore_eos"]}
    other = {"requests": 6, "prompt_tokens": 8, "prompt_tokens_min": 8, "new_tokens": 8, "text": "wikipedia", "region": [0, 1], "seed": 0}
    config = {
        "name": "test",
        "cluster": {**case.cluster, "link": case.cluster.get("link") or {"delay_ms": 0.0}},
        "model": {"name": "tiny", "source": "path", "layers": LAYERS},
        "workload": {"name": "test", **other, **settings},
        "serve": {
            "name": "test", "schedule": "barrier", "timeout_s": case.settings["timeout_s"], "load_timeout_s": 60,
            "max_restarts": case.settings.get("max_restarts", 0),
        },
        "backend": {"name": "native", "margins": case.settings["margins"], "address": "127.0.0.1", "port": 0},
        **changes,
    }  # fmt: skip
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def stage_processes(of: int | None = None) -> list[psutil.Process]:
    """Running stage processes below process ``of`` (this one), by rank."""
    commands = {child: _command(child) for child in psutil.Process(of).children(recursive=True) if child.is_running()}
    workers = [child for child, command in commands.items() if "llmpq.serve.worker" in command]
    return sorted(workers, key=lambda child: int(commands[child][-1]))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


FIRST_BYTE = 8  # the token of the first byte in byte_tokenizer's vocabulary; ids below are special, 7 ends a sequence
BYTE_VOCAB = FIRST_BYTE + 256
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "{{ bos_token + message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def byte_tokenizer(directory: Path, template: str | None = TEMPLATE) -> Path:
    """A tokenizer whose tokens are single bytes, with eight special tokens before them, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = [f"<{number}>" for number in range(FIRST_BYTE)]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<1>"}, "eos_token": "<7>"}), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return directory
