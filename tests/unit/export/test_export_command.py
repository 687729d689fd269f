"""``llmpq export``: what lies beside the weights, what is refused and why, and that nothing half-written is left."""

import json
from pathlib import Path
from typing import Any

import pytest
import serve_cases
import torch
from export_cases import Exported, make
from safetensors.torch import load_file

from llmpq import artifacts, cli
from llmpq.errors import LlmpqError
from llmpq.export import write
from llmpq.export.assignment import Assignment
from llmpq.export.targets import TARGETS
from llmpq.model.spec import ModelSpec


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = make("llama-gqa-tied", tmp_path_factory.mktemp("export"), ("4", "16", "8"))
    (made.peer.directory / "tokenizer.json").write_text("{}")
    (made.peer.directory / "chat_template.jinja").write_text("{{ messages }}")
    (made.peer.directory / "modeling_own.py").write_text("raise SystemExit")
    return made


def plan(case: Exported, path: Path, **stage: Any) -> Path:
    spec = ModelSpec.from_directory(case.peer.directory)
    body = serve_cases.plan_body(spec, [1, 2], (1, 2), case.options, 2, 16, "16")
    for each in body["stages"]:
        each.update(stage)
    return serve_cases.write_plan(path, body)


def export(case: Exported, *arguments: str | Path) -> int:
    call = ["export", *arguments, "--checkpoint", case.peer.directory, "--quantised", case.quantised]
    return cli.main([str(part) for part in call])


def test_a_plan_becomes_a_directory_with_everything_a_reader_needs(
    case: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new/out"
    assert export(case, plan(case, tmp_path / "plan.json"), "--to", "compressed-tensors", out) == 0
    record = artifacts.read(out / "export.json", "export")
    assert capsys.readouterr().out.strip().endswith(f"float16, weights {record['weights_sha256']}")
    assert record["options"] == list(case.options)
    assert list(record["provenance"]["inputs"]) == [str(tmp_path / "plan.json")]
    assert record["files"] == {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.name != "export.json"}
    names = {"chat_template.jinja", "config.json", "export.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    config, original = (json.loads((folder / "config.json").read_text()) for folder in (out, case.peer.directory))
    assert config.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert {**config, "dtype": original["dtype"]} == original


def test_an_export_replaces_an_export_and_nothing_else(case: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert export(case, "--option", "16", "--to", "gptq", out) == 2  # layers 0 and 2 have no file at 16
    assert "quantise layer 0 at option '16'" in capsys.readouterr().err
    assert not out.exists()
    straight = ["export", "--option", "16", "--checkpoint", case.peer.directory, "--to", "gptq", tmp_path / "straight"]
    assert cli.main([str(part) for part in straight]) == 0  # without --quantised from the checkpoint itself
    assert export(case, plan(case, tmp_path / "plan.json"), "--to", "compressed-tensors", out) == 0
    before = (out / "model.safetensors").read_bytes()
    assert export(case, plan(case, tmp_path / "plan.json"), "--to", "compressed-tensors", out) == 0
    assert (out / "model.safetensors").read_bytes() == before
    (out / "export.json").unlink()
    assert export(case, plan(case, tmp_path / "plan.json"), "--to", "gptq", out) == 2
    assert capsys.readouterr().err.strip().endswith("out: exists and is no export of llmpq; remove it, or give another directory")
    assert (out / "model.safetensors").read_bytes() == before


def test_large_models_are_written_in_several_files(case: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.export("compressed-tensors", tmp_path / "one")
    monkeypatch.setattr(write, "SHARD_BYTES", 30_000)
    record = case.export("compressed-tensors", tmp_path / "several")
    names = sorted(name for name in record["files"] if name.endswith(".safetensors"))
    assert names == [f"model-{number:05d}-of-{len(names):05d}.safetensors" for number in range(1, len(names) + 1)]
    assert len(names) > 2
    whole = load_file(tmp_path / "one/model.safetensors")
    placed = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())["weight_map"]
    parts = {file: load_file(tmp_path / "several" / file) for file in names}
    assert placed.keys() == whole.keys()
    assert all(torch.equal(parts[file][name], whole[name]) for name, file in placed.items())


@pytest.mark.parametrize(
    ("target", "option", "expected"),
    [
        ("compressed-tensors", "w8a8-outlier", "outlier columns stay in fp32 beside the codes, which no checkpoint format holds; choose 8"),
        ("gptq", "w8a8-outlier", "outlier columns stay in fp32"),
        ("compressed-tensors", "3", "no reader of the format has a kernel for 3 bits; choose 4, or --to gptq"),
        ("compressed-tensors", "2-g32", "no reader of the format has a kernel for 2 bits; choose 4, or --to gptq"),
        ("compressed-tensors", "4a-g32", "offsets are no multiples of its scales, which is all that the format's zero points can be"),
        ("compressed-tensors", "4a-g32", "; choose 4-g32"),
        ("compressed-tensors", "3a", "; choose 4, or --to gptq"),
        ("gptq", "4a", "the format's zero points can be; choose 4"),
        ("gptq", "w8a8", "the format holds weights only, not that activations are rounded; choose 8, or --to compressed-tensors"),
        ("gptq", "4/kv8", "a checkpoint cannot say that single layers keep their cache as kv8; choose 4"),
        ("gptq", "5", "unknown weight option '5'"),
    ],
)
def test_what_a_format_cannot_express_is_refused_with_a_way_out(
    case: Exported, tmp_path: Path, target: str, option: str, expected: str
) -> None:
    with pytest.raises(LlmpqError) as caught:
        case.export(target, tmp_path / "out", options=("16", option, option))
    assert expected in str(caught.value)
    assert option == "5" or f"test: layer 1 and 1 more at option '{option}' cannot be exported to {target}" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("option", "instead"), [("bnb-int8", "8"), ("bnb-nf4", "4")])
def test_options_of_another_package_are_refused(case: Exported, tmp_path: Path, target: str, option: str, instead: str) -> None:
    expected = rf"option '{option}' cannot be exported to {target}: its weights are in a format of bitsandbytes; choose {instead}$"
    with pytest.raises(LlmpqError, match=expected):
        case.export(target, tmp_path / "out", options=("16", option, "16"))


def test_ends_other_than_16_and_32_are_refused(case: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eight = plan(case, tmp_path / "plan.json", embedding_option="8", head_option="8")
    assert export(case, eight, "--to", "compressed-tensors", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "the embedding at option '8' cannot be exported to compressed-tensors: readers keep it unquantised" in told
    assert told.strip().endswith('; plan with 16 alone for embedding and head (model.end_options=["16"])')
    with pytest.raises(LlmpqError, match="embedding and head are one tensor, but kept at 16 and 32 bits; choose the same for both"):
        case.export("gptq", tmp_path / "out", head_option="32")


def test_a_plan_of_another_model_or_without_stages_is_refused(case: Exported, tmp_path: Path) -> None:
    with pytest.raises(LlmpqError, match="test: has 2 layers, the model 3; give the checkpoint it was made for"):
        case.export("gptq", tmp_path / "out", options=("4", "4"))
    with pytest.raises(LlmpqError, match="strategy uniform has no plan to export: 5 MiB short"):
        Assignment.of_plan({"strategy": "uniform", "status": "infeasible", "message": "5 MiB short"}, "plan.json")


@pytest.mark.parametrize("arguments", [[], ["plan.json", "--option", "4"]])
def test_either_a_plan_or_an_option(case: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert export(case, *arguments, "--to", "gptq", tmp_path / "out") == 2
    assert "give either PLAN.json or --option" in capsys.readouterr().err


def test_a_failure_midway_leaves_what_was_there(case: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case.export("gptq", tmp_path / "out")
    before = (tmp_path / "out/export.json").read_text()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        case.export("gptq", tmp_path / "out")
    assert (tmp_path / "out/export.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
