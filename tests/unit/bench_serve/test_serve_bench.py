"""The bench itself: ours and transformers run for real on a tiny model, an engine that cannot be had is a line that says so."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmpq.bench_serve import cases, record
from llmpq.bench_serve.environments import Environment, PeerMissing
from llmpq.bench_serve.ours import Ours, cluster, run_ours
from llmpq.bench_serve.peers import PeerProcess, same_share
from llmpq.bench_serve.run import Bench, Settings
from llmpq.commands import bench_serve
from llmpq.errors import ConfigError

WORDS = [f"w{number}" for number in range(80)]
CORE = min(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, write_llama: Callable[..., Path]) -> Path:
    """A tiny Llama of 4 layers that knows 80 words."""
    folder = write_llama(tmp_path_factory.mktemp("bench-serve"), max_position_embeddings=256)
    tokenizer = Tokenizer(models.WordLevel({word: number + 8 for number, word in enumerate(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def settings(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Settings]:
    home = tmp_path_factory.mktemp("bench")
    draw = random.Random(0)
    (home / "words.txt").write_text(" ".join(draw.choices(WORDS, k=30_000)), encoding="utf-8")

    def make(results: str, **changes: object) -> Settings:
        given = {
            "parts": ["peers"], "rounds": 2, "systems": [cases.REFERENCE, cases.TRANSFORMERS, cases.VLLM], "batches": [2], "threads": [1],
            "curves": [], "checkpoint": checkpoint, "quantised": [], "texts": [home / "words.txt"], "results": home / results,
            "work": home / "work", "environments": home / "envs", "lists": home / "no-lists",
        }  # fmt: skip
        return Settings(**{**given, **changes})

    return make


def test_everyone_has_a_turn_and_nothing_is_measured_twice(settings: Callable[..., Settings]) -> None:
    said: list[str] = []
    given = settings("turns.jsonl")
    Bench(given, said.append).run()
    lines = record.read(given.results)
    turns = [(line.system, line.round) for line in lines if line.measured]
    assert turns == [(cases.REFERENCE, 0), (cases.TRANSFORMERS, 0), (cases.TRANSFORMERS, 1), (cases.REFERENCE, 1)]
    (skipped,) = [line for line in lines if not line.measured]
    assert skipped.system == cases.VLLM
    assert skipped.status.startswith("skipped: its environment")
    for line in lines:
        if line.measured:
            assert 0 < line.seconds < 60
            assert line.cpu_s > 0
            assert line.load_s > 0
            assert line.peaks[0] > 50e6
            # random weights have near-ties, and fp16 weights are not fp32 ones
            assert line.same_tokens == 1.0 if line.system == cases.REFERENCE else line.same_tokens > 0.3
    Bench(given, said.append).run()
    again = record.read(given.results)[len(lines) :]
    assert [line.system for line in again] == [cases.VLLM]


def test_ours_serves_the_same_tokens_in_one_and_in_two_stages_as_transformers(checkpoint: Path) -> None:
    draw = random.Random(1)
    prompts = [[draw.randrange(8, 88) for _ in range(12)] for _ in range(4)]
    exact = Ours("exact", "32", "32", "32")
    one, two = (run_ours(checkpoint, [], exact, prompts, 6, stages=stages, slots=3) for stages in (1, 2))
    assert len(two.peak_bytes) == 2
    assert one.seconds == pytest.approx(one.prefill_s + one.decode_s)
    with PeerProcess(Path(sys.executable), "transformers", checkpoint, [CORE]) as peer:
        theirs = peer.run(prompts, 6)
    assert [len(row) for row in theirs.tokens] == [6] * 4
    assert same_share(one.tokens, theirs.tokens) == same_share(two.tokens, theirs.tokens) == 1.0


def comes_to_a_stop(process: psutil.Process, within_s: float = 10.0) -> bool:
    """A signal takes effect when the process next runs."""
    until = time.monotonic() + within_s
    while process.status() != psutil.STATUS_STOPPED and time.monotonic() < until:
        time.sleep(0.01)
    return bool(process.status() == psutil.STATUS_STOPPED)


def test_an_engine_is_stopped_while_it_is_not_its_turn(checkpoint: Path) -> None:
    with PeerProcess(Path(sys.executable), "transformers", checkpoint, [CORE]) as peer:
        process = psutil.Process(peer._process.pid)
        assert comes_to_a_stop(process)
        peer.warm_up([[8, 9, 10]])
        assert comes_to_a_stop(process)
        assert process.cpu_affinity() == [CORE]
    assert not process.is_running()


def test_an_engine_that_is_not_there_says_so(checkpoint: Path) -> None:
    with pytest.raises(PeerMissing, match="openvino-genai: ModuleNotFoundError"):
        PeerProcess(Path(sys.executable), "openvino-genai", checkpoint, [CORE])
    with pytest.raises(PeerMissing, match="does not start: No such file"):
        PeerProcess(Path("/nowhere/python"), "openvino-genai", checkpoint, [CORE])


def test_an_engine_that_dies_is_missed(checkpoint: Path) -> None:
    with PeerProcess(Path(sys.executable), "transformers", checkpoint, [CORE]) as peer:
        os.kill(peer._process.pid, signal.SIGKILL)
        with pytest.raises(PeerMissing, match="its process ended"):
            peer.run([[8, 9]], 2)


def test_an_engine_that_stops_early_is_no_row(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with PeerProcess(Path(sys.executable), "transformers", checkpoint, [CORE]) as peer:
        whole = peer._read

        def cut(patience_s: float) -> dict[str, object]:
            found = whole(patience_s)
            return {**found, "tokens": [row[:-1] for row in found["tokens"]]}

        monkeypatch.setattr(peer, "_read", cut)
        with pytest.raises(PeerMissing, match=r"1 rows of \[3\] tokens, not 1 of 4"):
            peer.run([[8, 9]], 4)


def test_a_list_that_cannot_be_installed_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{tmp_path}/no-such-package.whl\n", encoding="utf-8")
    environment = Environment(tmp_path / "environment", tmp_path / "list.txt")
    with pytest.raises(PeerMissing, match=r"list.txt cannot be installed: ERROR: .*no-such-package"):
        environment.ready()


def test_an_environment_with_this_very_list_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("", encoding="utf-8")
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "environment" / ".ready").write_text("", encoding="utf-8")
    assert Environment(tmp_path / "environment", tmp_path / "list.txt").ready() == tmp_path / "environment" / "bin" / "python"


def test_stages_have_cores_of_their_own_as_far_as_there_are_any() -> None:
    cores = sorted(os.sched_getaffinity(0))
    owned = [member["cores"] for member in cluster(len(cores) + 1, 1)["members"]]
    assert owned == [*([core] for core in cores), [cores[0]]]


def test_equal_tokens_are_counted_place_by_place() -> None:
    assert same_share([[1, 2], [3, 4]], [[1, 5], [3, 4]]) == 0.75


def test_the_command_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    bench_serve.add_arguments(parser)
    for arguments, says in (
        (["--part", "pears"], "unknown part 'pears'; known: floor, peers, quality, curves"),
        (["--systems", "llama"], "unknown system 'llama'"),
        (["--batches", "sixteen"], "--batches is 'sixteen'"),
        (["--threads", "4096"], "--threads is '4096'; this process may use"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            bench_serve._settings(parser.parse_args(arguments))


def test_only_the_page_is_written_again(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    bench_serve.add_arguments(parser)
    line = {
        "part": "floor", "date": "2026-11-23T10:00:00+00:00", "revision": "abc", "code": "c", "machine": "m", "load": 1.0,
        "system": "bandwidth", "what": "", "case": {"threads": 1}, "round": 0, "status": "ok", "value": 1e10,
    }  # fmt: skip
    (tmp_path / "lines.jsonl").write_text(json.dumps({**line, "case": record.Case(1).__dict__}) + "\n", encoding="utf-8")
    given = [
        "--render-only",
        "--checkpoint",
        str(checkpoint),
        "--results",
        str(tmp_path / "lines.jsonl"),
        "--out",
        str(tmp_path / "page.md"),
    ]
    assert bench_serve.run(parser.parse_args(given)) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# Serving beside other engines")
