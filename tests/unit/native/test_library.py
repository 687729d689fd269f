"""Compiling the kernels: once where it can be done; where it cannot, a reason, and torch does the work."""

import shutil
from pathlib import Path

import pytest
import torch

from llmpq.model import decoder
from llmpq.model.positions import Positions
from llmpq.model.stage import StageModel
from llmpq.native import available, library
from llmpq.quant.kernels import cpu

needs_compiler = pytest.mark.skipif(not available(), reason="the native kernels cannot be compiled here (no C compiler)")


@pytest.fixture(autouse=True)
def nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.library.cache_clear()
    yield
    library.library.cache_clear()


@needs_compiler
def test_compiled_once_and_for_nobody_else_to_write(tmp_path: Path) -> None:
    library.library()
    (found,) = (tmp_path / "cache" / "llmpq").iterdir()
    before = found.stat()
    library.library.cache_clear()
    library.library()
    assert found.stat().st_mtime_ns == before.st_mtime_ns
    assert found.parent.stat().st_mode & 0o077 == 0


@needs_compiler
def test_another_source_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.library()
    changed = tmp_path / "kernels.c"
    changed.write_text(library.SOURCE.read_text() + "\nint llmpq_more(void) { return 7; }\n")
    monkeypatch.setattr(library, "SOURCE", changed)
    library.library.cache_clear()
    assert library.library()["llmpq_more"]() == 7
    assert len(list((tmp_path / "cache" / "llmpq").iterdir())) == 2


def test_without_a_compiler_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(library.NativeMissingError, match="no C compiler is installed"):
        library.library()


@needs_compiler
def test_a_source_that_does_not_compile_gives_the_compilers_words_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "kernels.c"
    broken.write_text("int f( {")
    monkeypatch.setattr(library, "SOURCE", broken)
    with pytest.raises(library.NativeMissingError, match=r"did not compile kernels\.c: .*error"):
        library.library()
    assert not list((tmp_path / "cache" / "llmpq").iterdir())


def test_switched_off_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.DISABLED, "0")
    with pytest.raises(library.NativeMissingError, match="LLMPQ_NATIVE=0"):
        library.library()


@needs_compiler
def test_a_cache_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "llmpq"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with pytest.raises(library.NativeMissingError, match="somebody else may write there"):
        library.library()


def test_a_cache_that_cannot_be_made_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(library.NativeMissingError):
        library.library()


@needs_compiler
@pytest.mark.parametrize(
    ("option", "rtol", "atol"),
    [("32", 1e-4, 1e-5), ("16", 2e-3, 5e-4)],  # at 16 a key's last bit in fp16 may round the other way
)
def test_a_model_is_the_same_without_them(
    option: str, rtol: float, atol: float, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of unlike lengths, then tokens at unlike positions, natively and by torch."""
    model = StageModel.load(tiny_llama_dir, None, first_layer=0, options=[option] * _layers(tiny_llama_dir), embedding=option, head=option)

    def logits() -> list[torch.Tensor]:
        cache, lengths = model.new_cache(3, 16), torch.tensor([5, 9, 2])
        ids = torch.arange(27).view(3, 9) % model.spec.vocab
        found = [model.prefill(ids, cache, slice(0, 3), lengths)]
        return found + [model.decode(torch.tensor([1, 2, 3]), cache, slice(0, 3), lengths + step) for step in range(4)]

    native = logits()
    for module in (decoder, cpu):
        monkeypatch.setattr(module, "available", lambda: False)
    for mine, other in zip(native, logits(), strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


@needs_compiler
def test_gradients_are_torchs(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient indicator goes back through a layer."""
    model = StageModel.load(tiny_llama_dir, None, first_layer=0, options=["32"] * _layers(tiny_llama_dir), embedding="32", head="32")
    context, given = Positions(model.spec).prefill(7), torch.randn(2, 7, model.spec.hidden)

    def gradient() -> torch.Tensor:
        x = given.clone().requires_grad_()
        (found,) = torch.autograd.grad(model.layers[0].prefill(x, context).square().sum(), x)
        return found

    monkeypatch.setattr(model.layers[0], "activation", torch.nn.functional.silu)  # not in place, as the indicator has it
    native = gradient()
    monkeypatch.setattr(decoder, "available", lambda: False)
    assert torch.equal(native, gradient())


def _layers(folder: Path) -> int:
    from llmpq.model.spec import ModelSpec

    return ModelSpec.from_directory(folder).layers


def test_the_flags_leave_nan_alone() -> None:
    assert not {"-ffast-math", "-Ofast", "-ffinite-math-only"} & set(library._FLAGS)
