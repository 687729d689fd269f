"""The validity stage: a study of config/validity.yaml in, its artifact out."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llmpq import artifacts
from llmpq.errors import ConfigError
from llmpq.model.tokenizer import load_tokenizer
from llmpq.quant.quantise import read_manifests
from llmpq.sources import code_digest
from llmpq.text import token_windows
from llmpq.validity import study
from llmpq.validity.measure import LayerBank, Measurements
from llmpq.validity.settings import check_study


def write_validity(
    out: str | Path,
    *,
    name: str,
    settings: Mapping[str, Any],
    checkpoint_dir: str | Path,
    quantised_dirs: Sequence[str | Path],
    indicator_files: Sequence[str | Path],
    stability_files: Sequence[str | Path],
    text_files: Sequence[str | Path],
) -> dict[str, Any]:
    """Run study ``name`` and write the ``validity`` artifact; returns the document.

    ``settings``: as in config/validity.yaml; ``stability_files``: the indicator's scores after other calibrations. What is measured is
    kept beside ``out`` (``.measured.jsonl``) as it is made; measurements of other weights, texts, settings or code are made anew.
    Raises ConfigError naming the key that is wrong.
    """
    started = time.perf_counter()
    check_study(settings, f"study '{name}'")
    chosen = dict(settings)
    every = list(dict.fromkeys([*chosen["options"], *chosen["choices"]]))
    omegas = {}
    for file in indicator_files:
        document = artifacts.read(file, "indicator")
        omegas[str(document["indicator"])] = _by_option(document["rows"], every, str(file))
    others = {}
    for file in stability_files:
        document = artifacts.read(file, "indicator")
        others[str(document["quantizer"])] = _by_option(document["rows"], chosen["options"], str(file))
    rows = read_manifests(quantised_dirs)
    stored = {option: max(row["stored_bytes"] for (_, each), row in rows.items() if each == option) for option in every}
    model = study.Model(omegas, stored, 1 + max(layer for layer, _ in rows))
    bank, tokenizer = LayerBank(checkpoint_dir, list(quantised_dirs)), load_tokenizer(checkpoint_dir)
    manifests = [Path(directory) / "manifest.json" for directory in quantised_dirs]
    inputs = [*manifests, *text_files]
    recipe = artifacts.digest([code_digest("llmpq.validity.measure"), *(artifacts.sha256_file(path) for path in inputs)])
    measured = {}
    for part in ("rank", "compare"):
        cut = {key: chosen[part][key] for key in ("region", "windows", "tokens")}
        texts = {Path(file).stem: torch.tensor(token_windows(tokenizer, file, **cut)) for file in text_files}
        beside = Path(f"{out}.{part}.measured.jsonl")
        measured[part] = Measurements(beside, bank, texts, artifacts.digest([recipe, cut]))
    names, seed, options = [Path(file).stem for file in text_files], chosen["seed"], chosen["options"]
    body = {
        "name": name,
        "settings": chosen,
        "rank": study.rank(model, measured["rank"], options, chosen["widths"], chosen["assignments"], seed, names),
        "compare": study.compare(model, measured["compare"], chosen["choices"], chosen["indicator"], seed, names),
        "pairs": study.pairs(model, measured["rank"], options, chosen["pairs"], seed, names),
        "stability": study.stability(model, measured["compare"], options, chosen["indicator"], others, names),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return artifacts.write(out, "validity", body, source="measured", inputs=[*indicator_files, *stability_files, *inputs], config=chosen)


def _by_option(rows: Sequence[Mapping[str, Any]], options: Sequence[str], path: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {option: [] for option in options}
    for row in sorted(rows, key=lambda row: row["layer"]):
        if row["option"] in found:
            found[row["option"]].append(float(row["omega"]))
    for option, values in found.items():
        if not values:
            raise ConfigError(f"{path}: scores no option '{option}', which the study assigns; offer it in quantizer.options")
    return found
