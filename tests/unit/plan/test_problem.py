"""Bad problems: one clear message that names the key, never a trace; and the smaller parts a problem is made of."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plan_instances import random_problem, rich_problem

from llmpq import artifacts
from llmpq.errors import ArtifactError, LlmpqError
from llmpq.plan.microbatch import MicroBatches, balanced, candidates, default_sizes, needed_sizes
from llmpq.plan.orders import device_orders
from llmpq.plan.planner import plan
from llmpq.plan.problem import Problem
from llmpq.plan.strategies import STRATEGIES
from llmpq.planning import write_plan

PROBLEM_FILE = Path(__file__).parents[2] / "lp" / "problem.json"
PROBLEM = json.loads(PROBLEM_FILE.read_text())


def test_balanced_sizes() -> None:
    assert balanced(10, 4) == (3, 3, 2, 2)
    assert balanced(8, 2) == (4, 4)
    with pytest.raises(ValueError, match="cannot split 3 requests into 4"):
        balanced(3, 4)


def test_default_sizes_are_the_distinct_ceilings() -> None:
    assert default_sizes(32) == [32, 16, 11, 8, 7, 6, 5, 4, 3, 2, 1]


def test_chunks_of_every_decode_micro_batch_in_turn() -> None:
    batches = MicroBatches.choose(9, 4, 5)
    assert batches.decode == (5, 4)
    assert batches.prefill == (3, 2, 4)
    assert (batches.xi, batches.eta) == (4, 5)


@pytest.mark.parametrize("slots", range(1, 40))
def test_candidates_are_distinct_and_named_by_their_largest_sizes(slots: int) -> None:
    found = candidates(slots)
    assert len(set(found)) == len(found)
    for item in found:
        assert sum(item.decode) == sum(item.prefill) == slots
        assert item.xi <= item.eta
        assert MicroBatches.choose(slots, item.xi, item.eta) == item
    sizes = needed_sizes(found)
    assert set(sizes["prefill"]) <= set(range(1, slots + 1))


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        holder: Any = document
        *way, last = path.split(".")
        for key in way:
            holder = holder[int(key) if isinstance(holder, list) else key]
        place = int(last) if isinstance(holder, list) else last
        if value is ...:
            del holder[place]
        else:
            holder[place] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("name", ..., r"key '\(top level\)': 'name' is a required property"),
        ("model.layers", "4", r"key 'model.layers': '4' is not of type 'integer'"),
        ("model.layers", 5, r"key 'omega.16': has 4 numbers, expected 5"),
        ("omega.4", ..., r"key 'omega.4': missing; expected 4 numbers"),
        ("omega.4", [0.1, 0.2, 0.3], r"key 'omega.4': has 3 numbers, expected 4"),
        ("omega.4", [0.1, 0.2, -0.3, 0.1], r"key 'omega.4\[2\]': -0.3 is less than the minimum"),
        ("omega.4", [0.1, math.nan, 0.3, 0.1], r"key 'omega.4\[1\]': nan is not a finite number"),
        ("devices.1.name", "fast", r"key 'devices\[1\].name': 'fast' is already the name of device 0"),
        ("devices.0.options.2", PROBLEM["devices"][0]["options"]["4"], r"key 'devices\[0\].options.2': unknown option; options are 16, 4"),
        (
            "devices.0.options.4.prefill_ms",
            {"1": 1.0},
            r"key 'devices\[0\].options.4.prefill_ms': no entry for micro-batch size 2; add it, or",
        ),
        ("devices.0.head.16.decode_ms", {"2": 1.0}, r"key 'devices\[0\].head.16.decode_ms': no entry for micro-batch size 1"),
        ("devices.2.workspace_bytes.decode", {"1": 1}, r"key 'devices\[2\].workspace_bytes.decode': no entry for micro-batch size 2"),
        ("devices.0.memory_bytes", -5, r"key 'devices\[0\].memory_bytes': -5 is less than the minimum"),
        ("devices.0.memory_bytes", True, r"key 'devices\[0\].memory_bytes': True is not of type 'integer'"),
        ("devices.0.memory_bytes", 10**30, r"key 'devices\[0\].memory_bytes': 1\d+ is greater than the maximum"),
        ("devices.0.memory_mib", 5, r"key 'devices\[0\]': Additional properties are not allowed \('memory_mib' was unexpected\)"),
        ("links.0.to", "phantom", r"key 'links\[0\].to': unknown device 'phantom'; devices are fast, slow, old"),
        ("links.0", ..., r"key 'links': no link fast → slow; every ordered pair"),
        ("links.1", PROBLEM["links"][0], r"key 'links\[1\]': repeats the pair fast → slow"),
        ("links.0.bytes_per_ms", 0, r"key 'links\[0\].bytes_per_ms': 0 is less than the minimum"),
        ("objective", {"theta_ms": 1.0, "quality_budget": 1.0}, r"key 'objective': .* is not valid under any|key 'objective'"),
        ("objective", {"quality_budget": -1.0}, r"key 'objective.quality_budget': -1.0 is less than the minimum"),
        ("workload.requests", 3, r"key 'workload.requests': 3 is not a multiple of workload.slots \(2\)"),
        ("workload.new_tokens", 0, r"key 'workload.new_tokens': 0 is less than the minimum"),
        ("micro_batches", {"decode": [3]}, r"key 'micro_batches.decode': 3 is more than workload.slots \(2\)"),
        ("micro_batches", {"prefill": [2], "decode": [1]}, r"key 'micro_batches': no prefill size is as small as a decode size"),
        ("schedule", "random", r"key 'schedule': 'random' is not one of \['barrier', 'continuous'\]"),
        ("options", ["16", "16"], r"key 'options': .*has non-unique elements"),
        ("options", ["16", "4", "nf"], r"key 'omega.nf': missing"),
        ("bits", {"2": 2}, r"key 'bits.2': unknown option"),
        ("source", "guessed", r"key 'source': 'guessed' is not one of"),
        ("schema", "llmpq.plan", r"key 'schema' is 'llmpq.plan', expected 'llmpq.problem'"),
    ],
)
def test_a_bad_problem_is_refused_by_key(path: str, value: Any, message: str) -> None:
    document = copy.deepcopy(PROBLEM)
    change(path, value)(document)
    with pytest.raises(ArtifactError, match=message):
        Problem.from_document(document)


def test_an_option_without_a_number_needs_its_bits() -> None:
    document = json.loads(PROBLEM_FILE.read_text().replace('"16"', '"half"'))
    assert document["end_options"] == ["half"]
    with pytest.raises(ArtifactError, match="key 'bits': option 'half' has no number in its name"):
        Problem.from_document(document)
    assert Problem.from_document({**document, "bits": {"half": 16}}).bits == {"half": 16, "4": 4}


def message_of(call: Callable[[], Any]) -> str | None:
    """The message of the user's error that ``call`` ends in; None where it ends well. Any other exception is a failure."""
    try:
        call()
    except LlmpqError as error:
        return str(error)
    return None


def leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([where] if where else []), *(leaf for key, item in items for leaf in leaves(item, (*where, key)))]


ODD = [None, True, "", "x", -1, 0, 0.5, 1e308, 10**25, 10**15, 1e9, -0.0, math.nan, math.inf, -math.inf, [], {}, [[]], {"1": "x"}, ...]


def spoil(document: dict[str, Any], draw: random.Random) -> None:
    """One odd value, one thing missing, or one list with an item twice or cut short."""
    lists = [where for where in leaves(document) if isinstance(value_at(document, where), list)]
    if draw.random() < 0.3 and lists:
        found = value_at(document, draw.choice(lists))
        if found:
            found.append(copy.deepcopy(draw.choice(found))) if draw.random() < 0.5 else found.pop()
        return
    change_at(document, draw.choice(leaves(document)), copy.deepcopy(draw.choice(ODD)) if draw.random() < 0.9 else ...)


def value_at(document: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        document = document[key]
    return document


@pytest.mark.parametrize("block", [*range(6), *(pytest.param(block, marks=pytest.mark.slow) for block in range(6, 60))])
def test_fuzzed_problems_end_in_one_message_or_a_plan(block: int, tmp_path: Path) -> None:
    """Random keys take odd values or vanish, in memory and as a file; whatever passes the checks can be planned."""
    draw = random.Random(block)
    for _ in range(25):
        document = copy.deepcopy(draw.choice([PROBLEM, rich_problem(), random_problem(draw.randint(0, 50))]))
        for _ in range(draw.randint(1, 2)):
            spoil(document, draw)
        strategy = draw.choice(list(STRATEGIES))
        message = message_of(lambda document=document, strategy=strategy: plan(document, strategy, time_limit=2.0))
        assert message is None or ("\n" not in message and len(message) > 20)
        file = tmp_path / "problem.json"
        file.write_text(json.dumps({"schema": "llmpq.problem", "version": 1, **document})[: draw.choice([None, None, 200])])
        refused = message_of(lambda file=file: write_plan(file, tmp_path / "plan.json", "adabits"))
        assert (tmp_path / "plan.json").exists() == (refused is None)
        (tmp_path / "plan.json").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["devices", "options", "16", "layers"])
def test_a_key_given_twice_is_refused(name: str, tmp_path: Path) -> None:
    """JSON readers keep the last of two equal keys and say nothing: one of two device tables would be lost."""
    text = PROBLEM_FILE.read_text()
    place = text.index(f'"{name}":')
    file = tmp_path / "problem.json"
    file.write_text(f'{text[:place]}"{name}": 1, {text[place:]}')
    with pytest.raises(ArtifactError, match=rf"problem.json: key '{name}' appears twice in one object"):
        artifacts.read(file, "problem")


def change_at(document: Any, where: tuple[Any, ...], value: Any) -> None:
    for key in where[:-1]:
        if (
            not isinstance(document, (dict, list))
            or (isinstance(document, list) and len(document) <= key)
            or (isinstance(document, dict) and key not in document)
        ):
            return
        document = document[key]
    if isinstance(document, dict) and value is ...:
        document.pop(where[-1], None)
    elif isinstance(document, (dict, list)) and value is not ...:
        document[where[-1]] = value


def test_equal_devices_give_one_order(tmp_path: Path) -> None:
    document = copy.deepcopy(PROBLEM)
    document["devices"] = [{**document["devices"][0], "name": name} for name in "abc"]
    document["links"] = [{"from": a, "to": b, "alpha_ms": 1.0, "bytes_per_ms": 9.0} for a in "abc" for b in "abc" if a != b]
    assert list(device_orders(Problem.from_document(document))) == [(0, 1, 2), (0, 1), (0,)]
    document["links"][0]["alpha_ms"] = 2.0  # a → b is now slow: only c can be told from the others by nothing but its links
    problem = Problem.from_document(document)
    assert len(list(device_orders(problem, alike=True))) == 15
    # Three in a row have that link first, second, back to the start or nowhere; two have it there, back or nowhere; one has no link.
    assert len(list(device_orders(problem))) == 4 + 3 + 1


def test_two_pairs_of_equal_devices_give_the_distinct_orders() -> None:
    document = copy.deepcopy(PROBLEM)
    fast, slow = document["devices"][0], document["devices"][1]
    document["devices"] = [{**fast, "name": "a"}, {**slow, "name": "b"}, {**fast, "name": "c"}, {**slow, "name": "d"}]
    document["links"] = [{"from": a, "to": b, "alpha_ms": 1.0, "bytes_per_ms": 9.0} for a in "abcd" for b in "abcd" if a != b]
    found = list(device_orders(Problem.from_document(document)))
    words = {"".join("fsfs"[index] for index in order) for order in found}
    assert len(words) == len(found)
    assert {word for word in words if len(word) == 4} == {"ffss", "fsfs", "fssf", "sffs", "sfsf", "ssff"}
    assert {word for word in words if len(word) < 4} == {"ffs", "fsf", "sff", "fss", "sfs", "ssf", "ff", "fs", "sf", "ss", "f", "s"}


def test_two_machines_that_are_alike_give_each_order_once() -> None:
    """Devices a, b on one machine and c, d on the other, quick links inside a machine, a group of each machine's two devices.

    Only the links tell orders of equal devices apart, back to the start included: a-b-c-d is quick, slow, quick and slow back.
    """
    document = copy.deepcopy(PROBLEM)
    base = document["devices"][0]
    groups = {"ab": ["a", "b"], "cd": ["c", "d"]}
    document["devices"] = [{**base, "name": name} for name in "abcd"]
    document["devices"] += [{**base, "name": name, "memory_bytes": 1600, "uses": uses} for name, uses in groups.items()]
    names = [device["name"] for device in document["devices"]]
    document["links"] = [
        {"from": a, "to": b, "alpha_ms": 0.1 if {a, b} in ({"a", "b"}, {"c", "d"}) else 1.0, "bytes_per_ms": 9.0}
        for a in names for b in names if a != b and not set(groups.get(a, [a])) & set(groups.get(b, [b]))
    ]  # fmt: skip
    problem = Problem.from_document(document)
    found = ["-".join(names[index] for index in order) for order in device_orders(problem)]
    assert [order for order in found if order.count("-") == 3] == ["a-b-c-d", "a-c-b-d", "a-c-d-b"]
    assert [order for order in found if order.count("-") == 2] == ["a-b-c", "a-b-cd", "a-c-b", "a-c-d", "a-cd-b", "ab-c-d"]
    assert [order for order in found if "-" not in order] == ["a", "ab"]
    assert {order for order in found if order.count("-") == 1} == {"a-b", "a-c", "a-cd", "ab-c", "ab-cd"}
    assert len(list(device_orders(problem, alike=True))) > len(found)


def test_problem_file_is_a_valid_artifact() -> None:
    artifacts.read(PROBLEM_FILE, "problem")
