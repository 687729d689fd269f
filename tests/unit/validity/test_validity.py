"""Studies of indicators: the draws, the statistics, and a whole study of a tiny model."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from scipy.stats import spearmanr

from llmpq import artifacts
from llmpq.errors import ArtifactError, ConfigError
from llmpq.evaluate.quality import evaluate_quality
from llmpq.indicator.table import write_indicator
from llmpq.quant.calibrate import calibrate
from llmpq.quant.quantise import quantise_group
from llmpq.validity import study
from llmpq.validity.assignments import average_width, best_for_bytes, ends_high, random_assignments
from llmpq.validity.measure import LayerBank, Measurements
from llmpq.validity.page import terminal, write_page
from llmpq.validity.settings import read_studies
from llmpq.validity.statistics import paired_difference, spearman, spearman_interval

OPTIONS = ["16", "8", "w8a8", "4", "3"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("width", [3.5, 4, 5.5, 9])
def test_random_assignments_have_their_width_and_differ(width: float) -> None:
    found = random_assignments(OPTIONS, 30, width, 40, seed=1)
    assert len(set(found)) == 40
    assert all(abs(average_width(one) - width) <= 0.5 / 30 for one in found)
    assert found == random_assignments(OPTIONS, 30, width, 40, seed=1) != random_assignments(OPTIONS, 30, width, 40, seed=2)
    assert len({option for one in found for option in one}) >= 4  # at 3.5 bits there is hardly room for 16


def test_widths_that_no_mixture_has() -> None:
    for width in (3, 16, 20):
        with pytest.raises(ConfigError, match="no mixture"):
            random_assignments(OPTIONS, 30, width, 4, seed=0)
    with pytest.raises(ConfigError, match="fewer than 50"):
        random_assignments(["4", "3"], 2, 3.5, 50, seed=0)


@pytest.mark.parametrize("seed", range(10))
def test_the_best_for_so_many_bytes_is_that_of_all(seed: int) -> None:
    draw, layers = random.Random(seed), 4
    stored = {"16": 1000, "8": 500 + draw.randrange(40), "4": 260, "3": 200}
    omega = {option: [draw.random() for _ in range(layers)] for option in stored}
    limit = draw.randrange(900, 3000)

    def damage(one: tuple[str, ...]) -> float:
        return sum(omega[option][layer] for layer, option in enumerate(one))

    allowed = [one for one in itertools.product(stored, repeat=layers) if sum(stored[option] for option in one) <= limit]
    found = best_for_bytes(omega, stored, limit)
    assert sum(stored[option] for option in found) <= limit
    assert damage(found) == pytest.approx(min(map(damage, allowed)))


def test_no_assignment_is_that_small() -> None:
    with pytest.raises(ConfigError, match="10 bytes or less"):
        best_for_bytes({"4": [1.0, 1.0]}, {"4": 6}, 10)


def test_ends_high() -> None:
    assert ends_high(5, "8", "3", 3) == ("8", "8", "3", "3", "8")
    assert ends_high(4, "8", "3", 0) == ("3",) * 4


def test_spearman_is_scipys_and_its_interval_holds_it() -> None:
    draw = random.Random(0)
    x = [draw.choice([1.0, 2.0, 3.0, draw.random()]) for _ in range(60)]
    y = [value + draw.gauss(0, 1) for value in x]
    assert spearman(x, y) == pytest.approx(float(spearmanr(x, y).statistic))
    found = spearman_interval(x, y)
    assert found.low < found.value < found.high
    assert spearman([1.0, 1.0], [2.0, 3.0]) == 0.0


def test_a_paired_difference_sees_what_two_means_would_not() -> None:
    draw = random.Random(1)
    second = [draw.gauss(3, 1) for _ in range(40)]
    first = [value - 0.05 + draw.gauss(0, 0.05) for value in second]
    found = paired_difference(first, second)
    assert found.value == pytest.approx(-0.05, abs=0.03)
    assert found.high < 0
    assert paired_difference(first, first) == type(found)(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="same ones"):
        paired_difference(first, second[:3])


@pytest.fixture(scope="module")
def made(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, draw = tmp_path_factory.mktemp("validity"), random.Random(1)
    calibrate(tiny_llama_dir, [[draw.randrange(96) for _ in range(32)] for _ in range(12)], folder / "c.safetensors", {})
    group = folder / "layers-000-003"
    quantise_group(tiny_llama_dir, folder / "c.safetensors", group, first=0, last=3, options=OPTIONS, settings={})
    texts = {name: torch.tensor([[draw.randrange(96) for _ in range(24)] for _ in range(6)]) for name in ("a", "b")}
    omegas = {}
    for method in ("divergence", "random"):
        out = folder / f"{method}.json"
        write_indicator(
            out, checkpoint_dir=tiny_llama_dir, calibration_file=folder / "c.safetensors", quantised_dirs=[group], model="tiny",
            quantizer="gptq", indicator={"name": method, "method": method}, options=OPTIONS,
        )  # fmt: skip
        rows = artifacts.read(out, "indicator")["rows"]
        omegas[method] = {option: [row["omega"] for row in rows if row["option"] == option] for option in OPTIONS}
    stored = {row["option"]: row["stored_bytes"] for row in artifacts.read(group / "manifest.json", "quantised")["rows"]}
    return {"checkpoint": tiny_llama_dir, "group": group, "texts": texts, "model": study.Model(omegas, stored, 4)}


def measured(made: dict[str, Any], path: Path) -> Measurements:
    return Measurements(path, LayerBank(made["checkpoint"], [made["group"]]), made["texts"], "recipe")


def test_losses_are_those_of_the_evaluation(made: dict[str, Any], tmp_path: Path) -> None:
    """Shared layers do not mix up: after another assignment the first is as before, and as the evaluation of a plan has it."""
    own = measured(made, tmp_path / "m.jsonl")
    for assignment in (("3", "16", "w8a8", "4"), ("4",) * 4, ("3", "8", "w8a8", "4")):
        expected = evaluate_quality(made["checkpoint"], [made["group"]], assignment, made["texts"])["texts"]
        assert own.losses(assignment) == {row["text"]: row["nll_windows"] for row in expected}


def test_measurements_are_kept_and_a_line_cut_off_is_made_again(made: dict[str, Any], tmp_path: Path) -> None:
    path, one, other = tmp_path / "m.jsonl", ("3", "16", "w8a8", "4"), ("4",) * 4
    first = measured(made, path)
    found = [first.losses(one), first.losses(other)]
    again = measured(made, path)
    assert again.known(one)
    assert [again.losses(one), again.losses(other)] == found
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    torn = measured(made, path)
    assert torn.known(one)
    assert not torn.known(other)
    assert torn.losses(other) == found[1]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2
    assert not Measurements(path, LayerBank(made["checkpoint"], [made["group"]]), made["texts"], "another recipe").known(one)
    path.write_text("[]\n", encoding="utf-8")
    with pytest.raises(ArtifactError, match="line 1 is no measurement"):
        measured(made, path)


def test_a_whole_study(made: dict[str, Any], tmp_path: Path) -> None:
    own = measured(made, tmp_path / "m.jsonl")
    model, texts = made["model"], list(made["texts"])
    ranks = study.rank(model, own, OPTIONS, [6, 9], 12, 0, texts)
    assert len(ranks["rows"]) == 3 * 2 * 3
    assert len(ranks["points"]) == 24
    row = next(row for row in ranks["rows"] if (row["predictor"], row["text"], row["width"]) == ("divergence", "a", study.POOLED))
    expected = spearman([point["omega"]["divergence"] for point in ranks["points"]], [point["nll"]["a"] for point in ranks["points"]])
    assert row["value"] == pytest.approx(expected)
    comparisons = study.compare(model, own, OPTIONS, "divergence", 0, texts)
    for row in comparisons:
        assert model.bytes_of(row["options"]) <= row["limit_bytes"]
        assert model.bytes_of(row["rival_options"]) <= row["limit_bytes"]
        assert row["difference"]["value"] == pytest.approx(row["nll"] - row["rival_nll"])
    together = study.pairs(model, own, OPTIONS, 3, 0, texts)
    assert len({(*row["layers"], row["option"], row["text"]) for row in together}) == len(together) == 6
    for row in together:
        plain, both = ["16"] * 4, ["16"] * 4
        for layer in row["layers"]:
            both[layer] = row["option"]
        added = [sum(losses[row["text"]]) / 6 for losses in (own.losses(tuple(plain)), own.losses(tuple(both)))]
        assert row["together"] == pytest.approx(added[1] - added[0])
    same, other = {"same": model.omegas["divergence"]}, {"reversed": {o: v[::-1] for o, v in model.omegas["divergence"].items()}}
    for row in study.stability(model, own, OPTIONS, "divergence", same, texts):
        assert (row["same_share"], row["mean_bits_apart"], row["omega_ratio"]) == (1, 0, 1)
        assert row["options"] == row["own_options"]
        assert row["difference"]["a"] == {"value": 0, "low": 0, "high": 0}
    stable = study.stability(model, own, OPTIONS, "divergence", other, texts)
    assert [row["size"] for row in stable] == ["uniform 3", "uniform 4", "5.5 bits"]
    for row in stable:
        assert row["omega_ratio"] >= 1
        assert row["same_share"] == sum(a == b for a, b in zip(row["options"], row["own_options"], strict=True)) / 4
        lost = sum(own.losses(tuple(row["options"]))["b"]) - sum(own.losses(tuple(row["own_options"]))["b"])
        assert row["difference"]["b"]["value"] == pytest.approx(lost / 6)
    assert any(row["same_share"] < 1 for row in stable)
    body = {
        "name": "tiny", "settings": {"model": "tiny", "indicator": "divergence"}, "rank": ranks, "compare": comparisons, "pairs": together,
        "stability": stable, "seconds": 1.0,
    }  # fmt: skip
    document = artifacts.write(tmp_path / "v.json", "validity", body, source="measured")
    write_page(tmp_path / "v.html", tmp_path / "v.csv", document)
    page = (tmp_path / "v.html").read_text(encoding="utf-8")
    assert "Do the indicators tell what options do?" in page
    assert "http" not in page.split("<script")[0]
    assert "<td>best of 10 at random, 5.5 bits</td>" in page
    assert len((tmp_path / "v.csv").read_text(encoding="utf-8").splitlines()) == 25
    assert "Against uniform 4 on b" in terminal(document)
    assert "Calibrated as reversed, 5.5 bits" in terminal(document)


def test_the_study_that_ships_is_one() -> None:
    assert set(read_studies(ROOT / "config" / "validity.yaml")) == {"default"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": "4"}, "key 'widths' is '4', expected list"),
        ({"assignments": 0}, "key 'assignments' is 0"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"model": None}, "key 'model' is None"),
        ({"rank": {"region": [0.5, 0.9], "windows": 1, "tokens": 8}}, "key 'compare.region' must begin"),
        ({"rank": {"region": [0.5, 0.9], "tokens": 8}}, "key 'rank.windows' is missing"),
        ({"rank": {"region": [0.9, 0.5], "windows": 1, "tokens": 8}}, "key 'rank.region'"),
        ({"stability": ["gptq-fine"]}, "key 'stability' is ['gptq-fine'], expected each of the other quantizers once"),
        ({"indicator": "magic"}, "which is none of 'indicators'"),
        ({"options": ["16", "8", "4"]}, "key 'options' lacks '3'"),
        ({"choices": ["3", "4"]}, "key 'choices' lacks '8'"),
    ],
)
def test_a_study_that_cannot_be_meant(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    found = yaml.safe_load((ROOT / "config" / "validity.yaml").read_text(encoding="utf-8"))
    found["studies"]["default"].update(change)
    (tmp_path / "validity.yaml").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"validity\.yaml: study 'default'") as caught:
        read_studies(tmp_path / "validity.yaml")
    assert message in str(caught.value)
    (tmp_path / "validity.yaml").write_text("studies: [", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected 'studies:'"):
        read_studies(tmp_path / "validity.yaml")
