"""Calibration statistics against sums done in the plain way over the same model."""

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmpq.errors import ArtifactError
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.decoder import DecoderLayer
from llmpq.model.ends import Embedding
from llmpq.model.positions import Positions
from llmpq.quant.calibrate import calibrate
from llmpq.quant.calibration import Calibration

WINDOWS, TOKENS = 5, 24


@pytest.fixture(scope="module")
def windows() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(96) for _ in range(TOKENS)] for _ in range(WINDOWS)]


@pytest.fixture(scope="module")
def calibrated(tiny_llama_dir: Path, windows: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "gptq.safetensors"
    calibrate(tiny_llama_dir, windows, path, {"seed": 3, "text": "random"})
    return path


@torch.inference_mode()
def seen_inputs(directory: Path, windows: list[list[int]]) -> list[dict[str, Tensor]]:
    """Per layer and operator all inputs [tokens, in], from the model's own layers; ``received`` the attention each token got."""
    checkpoint = Checkpoint(directory)
    spec, ids = checkpoint.spec, torch.tensor(windows)
    context = Positions(spec).prefill(ids.shape[1])
    hidden, found = Embedding(spec, checkpoint.embedding())(ids, torch.arange(ids.shape[1])), []
    for index in range(spec.layers):
        tensors, seen = checkpoint.layer(index), {}

        def operator(name: str, weight: Tensor, seen: dict[str, Tensor] = seen) -> object:
            def multiply(x: Tensor) -> Tensor:
                seen[name] = x.reshape(-1, x.shape[-1]).clone()
                return x @ weight.t()

            return multiply

        layer = DecoderLayer(spec, tensors, {name: operator(name, tensors[f"{name}.weight"]) for name in spec.operators()}, "32")
        hidden = layer.prefill(hidden, context)
        queries, keys, _ = layer._heads(seen["qkv"].view(*ids.shape, -1), context.rotary)
        received = torch.zeros(ids.shape)
        for row in range(len(ids)):
            for query in range(ids.shape[1]):
                for head in range(spec.heads):
                    scores = keys[row, : query + 1, head // spec.group] @ queries[row, query, head] / spec.head_dim**0.5
                    received[row, : query + 1] += scores.softmax(0) / spec.heads
        found.append({**seen, "received": received.flatten()})
    return found


def test_statistics_are_those_of_the_inputs(tiny_llama_dir: Path, windows: list[list[int]], calibrated: Path) -> None:
    calibration = Calibration(calibrated)
    for index, layer in enumerate(seen_inputs(tiny_llama_dir, windows)):
        weights = (1 + layer.pop("received")) / 2
        assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
        for name, x in layer.items():
            found = calibration.operator(index, name)
            counted = x * weights[:, None] if name == "qkv" else x
            torch.testing.assert_close(found.hessian, counted.t() @ x / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.second_moment, x.square().mean(0), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.variance, x.var(0, unbiased=False), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(found.max_abs, x.abs().amax(0), rtol=1e-4, atol=1e-5)
            distance = torch.cdist(found.rows, x, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
            assert found.rows.shape == (WINDOWS * TOKENS, x.shape[1])
            assert float(distance.max()) < 1e-4


def test_how_the_text_is_split_does_not_matter(
    tiny_llama_dir: Path, windows: list[list[int]], calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmpq.quant.calibrate._TOKENS_AT_ONCE", 2 * TOKENS)
    monkeypatch.setattr("llmpq.quant.calibrate._GRAM_BLOCK", 48)
    calibrate(tiny_llama_dir, windows, tmp_path / "parts.safetensors", {"seed": 3})
    whole, parts = Calibration(calibrated), Calibration(tmp_path / "parts.safetensors")
    for name in ("qkv", "o", "gate_up", "down"):
        torch.testing.assert_close(parts.operator(3, name).hessian, whole.operator(3, name).hessian, rtol=1e-4, atol=1e-5)


def test_the_same_text_gives_the_same_file(tiny_llama_dir: Path, windows: list[list[int]], calibrated: Path, tmp_path: Path) -> None:
    calibrate(tiny_llama_dir, windows, tmp_path / "again.safetensors", {"seed": 3, "text": "random"})
    assert (tmp_path / "again.safetensors").read_bytes() == calibrated.read_bytes()


def test_only_some_rows_are_kept_and_the_seed_chooses_them(
    tiny_llama_dir: Path, windows: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmpq.quant.calibrate.SAMPLED_ROWS", 7)
    rows = []
    for seed in (0, 1):
        calibrate(tiny_llama_dir, windows, tmp_path / f"{seed}.safetensors", {"seed": seed})
        rows.append(Calibration(tmp_path / f"{seed}.safetensors").operator(0, "qkv", hessian=False).rows)
    assert rows[0].shape == (7, 64)
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[1, 2], [1]], "equally long"),
        ([], "equally long"),
        ([[]], "equally long"),
        ([[5, 96]], r"0 … 95 \(the vocabulary\)"),
        ([[1] * 129], "128"),
    ],
)
def test_windows_that_cannot_be_run(tiny_llama_dir: Path, tmp_path: Path, wrong: list[list[int]], message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        calibrate(tiny_llama_dir, wrong, tmp_path / "x.safetensors", {})
    assert type(error.value).__module__.startswith("llmpq")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(calibrated: Path, tmp_path: Path) -> None:
    content = calibrated.read_bytes()
    for keep in (0, 1000, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:keep])
        with pytest.raises(ArtifactError, match=r"cut\.safetensors: truncated or damaged .*calibrate again"):
            Calibration(tmp_path / "cut.safetensors")
    with pytest.raises(ArtifactError, match=r"gone\.safetensors: no such calibration file; run calibrate"):
        Calibration(tmp_path / "gone.safetensors")
    with pytest.raises(ArtifactError, match="no statistics for operator 'up' of layer 0"):
        Calibration(calibrated).operator(0, "up")
    nan = bytearray(content)
    nan[-4:] = b"\x00\x00\xc0\x7f"
    (tmp_path / "nan.safetensors").write_bytes(nan)
    with pytest.raises(ArtifactError, match=r"nan\.safetensors: layer-003\.down\.rows holds NaN"):
        Calibration(tmp_path / "nan.safetensors").operator(3, "down")


def test_another_models_calibration_is_refused(calibrated: Path) -> None:
    with pytest.raises(ArtifactError, match="calibrated for 4 layers"):
        Calibration(calibrated).check({"qkv": (3, 64)}, 4)
