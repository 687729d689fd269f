"""``llmpq export --to vllm``: the checkpoint with the settings of the plan's pipeline, and a launcher that says them to vLLM."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import planned_cases
import pytest
import serve_cases
import yaml
from planned_cases import NEW, PROMPT, REQUESTS

from llmpq import artifacts, cli
from llmpq.export.target import ExportError
from llmpq.export.vllm import Vllm, launch
from llmpq.model.spec import ModelSpec
from llmpq.quant.options import weight_option

VLLM = """#!/bin/sh
python3 -c 'import json, os, sys; print(json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ)}))' "$@"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A quantised model, a problem of two devices, and a plan of three layers and one with micro-batches of 1 and 3."""
    folder = tmp_path_factory.mktemp("vllm")
    found = planned_cases.quantised_model(folder, True)
    _, body = planned_cases.problem(found, [64.0, 64.0], end_options=["16"])
    problem = artifacts.write(folder / "problem.json", "problem", body, source="computed")
    spec = ModelSpec.from_directory(found["model"])
    plan = serve_cases.plan_body(spec, [3, 1], (1, REQUESTS), ["16", "4", "16", "4"], REQUESTS, PROMPT + NEW, "16")
    serve_cases.write_plan(folder / "plan.json", {**plan, "problem_sha256": artifacts.body_digest(problem)})
    return {**found, "folder": folder, "plan": artifacts.read(folder / "plan.json", "plan"), "problem": body}


def export(made: dict[str, Any], out: Path, *more: str | Path, target: str = "vllm", problem: Path | None = None) -> int:
    given = [] if target != "vllm" else ["--problem", problem or made["folder"] / "problem.json"]
    call = ["export", made["folder"] / "plan.json", "--to", target, out, "--checkpoint", made["model"], *given, *more]
    return cli.main([str(part) for part in [*call, "--quantised", *made["quantised"]]])


def run(out: Path, tmp_path: Path, **environment: str) -> dict[str, Any]:
    """What serve.sh says to the program ``vllm`` on the path, called from somewhere else."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/vllm").write_text(VLLM)
    (tmp_path / "bin/vllm").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run([out / "serve.sh", "--seed", "1"], capture_output=True, text=True, cwd="/", env={"PATH": path, **environment})
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_settings_are_the_plans(made: dict[str, Any], tmp_path: Path) -> None:
    out, plan = tmp_path / "out", made["plan"]
    assert export(made, out) == 0
    record = artifacts.read(out / "export.json", "export")
    assert record["files"].keys() >= {"serve.sh", "vllm.yaml", "config.json", "model.safetensors"}
    partition = [len(stage["options"]) for stage in plan["stages"]]
    engine = record["vllm"]["engine"]
    assert record["vllm"]["partition"] == partition == [3, 1]
    assert engine == {
        "dtype": record["dtype"],
        "pipeline_parallel_size": 2,
        "tensor_parallel_size": 1,
        "max_model_len": PROMPT + NEW,
        "max_num_seqs": REQUESTS,
        "max_num_batched_tokens": PROMPT,
        "kv_cache_memory_bytes": 3 * 2 * (REQUESTS + 1) * 128 * 2 * 16 * 2,
        "distributed_executor_backend": "mp",
    }
    settings = yaml.safe_load((out / "vllm.yaml").read_text())
    assert settings == {name.replace("_", "-"): value for name, value in engine.items()}
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"


def test_the_launcher_says_them_to_vllm_from_anywhere(made: dict[str, Any], tmp_path: Path) -> None:
    assert export(made, tmp_path / "a name's out") == 0
    out, partition = tmp_path / "a name's out", [len(stage["options"]) for stage in made["plan"]["stages"]]
    said = run(out, tmp_path)
    local = ["--host", "127.0.0.1", "--port", "8000"]
    assert said["arguments"] == ["serve", str(out), "--config", str(out / "vllm.yaml"), *local, "--seed", "1"]
    assert said["environment"]["VLLM_PP_LAYER_PARTITION"] == ",".join(map(str, partition))
    assert said["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    other = run(out, tmp_path, GPUS="3,1", PORT="9000")
    assert (other["environment"]["CUDA_VISIBLE_DEVICES"], other["arguments"][7]) == ("3,1", "9000")
    script = (out / "serve.sh").read_text()
    assert all(f"#   {number}: d{number}, {layers} layers" in script for number, layers in enumerate(partition))


def test_on_the_cpu_stages_have_cores_and_the_module_is_started(made: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(made, out, "--platform", "cpu") == 0
    said = run(out, tmp_path, CORES="0-3|4-7", PYTHON=str(tmp_path / "bin/vllm"))
    assert said["arguments"][:6] == ["-m", "vllm.entrypoints.openai.api_server", "--model", str(out), "--config", str(out / "vllm.yaml")]
    assert said["environment"]["VLLM_CPU_OMP_THREADS_BIND"] == "0-3|4-7"
    settings = yaml.safe_load((out / "vllm.yaml").read_text())
    assert settings["kv-cache-memory-bytes"] == 3 * 2 * (REQUESTS + 1) * 128 * 2 * 16 * 2


@pytest.mark.parametrize(("options", "dtype"), [(["16", "w8a8"], "float32"), (["16", "4"], "bfloat16")])
def test_four_bits_are_computed_in_bfloat16_on_the_cpu(made: dict[str, Any], options: list[str], dtype: str) -> None:
    stages = [{**stage, "options": options} for stage in made["plan"]["stages"]]
    spec = ModelSpec.from_directory(made["model"])
    assert launch({**made["plan"], "stages": stages}, made["problem"], spec, "cpu", "float16").engine["dtype"] == dtype


def test_exporting_twice_gives_the_same_bytes(made: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert export(made, tmp_path / name) == 0
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {path.name for path in (tmp_path / "two").iterdir()}
    differing = [name for name in files if (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()]
    assert set(differing) <= {"export.json"}  # it has the time


def test_for_transformers_there_is_the_checkpoint_alone(made: dict[str, Any], tmp_path: Path) -> None:
    assert export(made, tmp_path / "out", target="transformers") == 0
    assert export(made, tmp_path / "same", target="compressed-tensors") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in (tmp_path / "same").iterdir()}
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "same/model.safetensors").read_bytes()


def test_a_damaged_or_foreign_problem_is_refused_and_nothing_is_left(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (made["folder"] / "problem.json").read_text()
    other = tmp_path / "problem.json"
    for text, message in (
        (whole[: len(whole) // 2], "problem.json"),
        (whole.replace('"requests": 3', '"requests": 6'), "was made for another problem than"),
    ):
        assert text != whole
        other.write_text(text)
        assert export(made, tmp_path / "out", problem=other) == 2
        assert message in capsys.readouterr().err
    call = ["export", made["folder"] / "plan.json", "--to", "vllm", tmp_path / "out", "--checkpoint", made["model"]]
    assert cli.main([str(part) for part in call]) == 2
    assert "--to vllm needs PLAN.json and --problem PROBLEM.json" in capsys.readouterr().err
    assert export(made, tmp_path / "out", "--platform", "cpu", target="gptq") == 2
    assert "--problem and --platform are for --to vllm, not gptq" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "not a complete JSON"),
        (lambda text: without(text, lambda plan: plan["stages"].pop()), "0 stages have the head, not one: the plan is not whole"),
        (lambda text: without(text, lambda plan: plan["stages"][0]["options"].pop()), "has 3 layers, the model 4"),
        (lambda text: without(text, lambda plan: plan["stages"][0].pop("options")), "'options'"),
        (lambda text: without(text, lambda plan: plan.pop("micro_batch")), "'micro_batch'"),
    ],
)
def test_a_damaged_or_incomplete_plan_is_refused_and_nothing_is_left(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(spoil((made["folder"] / "plan.json").read_text()))
    call = ["export", plan, "--to", "vllm", tmp_path / "out", "--checkpoint", made["model"], "--problem", made["folder"] / "problem.json"]
    assert cli.main([str(part) for part in [*call, "--quantised", *made["quantised"]]]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "plan.json" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]


def without(text: str, change: Any) -> str:
    """plan.json with something taken out."""
    plan = json.loads(text)
    change(plan)
    return json.dumps(plan)


def test_what_vllm_cannot_do_is_refused() -> None:
    assert "choose w8a8" in str(Vllm("cpu").refusal(weight_option("8")))
    assert Vllm("cuda").refusal(weight_option("8")) is None
    assert Vllm("cpu").refusal(weight_option("w8a8")) is None
    with pytest.raises(ExportError, match="--platform 'tpu' is unknown; known are cuda, cpu"):
        Vllm("tpu")


def test_groups_of_unlike_size_are_refused_and_like_ones_are_tensor_parallel(made: dict[str, Any]) -> None:
    spec, problem = ModelSpec.from_directory(made["model"]), json.loads(json.dumps(made["problem"]))
    for device in problem["devices"]:
        device["uses"] = [f"{device['name']}-{number}" for number in range(2)]
    assert launch(made["plan"], problem, spec, "cuda", "float16").engine["tensor_parallel_size"] == 2
    problem["devices"][0]["uses"].append("third")
    with pytest.raises(ExportError, match=r"unlike numbers of GPUs \(d0 has 3, d1 has 2\)"):
        launch(made["plan"], problem, spec, "cuda", "float16")
