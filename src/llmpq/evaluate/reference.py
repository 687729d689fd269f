"""What the 16-bit model thinks of a text, kept so that every plan is compared with it and it runs only once.

Logits would fill gigabytes (a vocabulary for each token). The final hidden states are 85 times fewer numbers with SmolLM2, and the
logits follow from them exactly: the 16-bit head turns the reference's states into its logits, a few tokens at a time.

One safetensors file; for each text ``TEXT.ids`` [w, t] (int32) and ``TEXT.hidden`` [w, scored, h] (fp32).
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmpq import artifacts
from llmpq.errors import ArtifactError
from llmpq.evaluate.perplexity import scored_hidden, scored_tokens
from llmpq.model.stage import StageModel
from llmpq.progress import Progress

SCHEMA, VERSION = "llmpq.reference", 2
OPTION = "16"
"""The option of every layer of the reference, and of its embedding and head."""


@dataclass(frozen=True)
class Reference:
    """Windows [w, t] and final hidden states [w, scored, h] by text, of the 16-bit model; ``head`` its StageModel.digest_lines' last, which
    tells whose states these are; ``seconds`` that it took, ``file`` it is in."""

    ids: Mapping[str, Tensor]
    hidden: Mapping[str, Tensor]
    weights_sha256: str
    head: str
    seconds: float
    file: str = "the reference"

    def states(self, text: str, windows: Tensor, stride: int | None) -> Tensor:
        """The hidden states of ``text``; ArtifactError where they are of other windows or another stride."""
        ids, hidden = self.ids.get(text), self.hidden.get(text)
        again = "delete it and make it again"
        if ids is None or hidden is None:
            raise ArtifactError(f"{self.file}: has no text '{text}' ({', '.join(self.ids)}); {again}")
        if not torch.equal(ids.long(), windows) or hidden.shape[1] != scored_tokens(windows.shape[1], stride):
            raise ArtifactError(f"{self.file}: its windows of '{text}' are other than those to be scored; {again}")
        return hidden

    def check_head(self, head: str) -> None:
        """ArtifactError where the 16-bit head by which the states are to be read is another model's."""
        if head != self.head:
            raise ArtifactError(f"{self.file}: is of another model; give a file of this one, or delete it and make it again")


def make_reference(
    checkpoint_dir: str | Path,
    texts: Mapping[str, Tensor],
    *,
    stride: int | None = None,
    progress: Callable[[str], None] = print,
) -> Reference:
    """Run the 16-bit model over every window [w, t] of ``texts``, through the serving kernels."""
    from llmpq.model.spec import ModelSpec

    started = time.perf_counter()
    options = [OPTION] * ModelSpec.from_directory(checkpoint_dir).layers
    model = StageModel.load(checkpoint_dir, None, first_layer=0, options=options, embedding=OPTION, head=OPTION)
    done, hidden = Progress("reference", sum(len(windows) for windows in texts.values()), progress), {}
    for name, windows in texts.items():
        scored = scored_tokens(windows.shape[1], stride)
        hidden[name] = torch.empty(len(windows), scored, model.spec.hidden)
        for states, window in zip(hidden[name], windows, strict=True):
            states.copy_(scored_hidden(model, window, scored))
            done.step(f"windows of {name}")
    return Reference(dict(texts), hidden, model.weights_digest, model.digest_lines[-1], round(time.perf_counter() - started, 3))


def write_reference(out: str | Path, reference: Reference) -> None:
    """Write a reference; atomic."""
    names = {f"{text}.ids": ids.to(torch.int32) for text, ids in reference.ids.items()}
    names |= {f"{text}.hidden": hidden.float().contiguous() for text, hidden in reference.hidden.items()}
    info = {
        "schema": SCHEMA,
        "version": VERSION,
        "weights_sha256": reference.weights_sha256,
        "head": reference.head,
        "seconds": reference.seconds,
    }
    with artifacts.atomic_path(out) as temporary:
        save_file(names, temporary, metadata={"llmpq": json.dumps(info, sort_keys=True)})


def read_reference(path: str | Path) -> Reference:
    """Read a reference; ArtifactError for a file that is missing, truncated or something else."""
    try:
        with safe_open(str(path), framework="pt") as file:
            info: dict[str, Any] = json.loads((file.metadata() or {}).get("llmpq", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; make the reference first (rule reference, or llmpq evaluate --reference)") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a complete safetensors file ({error}); delete it and make the reference again") from None
    if info.get("schema") != SCHEMA or info.get("version") != VERSION:
        raise ArtifactError(f"{path}: not a reference of this version of llmpq; delete it and make the reference again")
    parts = {part: {name.removesuffix(f".{part}"): each for name, each in tensors.items() if name.endswith(f".{part}")} for part in _PARTS}
    return Reference(parts["ids"], parts["hidden"], info["weights_sha256"], info["head"], info["seconds"], str(path))


_PARTS = ("ids", "hidden")
