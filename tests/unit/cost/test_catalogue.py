"""The catalogue: its roofline against published times, and problems of every row that are complete."""

import shutil
from pathlib import Path

import pytest
import yaml

from llmpq.cost import stand_in
from llmpq.cost.catalogue import Peak, Roofline, Shape, kv_layer_bytes, layer_bytes, mean_absolute_error
from llmpq.cost.kernels import GENERATIONS
from llmpq.cost.paper import paper_problem, paper_rows, write_paper_problem
from llmpq.errors import ConfigError
from llmpq.plan.problem import Problem
from llmpq.planning import write_plan

CONFIG = Path(__file__).parents[3] / "config"
OPT_30B = Shape(48, 7168, 28672, False, 56, 56, 50272, 2050, True)
# One OPT-30b layer, ms at batch 2 and 8: prefill of 512 tokens, decode at context 512 (published with LLM-PQ).
PUBLISHED = {
    ("t4", "prefill"): {"3": (2226, 8891), "4": (2844, 11204), "8": (40.6, 173.7), "16": (67.0, 262.6)},
    ("t4", "decode"): {"3": (4.21, 18.77), "4": (5.09, 23.80), "8": (6.06, 7.89), "16": (5.85, 7.77)},
    ("v100-32g", "prefill"): {"3": (413, 1664), "4": (556, 2238), "8": (21.9, 85.1), "16": (16.1, 75.6)},
    ("v100-32g", "decode"): {"3": (2.09, 4.65), "4": (2.04, 5.69), "8": (7.27, 8.08), "16": (2.44, 3.18)},
}


def roofline(device: str, generation: str) -> Roofline:
    kind = yaml.safe_load((CONFIG / "device" / f"{device}.yaml").read_text(encoding="utf-8"))
    return Roofline(OPT_30B, Peak(**kind["peak"]), generation)


def test_the_2023_kernels_are_as_far_from_the_published_times_as_the_docs_say() -> None:
    predicted, published = [], []
    for (device, phase), options in PUBLISHED.items():
        roof = roofline(device, "2023")
        for option, times in options.items():
            predicted += [roof.layer_ms(option, phase, size, 512) for size in (2, 8)]
            published += times
    mean, largest = mean_absolute_error(predicted, published), max(abs(a / b - 1) for a, b in zip(predicted, published, strict=True))
    stated = (CONFIG.parent / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert f"mean absolute error {100 * mean:.1f} %, largest {100 * largest:.0f} %" in stated
    assert len(published) == 32
    assert mean < 0.05
    assert largest < 0.20


def test_todays_kernels_prefill_low_bits_almost_as_fast_as_16_bit() -> None:
    for device in ("t4", "v100-32g", "a100-40g", "h100"):
        old, new = roofline(device, "2023"), roofline(device, "today")
        assert new.layer_ms("4", "prefill", 8, 512) < 1.5 * new.layer_ms("16", "prefill", 8, 512)
        assert old.layer_ms("4", "prefill", 8, 512) > 25 * old.layer_ms("16", "prefill", 8, 512)
        assert new.layer_ms("4", "decode", 1, 512) < 0.5 * new.layer_ms("16", "decode", 1, 512)


def test_int8_products_need_int8_tensor_cores() -> None:
    assert "w8a8" in roofline("t4", "today").options
    assert "w8a8" not in roofline("v100-32g", "today").options


def test_bytes_by_hand() -> None:
    weights = 4 * 7168**2 + 2 * 7168 * 28672
    vectors = 4 * 7168 + 4 * 7168 + 7168 + 28672  # two layer norms, biases of q, k, v and output, of the MLP's two operators
    assert layer_bytes(OPT_30B, "16") == 2 * (weights + vectors)
    assert layer_bytes(OPT_30B, "4") == weights // 2 + 2 * (2 * weights // 128 + vectors)
    assert kv_layer_bytes(OPT_30B, 32, 612) == 2 * 32 * 612 * 7168 * 2


@pytest.mark.parametrize("row", sorted(paper_rows(CONFIG)))
@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_row_makes_a_problem_that_says_what_it_rests_on(row: str, generation: str) -> None:
    body, files = paper_problem(CONFIG, row, generation)
    problem = Problem.from_document(body)
    assert body["source"] == "catalogue"
    assert stand_in.LABEL in body["description"]
    assert abs(sum(body["omega"]["4"]) - 1) < 1e-6
    assert problem.layers == len(body["omega"]["3"])
    assert {path.parent.name for path in files} == {"config", "cluster", "model", "device"}


def test_ends_at_8_bits_where_they_are_offered(tmp_path: Path) -> None:
    """OPT-13b's ends take half as many bytes at 8 bit and a scale a row, one table for both, and the plan of a tight cluster takes them."""
    shutil.copytree(CONFIG, tmp_path / "config")
    file = tmp_path / "config" / "model" / "opt-13b.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('end_options: ["16"]', 'end_options: ["16", "8", w8a8]'), encoding="utf-8")
    assert file.read_text(encoding="utf-8") != text
    body, _ = paper_problem(tmp_path / "config", "paper-1", "today")
    problem = Problem.from_document(body)
    device = body["devices"][0]
    assert list(device["embedding"]) == ["16", "8"]
    assert device["head"]["8"]["resident_bytes"] == 50272 * 5120 + 50272 * 2 + 2 * 5120 * 2
    assert device["embedding"]["8"]["resident_bytes"] == 50272 * 5120 + 50272 * 2 + 2050 * 5120 * 2
    assert max(device["head"]["8"]["decode_ms"].values()) < max(device["head"]["16"]["decode_ms"].values())
    assert 0 < problem.end_omega["embedding"]["8"] < problem.end_omega["head"]["8"] < 0.05
    assert "w8a8" not in {option for each in body["devices"] if each["type"].startswith("v100") for option in each["head"]}


def test_a_problem_is_written_and_planned(tmp_path: Path) -> None:
    write_paper_problem(tmp_path / "problem.json", CONFIG, "paper-1", "today", {"quality_budget": 0.5})
    document = write_plan(tmp_path / "problem.json", tmp_path / "plan.json", "llmpq", solver="highs", time_limit=60, gap=1e-3)
    assert document["source"] == "catalogue"
    assert document["certificate"]["status"] == "optimal"


def test_mistakes_name_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"paper\.yaml: unknown row 'paper-99'"):
        paper_problem(CONFIG, "paper-99", "today")
    with pytest.raises(ConfigError, match="unknown kernel generation '2030'"):
        paper_problem(CONFIG, "paper-1", "2030")
    for folder in ("cluster", "device", "model"):
        (tmp_path / folder).mkdir()
    for part in ("paper.yaml", "cluster/paper-1.yaml", "model/opt-13b.yaml", "device/v100-32g.yaml"):
        (tmp_path / part).write_text((CONFIG / part).read_text(encoding="utf-8"), encoding="utf-8")
    device = tmp_path / "device" / "v100-32g.yaml"
    device.write_text(device.read_text(encoding="utf-8").replace("  memory_gb_s: 900\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"v100-32g\.yaml: key 'peak\.memory_gb_s' is missing"):
        paper_problem(tmp_path, "paper-1", "today")
