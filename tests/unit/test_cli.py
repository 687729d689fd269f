"""The command line: what it offers, and how it speaks of mistakes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpq import cli, commands
from llmpq.cli import command_names, help_of, main

NAMES = command_names()


def llmpq(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "llmpq", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def test_every_stage_has_a_command() -> None:
    assert set(cli.ORDER) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"usage: llmpq {name}" in capsys.readouterr().out
    assert len(help_of(name)) > 10


def test_the_list_of_commands_imports_no_stage() -> None:
    program = "import sys; from llmpq.cli import main\ntry: main(['--help'])\nfinally: sys.exit(3 if 'torch' in sys.modules else 0)"
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0
    assert all(name in found.stdout for name in NAMES)
    assert time.monotonic() - started < 10


def test_an_error_of_the_user_is_one_line_and_code_2(tmp_path: Path) -> None:
    found = llmpq("config", "duet", cwd=Path(__file__).parents[2])
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("llmpq: error: unknown experiment 'duet'; config/experiment has: ")
    assert "duo, duo-long, duo-mixed" in line
    found = llmpq("config", cwd=tmp_path)
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "config/config.yaml" in found.stderr


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["plan"], ["track"]])
def test_a_wrong_call_is_code_2_and_shows_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_artifact_that_is_not_there_is_named(tmp_path: Path) -> None:
    found = llmpq("plan", str(tmp_path / "none.json"), "--out", str(tmp_path / "plan.json"))
    assert found.returncode == 2
    assert "none.json: no such file" in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named() -> None:
    problem = Path(__file__).parents[1] / "lp" / "problem.json"
    found = llmpq("plan", str(problem), "--strategy", "uniform", "--out", "/proc/none/plan.json")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith("llmpq: error: /proc/none")


def test_a_port_out_of_range_is_one_line() -> None:
    found = llmpq("ui", "--port", "99999")
    assert (found.returncode, found.stderr) == (2, "llmpq: error: --port 99999: a port is 1 to 65535\n")


def test_commands_have_the_three_parts() -> None:
    for name in NAMES:
        text = (Path(commands.__path__[0]) / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
        for piece in ("HELP = ", "def add_arguments(", "def run("):
            assert piece in text, f"{name}: {piece}"


def test_config_shows_what_an_override_comes_to() -> None:
    found = llmpq("config", "duo", "workload.new_tokens=7", cwd=Path(__file__).parents[2])
    assert found.returncode == 0
    assert "new_tokens: 7" in found.stdout


def test_doctor_tries_kernels_solvers_and_processes() -> None:
    found = llmpq("doctor", cwd=Path(__file__).parents[2])
    assert found.returncode == 0, found.stdout
    for option in ("16", "8", "w8a8", "w8a8-outlier", "4", "3"):
        assert f"option {option}: runs" in found.stdout
    for part in ("glpk: GLPK", "highs: HiGHS", "two processes exchanged a tensor", "torch 2"):
        assert part in found.stdout
