"""Indicators: formulas worked out by hand, the artifact's unit, and damage that only the kernel shows."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from llmpq import artifacts, cli
from llmpq.errors import ArtifactError, ConfigError
from llmpq.indicator import gptq_loss, gradient, variance
from llmpq.indicator.base import Damages, QuantisedLayer, Source, Walk
from llmpq.indicator.divergence import Divergence, divergence
from llmpq.indicator.gptq_loss import GptqLoss
from llmpq.indicator.gradient import GradientError
from llmpq.indicator.hessian import Hessian, top_eigenvalue
from llmpq.indicator.methods import METHODS
from llmpq.indicator.random_control import RandomControl
from llmpq.indicator.residual_error import ResidualError
from llmpq.indicator.table import normalise, write_indicator
from llmpq.model.checkpoint import Checkpoint
from llmpq.model.stage import StageModel
from llmpq.quant.calibrate import calibrate
from llmpq.quant.calibration import Calibration, InputStatistics
from llmpq.quant.ends import quantise_ends
from llmpq.quant.files import read_layer
from llmpq.quant.kernels.cpu import ACTIVATION_LEVELS
from llmpq.quant.layer_index import find_layer_file
from llmpq.quant.options import OPTIONS, layer_option
from llmpq.quant.quantise import quantise_group

CHOSEN = ["16", "8", "w8a8", "w8a8-outlier", "4", "3"]


@pytest.fixture(scope="module")
def made(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, draw = tmp_path_factory.mktemp("indicator"), random.Random(1)
    calibrate(tiny_llama_dir, [[draw.randrange(96) for _ in range(32)] for _ in range(12)], folder / "c.safetensors", {})
    for first, last in ((0, 1), (2, 3)):
        out = folder / f"layers-00{first}-00{last}"
        quantise_group(tiny_llama_dir, folder / "c.safetensors", out, first=first, last=last, options=CHOSEN, settings={})
    return {
        "checkpoint_dir": tiny_llama_dir,
        "calibration_file": folder / "c.safetensors",
        "quantised_dirs": sorted(folder.glob("layers-*")),
        "model": "tiny",
        "quantizer": "gptq",
        "options": CHOSEN,
    }


def statistics(rows: torch.Tensor) -> InputStatistics:
    mean, second = rows.mean(0), rows.square().mean(0)
    return InputStatistics(rows.t() @ rows / len(rows), mean, second, rows.abs().amax(0), rows)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_uniform_four_bit_sums_to_one_and_sixteen_bit_is_harmless(made: dict[str, Any], tmp_path: Path, method: str) -> None:
    write_indicator(tmp_path / "i.json", indicator={"name": "mine", "method": method}, **made)
    document = artifacts.read(tmp_path / "i.json", "indicator")
    omega = {(row["layer"], row["option"]): row["omega"] for row in document["rows"]}
    assert omega.keys() == {(layer, option) for layer in range(4) for option in CHOSEN}
    assert sum(omega[layer, "4"] for layer in range(4)) == pytest.approx(1.0)
    for layer in range(4):
        assert omega[layer, "16"] == 0.0
        assert 0 < omega[layer, "8"] < omega[layer, "4"] < omega[layer, "3"]
        assert omega[layer, "8"] < omega[layer, "w8a8"]
        # Activations of 8 bits without their outliers lose as little as weights of 8 bits.
        assert (omega[layer, "8"] if ACTIVATION_LEVELS < 127 else 0) < omega[layer, "w8a8-outlier"] < omega[layer, "w8a8"]
    for row in document["rows"]:
        if "operators" in row:
            assert sum(row["operators"].values()) == pytest.approx(row["omega"])
    assert (document["model"], document["quantizer"], document["indicator"], document["reference_option"]) == ("tiny", "gptq", "mine", "4")


def test_variance_of_one_operator_by_hand() -> None:
    """Two outputs, two groups of 64: S² Var[X] / 4 over all inputs, and S² E[X²] / 6 for stochastic rounding."""
    rows = torch.cat([torch.full((1, 128), 1.0), torch.full((1, 128), 5.0)])  # mean 3, variance 4, second moment 13
    stored = {"scales": torch.tensor([[1.0, 2.0], [0.5, 4.0]])}
    weight = torch.zeros(2, 128)
    squares = 64 * (1 + 4 + 0.25 + 16)
    four = OPTIONS["4"]
    assert variance.damage(four, weight, stored, statistics(rows), {}) == pytest.approx(squares * 4 / 4)
    assert variance.damage(four, weight, stored, statistics(rows), {"moment": "second"}) == pytest.approx(squares * 13 / 4)
    assert variance.damage(four, weight, stored, statistics(rows), {"rounding": "stochastic"}) == pytest.approx(squares * 13 / 6)


def test_variance_counts_the_step_of_activations() -> None:
    """Rows of scale 1 at 8 bits; tokens whose largest magnitudes are once and twice the largest code are rounded in steps of 1 and 2."""
    rows = torch.zeros(2, 64)
    rows[0, 3], rows[1, 3] = ACTIVATION_LEVELS, -2 * ACTIVATION_LEVELS
    weight, stored = torch.full((4, 64), 2.0), {"scales": torch.ones(4)}
    weights = 4 * float(statistics(rows).variance.sum()) / 4
    activations = (1 + 4) / 2 * (4 * 64 * 4.0) / 4
    assert variance.damage(OPTIONS["8"], weight, stored, statistics(rows), {}) == pytest.approx(weights)
    assert variance.damage(OPTIONS["w8a8"], weight, stored, statistics(rows), {}) == pytest.approx(weights + activations)
    kept = {**stored, "outlier_columns": torch.tensor([3], dtype=torch.int32)}
    assert variance.damage(OPTIONS["w8a8-outlier"], weight, kept, statistics(rows), {}) == 0.0


def test_gptq_loss_measures_the_kernel() -> None:
    """Codes and scales are exact, so all damage is that of rounding activations, which one huge column makes large."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(32, 64, generator=draw)
    stored = {"codes": torch.randint(-127, 128, (32, 64), generator=draw, dtype=torch.int8), "scales": torch.ones(32, dtype=torch.bfloat16)}
    small = gptq_loss.damage(OPTIONS["w8a8"], stored, rows, 0.0)
    rows[:, 7] = 100.0
    large = gptq_loss.damage(OPTIONS["w8a8"], stored, rows, 0.0)
    outlier = stored["codes"].clone()
    outlier[:, 7] = 0
    kept = {"outlier_columns": torch.tensor([7], dtype=torch.int32), "outlier_weight": stored["codes"][:, 7:8].float()}
    saved = gptq_loss.damage(OPTIONS["w8a8-outlier"], {**stored, "codes": outlier, **kept}, rows, 0.0)
    assert large > 100 * small
    assert saved == pytest.approx(small, rel=0.3)
    step = rows.abs().amax(1) / ACTIVATION_LEVELS
    expected = float((step.square() / 12).mean() * stored["codes"].float().square().sum())
    assert large == pytest.approx(expected, rel=0.3)  # a uniform rounding error of step S has variance S²/12
    assert gptq_loss.damage(OPTIONS["w8a8"], stored, rows, 5.0) == pytest.approx(large + 5.0)


def test_the_unit_must_exist() -> None:
    with pytest.raises(ArtifactError, match="cannot serve as unit"):
        normalise({(0, "4"): {"qkv": 0.0}, (0, "8"): {"qkv": 1.0}})
    rows, unit = normalise({(0, "4"): {"qkv": 1.0, "o": 2.0}, (1, "4"): {"qkv": 3.0, "o": 4.0}, (1, "3"): {"qkv": 30.0, "o": 5.0}})
    assert unit == 10.0
    assert [row["omega"] for row in rows] == pytest.approx([0.3, 0.7, 3.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indicator": {"name": "x", "method": "magic"}}, "'magic' is unknown; known are residual-error, variance, gptq-loss"),
        ({"indicator": {"name": "x", "method": "variance", "rounding": "up"}}, "indicator.rounding 'up'"),
        ({"indicator": {"name": "x", "method": "variance", "moment": "third"}}, "indicator.moment 'third'"),
        ({"options": ["16", "8"]}, "must hold '4'"),
        ({"options": ["4", "5"]}, "unknown weight option '5'"),
        (
            {"options": ["4", "4/kv8"]},
            "model.kv_options: indicator.method 'variance' cannot judge a cache of 8 bits; choose one of residual",
        ),
        ({"options": ["4", "4/kv2"]}, "option '4/kv2' keeps its cache at '2'"),
    ],
)
def test_bad_settings(made: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write_indicator(tmp_path / "i.json", **{"indicator": {"name": "v", "method": "variance"}, **made, **changes})
    assert not (tmp_path / "i.json").exists()


def test_a_layer_that_was_not_quantised_is_named(made: dict[str, Any], tmp_path: Path) -> None:
    half = {**made, "quantised_dirs": made["quantised_dirs"][:1]}
    with pytest.raises(ArtifactError, match="layer 2 at option '8' is in none of the groups"):
        write_indicator(tmp_path / "i.json", indicator={"name": "v", "method": "gptq-loss"}, **half)


def source(made: dict[str, Any], **settings: Any) -> Source:
    return Source(Checkpoint(made["checkpoint_dir"]), Calibration(made["calibration_file"]), settings)


def at_options(made: dict[str, Any], layer: int, *options: str) -> QuantisedLayer:
    folder = Path(made["calibration_file"]).parent
    rows = {row["option"]: row["operators"] for row in _manifest_rows(folder) if row["layer"] == layer}
    chosen = [layer_option(name) for name in options]
    tensors = {option: read_layer(find_layer_file(folder, layer, option.weights.name)) for option in chosen}
    plain = [option.weights for option in chosen if option.kv == "16"]
    return QuantisedLayer(
        layer,
        {weights: tensors[layer_option(weights.name)] for weights in plain},
        {weights: {operator: part["loss"] for operator, part in rows[weights.name].items()} for weights in plain},
        {option: tensors[option] for option in chosen if option.kv != "16"},
    )


def _manifest_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in folder.glob("*/manifest.json") for row in artifacts.read(path, "quantised")["rows"]]


def stage(made: dict[str, Any], options: list[str], has_head: bool) -> StageModel:
    ends = {"embedding": "32", "head": "32" if has_head else None}
    return StageModel.load(made["checkpoint_dir"], Path(made["calibration_file"]).parent, first_layer=0, options=options, **ends)


def test_residual_error_is_the_relative_change_of_the_layers_output(made: dict[str, Any]) -> None:
    """Against whole stages run side by side, a layer at a time."""
    ids = torch.tensor(Calibration(made["calibration_file"]).ids[:4])
    walk = ResidualError(source(made))
    for layer in range(3):
        scores = walk.damages(at_options(made, layer, "w8a8", "3", "16/kv8", "3/kv8"))
        assert len(scores) == 4
        exact = stage(made, ["32"] * (layer + 1), False).hidden(ids)
        for option, score in scores.items():
            moved = stage(made, ["32"] * layer + [option], False).hidden(ids) - exact
            assert score["layer"] == pytest.approx(float((moved.square().sum(-1) / exact.square().sum(-1)).mean()), rel=1e-4)
    with pytest.raises(ValueError, match="layer 3 comes next"):
        walk.damages(QuantisedLayer(0, {}, {}))


def test_divergence_is_that_of_the_served_models_logits(made: dict[str, Any]) -> None:
    ids = torch.tensor(Calibration(made["calibration_file"]).ids[:4])
    indicator, exact = Divergence(source(made)), stage(made, ["32"] * 4, True).logits(ids).log_softmax(-1)
    for layer in range(4):
        for option, score in indicator.damages(at_options(made, layer, "w8a8", "3")).items():
            options = ["32"] * 4
            options[layer] = option
            found = stage(made, options, True).logits(ids).log_softmax(-1)
            expected = torch.nn.functional.kl_div(found, exact, log_target=True, reduction="none").sum(-1).mean()
            assert score["layer"] == pytest.approx(float(expected), rel=1e-3)


def test_gradients_are_those_of_the_loss(made: dict[str, Any]) -> None:
    """Moving a layer's output a little moves the summed loss by the gradient's inner product with the move."""
    given = source(made)
    states, gradients = gradient._backward(Walk(given, 4, 32))
    model, ids = stage(made, ["32"] * 4, True), Walk(given, 4, 32).ids

    def loss(hidden: torch.Tensor, first: int) -> float:
        for layer in model.layers[first:]:
            hidden = layer.prefill(hidden.clone(), Walk(given, 4, 32).context)
        logits = model.head(hidden)[:, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))

    for layer in range(4):
        move = 1e-2 * torch.randn(states[layer + 1].shape, generator=torch.Generator().manual_seed(layer))
        change = (loss(states[layer + 1] + move, layer + 1) - loss(states[layer + 1] - move, layer + 1)) / 2
        assert change == pytest.approx(float((gradients[layer].double() * move.double()).sum()), rel=2e-2, abs=1e-3)


def test_gradient_errors_by_hand(made: dict[str, Any]) -> None:
    given = source(made)
    states, gradients = gradient._backward(Walk(given, gradient.WINDOWS, gradient.TOKENS))
    layer = at_options(made, 0, "3")
    (option, stored), walk = next(iter(layer.stored.items())), Walk(given, gradient.WINDOWS, gradient.TOKENS)
    error = walk.run(layer_option(option.name), stored) - states[1]
    expected = float((error * gradients[0]).square().sum(-1).mean())
    assert GradientError(given).damages(layer)["3"]["layer"] == pytest.approx(expected, rel=1e-5)


def test_hessian_weighs_the_loss_by_a_true_eigenvalue(made: dict[str, Any]) -> None:
    layer, given = at_options(made, 1, "4", "w8a8"), source(made)
    losses = GptqLoss(given).damages(layer)
    for option, parts in Hessian(given).damages(layer).items():
        for name, value in parts.items():
            top = float(torch.linalg.eigvalsh(given.calibration.operator(1, name).hessian.double())[-1])
            assert value == pytest.approx(losses[option][name] * top, rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_top_eigenvalue_is_the_largest(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(80, 40, generator=draw) * torch.logspace(0, seed, 40)
    matrix = x.t() @ x
    assert top_eigenvalue(matrix) == pytest.approx(float(torch.linalg.eigvalsh(matrix.double())[-1]), rel=1e-4)
    assert top_eigenvalue(torch.zeros(5, 5)) == 0.0


def test_random_knows_bits_and_its_seed_alone(made: dict[str, Any]) -> None:
    layers = [at_options(made, layer, "8", "4", "3") for layer in range(4)]

    def draws(**settings: Any) -> list[Damages]:
        control = RandomControl(source(made, **settings))
        return [control.damages(layer) for layer in layers]

    assert draws() == draws(seed=0) != draws(seed=1)
    assert len({found["4"]["layer"] for found in draws()}) == 4
    assert all(found["3"]["layer"] == pytest.approx(4 * found["4"]["layer"]) for found in draws())


def test_ends_are_scored_by_the_divergence_of_the_served_model_over_that_of_uniform_four_bit(made: dict[str, Any], tmp_path: Path) -> None:
    quantise_ends(made["checkpoint_dir"], tmp_path / "ends", options=["8", "w8a8"])
    folders = [*made["quantised_dirs"], tmp_path / "ends"]
    ids = torch.tensor(Calibration(made["calibration_file"]).ids[:4])

    def predictions(layers: str, *ends: str) -> torch.Tensor:
        model = StageModel.load(made["checkpoint_dir"], folders, first_layer=0, options=[layers] * 4, embedding=ends[0], head=ends[1])
        return torch.log_softmax(model.logits(ids), -1)

    expected = predictions("32", "32", "32")
    unit = divergence(expected, predictions("4", "32", "32"))
    options = {"ends_dir": tmp_path / "ends", "end_options": ["16", "8", "w8a8"]}
    document = write_indicator(tmp_path / "i.json", indicator={"name": "mine", "method": "gptq-loss"}, **made, **options)
    assert document["end_unit"] == pytest.approx(unit, rel=1e-3)
    found = {(row["end"], row["option"]): row["omega"] for row in document["ends"]}
    served = {("embedding", "8"): ("8", "32"), ("head", "8"): ("32", "8"), ("head", "w8a8"): ("32", "w8a8")}
    assert found.keys() == served.keys() | {("embedding", "16"), ("head", "16")}
    assert found["embedding", "16"] == found["head", "16"] == 0.0
    for key, ends in served.items():
        assert found[key] == pytest.approx(divergence(expected, predictions("32", *ends)) / unit, rel=0.01)
    assert 0 < found["embedding", "8"] < 0.1
    assert 0 < found["head", "8"] < found["head", "w8a8"] < 1
    other = write_indicator(tmp_path / "j.json", indicator={"name": "other", "method": "random", "seed": 3}, **made, **options)
    assert other["ends"] == document["ends"]
    with pytest.raises(ArtifactError, match=r"no file embedding\.8\.safetensors"):
        write_indicator(tmp_path / "k.json", indicator={"name": "mine", "method": "random", "seed": 3}, **made, end_options=["8"])


def test_the_command_scores_layers_and_the_ends_that_it_is_given(made: dict[str, Any], tmp_path: Path) -> None:
    quantise_ends(made["checkpoint_dir"], tmp_path / "ends", options=["8", "w8a8"])
    call = ["indicator", made["checkpoint_dir"], made["calibration_file"], *made["quantised_dirs"], "--options", ",".join(CHOSEN)]
    call += ["--method", "random", "--seed", 3]
    found = []
    for ends in ([], ["--ends", tmp_path / "ends"]):
        assert cli.main([str(part) for part in [*call, "--out", tmp_path / "i.json", *ends]]) == 0
        found.append(artifacts.read(tmp_path / "i.json", "indicator"))
    expected = write_indicator(tmp_path / "j.json", indicator={"name": "random", "method": "random", "seed": 3}, **made)
    assert found[0]["rows"] == found[1]["rows"] == expected["rows"]
    assert [(row["end"], row["option"]) for row in found[0]["ends"]] == [("embedding", "16"), ("head", "16")]
    assert {("embedding", "8"), ("head", "8"), ("head", "w8a8")} < {(row["end"], row["option"]) for row in found[1]["ends"]}
