"""What is refused before vLLM starts, and how it is told when vLLM does not."""

import json
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import serve_cases
import vllm_cases
from planned_cases import NEW, PROMPT, VOCAB
from vllm_cases import Planned

from llmpq import artifacts, cli
from llmpq.errors import LlmpqError, ServeError
from llmpq.vllm_serve.process import interpreter, run_engine
from llmpq.vllm_serve.run import serve_with_vllm

SETTINGS = {"timeout_s": 5.0, "load_timeout_s": 60.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    return vllm_cases.planned(tmp_path_factory.mktemp("vllm-serve"))


def message(made: Planned, out: Path, python: Path = Path(sys.executable), **changes: Any) -> str:
    with pytest.raises(LlmpqError) as caught:
        serve_with_vllm(*made.asked(**changes), out, SETTINGS, python)
    assert "\n" not in str(caught.value)
    assert not (out / "serve.json").exists()
    assert not (out / "requests.jsonl").exists()
    return str(caught.value)


def edited(made: Planned, folder: Path, **changes: Any) -> Path:
    """A copy of the export with another export.json."""
    shutil.copytree(made.export, folder)
    record = json.loads((folder / "export.json").read_text()) | changes
    (folder / "export.json").write_text(json.dumps(record))
    return folder


def test_a_missing_environment_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"\.envs/vllm-cpu is not there or not complete; build it with `make vllm-cpu`"):
        interpreter(tmp_path / ".envs/vllm-cpu")
    (tmp_path / "half/bin").mkdir(parents=True)
    (tmp_path / "half/bin/python").symlink_to(sys.executable)
    with pytest.raises(ServeError, match="not complete"):
        interpreter(tmp_path / "half")


def test_an_interpreter_without_vllm_is_told_in_one_line_and_its_log_is_kept(made: Planned, tmp_path: Path) -> None:
    told = message(made, tmp_path)
    assert "vLLM ended without an answer (ModuleNotFoundError: No module named 'vllm'" in told
    assert f"{tmp_path}/logs/vllm.log has all that it said" in told
    assert "import vllm" in (tmp_path / "logs/vllm.log").read_text()


def test_a_vllm_that_does_not_load_is_killed(tmp_path: Path) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nsleep 60 & echo $! > " + str(tmp_path / "pid") + "\nwait\n")
    sleeper.chmod(0o755)
    started = time.monotonic()
    with pytest.raises(ServeError, match=r"has not loaded the model within serve\.load_timeout_s"):
        run_engine(sleeper, {"environment": {}}, tmp_path / "log", load_timeout_s=0.5, timeout_s=1)
    assert time.monotonic() - started < 20
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_shared_memory_of_a_killed_vllm_goes_with_it(tmp_path: Path) -> None:
    program = tmp_path / "python"
    code = "import sys, time; from multiprocessing import shared_memory; held = shared_memory.SharedMemory(create=True, size=9999); "
    code += f"open('{tmp_path}/name', 'w').write(held.name); time.sleep(60)"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    program.chmod(0o755)
    with pytest.raises(ServeError, match="has not loaded"):
        run_engine(program, {"environment": {}}, tmp_path / "log", load_timeout_s=3, timeout_s=1)
    name = (tmp_path / "name").read_text()
    assert name
    assert not (Path("/dev/shm") / name).exists()


def test_a_damaged_export_is_refused(made: Planned, tmp_path: Path) -> None:
    cut = edited(made, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-1])
    assert f"{cut}/model.safetensors: is missing or not of the {len(whole):,} bytes" in message(made, tmp_path / "out", export=cut)
    (cut / "model.safetensors").unlink()
    assert "export the plan again" in message(made, tmp_path / "out", export=cut)


def test_an_export_of_another_plan_is_refused(made: Planned, tmp_path: Path) -> None:
    options = artifacts.read(made.export / "export.json", "export")["options"]
    other = edited(made, tmp_path / "other", options=["16", *options[1:-1], "16"])
    assert "key 'options': this is no export to vllm of" in message(made, tmp_path / "out", export=other)
    settings = artifacts.read(made.export / "export.json", "export")["vllm"]
    gpu = edited(made, tmp_path / "gpu", vllm={**settings, "platform": "cuda"})
    assert "key 'vllm.platform' is cuda; export with --platform cpu" in message(made, tmp_path / "out", export=gpu)


def test_a_plan_of_another_problem_is_refused(made: Planned, tmp_path: Path) -> None:
    body = {key: value for key, value in artifacts.read(made.plan, "plan").items() if key not in ("schema", "version", "provenance")}
    other = serve_cases.write_plan(tmp_path / "plan.json", {**body, "problem_sha256": "1" * 64})
    assert "was made for another problem than" in message(made, tmp_path / "out", plan=other)


@pytest.mark.parametrize(
    ("device", "member", "told"),
    [
        ({"slowdown": 2.0}, {}, "slowdown is 2.0, but vLLM cannot be slowed down"),
        ({"kind": "gpu"}, {}, "vLLM is started here on processor cores"),
        ({}, {"cores": []}, "names none (cluster.members.cores)"),
        ({}, {"cores": [0]}, "core 0 is another stage's too"),
    ],
)
def test_devices_that_vllm_cannot_be_given_are_refused(
    made: Planned, tmp_path: Path, device: dict[str, Any], member: dict[str, Any], told: str
) -> None:
    types = {name: {**kind, **device} for name, kind in made.cluster["types"].items()}
    cluster = {**made.cluster, "types": types, "members": [{**each, **member} for each in made.cluster["members"]]}
    found = message(made, tmp_path, cluster=cluster)
    assert found.startswith("stage ")
    assert told in found


def test_lines_of_which_none_can_be_served_are_refused_as_by_the_own_runtime(made: Planned, tmp_path: Path) -> None:
    lines = tmp_path / "requests.jsonl"
    lines.write_text('{"id": "a", "prompt_tokens": [9, 8], "max_new_tokens": 4000}\n')
    told = message(made, tmp_path / "out", requests=lines)
    assert "not one of its 1 requests can be served; the first fault: line 1: " in told
    assert f"are more than {PROMPT + NEW} together, which is max_model_len of the export" in told


def test_a_workload_longer_than_the_export_is_refused(made: Planned, tmp_path: Path) -> None:
    rows = serve_cases.requests([PROMPT + 1], NEW, vocab=VOCAB)
    serve_cases.write_workload(tmp_path / "workload.json", rows)
    told = message(made, tmp_path / "out", requests=tmp_path / "workload.json")
    assert f"are {PROMPT + NEW + 1} together, the export's max_model_len is {PROMPT + NEW}" in told


def test_a_folder_that_cannot_be_written_is_named(made: Planned, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert re.search(r"file.*: cannot be written: Not a directory", message(made, tmp_path / "file" / "out"))


def test_the_command_wants_the_problem_and_the_export_together(made: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["serve", made.plan, "--requests", made.requests, "--checkpoint", made.model, "--out", tmp_path / "out"]
    assert cli.main([str(part) for part in [*call, "--export", made.export]]) == 2
    assert "with backend vllm give --problem PROBLEM.json and --export DIR" in capsys.readouterr().err
