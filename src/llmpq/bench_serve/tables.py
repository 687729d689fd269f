"""The sections of docs/bench-serve.md: who is how fast, whether the targets are met, how far the machine's limit is, and what quality."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmpq.bench.tables import origin, table
from llmpq.bench_serve import cases
from llmpq.bench_serve.floor import CLASSES, Rates, floor_s
from llmpq.bench_serve.record import Case, Line
from llmpq.model.spec import ModelSpec

Groups = dict[tuple[Any, ...], list[Line]]
"""The repetitions of every subject (``record.newest``)."""

ENOUGH = 5  # rounds that a median should rest on


def median(lines: Iterable[Line], of: Callable[[Line], float | None]) -> float | None:
    """The median of what ``of`` finds in the measured lines; None where it finds nothing."""
    values = [value for line in lines if line.measured and (value := of(line)) is not None]
    return statistics.median(values) if values else None


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median and, from three values on, the quartiles (inclusive: of few values the middle ones)."""
    if not values:
        return "–"
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) < 3:
        return text
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{text} ({low:.{digits}f}–{high:.{digits}f})"


def speed(groups: Groups, system: str, case: Case) -> float | None:
    """Median new tokens per second."""
    return median(groups.get(("peers", system, "", case), []), lambda line: line.tokens_per_s)


def contest_case(batch: int, threads: int, stages: int = 1) -> Case:
    """The case of the contest with ``threads`` in each stage."""
    return Case(threads, stages, batch, batch, cases.PROMPT_TOKENS, cases.NEW_TOKENS)


def verdict(found: float | None, wanted: float, *, most: bool = False) -> str:
    """``found`` beside the least (or most) it should be."""
    if found is None:
        return "not measured"
    met = found <= wanted if most else found >= wanted
    return f"{found:.2f}, {'met' if met else 'missed'} ({'≤' if most else '≥'} {wanted:g})"


def targets(groups: Groups, spec: ModelSpec) -> list[str]:
    """Every target with what was found."""
    rows = []
    for target in cases.TARGETS:
        case = contest_case(cases.TARGET_BATCH, target.threads)
        ratio = quotient(speed(groups, target.system, case), speed(groups, target.of, case))
        quality = perplexity_ratio(groups, target.system)
        accurate = "" if quality is None else f"; perplexity × {quality:.3f}{'' if quality <= cases.PERPLEXITY_RATIO else ', too high'}"
        note = accurate if target.system != cases.REFERENCE else ""
        rows.append([f"{target.system} over {target.of}", _threads(case), verdict(ratio, target.ratio) + note])
    for system, most in cases.FLOOR_RATIO.items():
        for threads in (1, 2):
            case = contest_case(cases.TARGET_BATCH, threads)
            rows.append(
                [
                    f"{system}: total time over its floor",
                    _threads(case),
                    verdict(over_floor(groups, spec, system, case)[2], most, most=True),
                ]
            )
    for system in cases.TWO_STAGES:
        two, one = contest_case(cases.TARGET_BATCH, 1, 2), contest_case(cases.TARGET_BATCH, 2)
        share = quotient(speed(groups, system, two), speed(groups, system, one))
        rows.append([f"{system}: two stages over one process", "2 × 1 thread over 2 threads", verdict(share, cases.STAGES_SHARE)])
    return table(["what", "with", f"ratio at batch {cases.TARGET_BATCH}"], rows)


def contest(groups: Groups) -> list[str]:
    """Everyone on the same requests."""
    own = {key: lines for key, lines in groups.items() if key[0] == "peers"}
    if not own:
        return []
    few = sum(len(lines) < ENOUGH for lines in own.values() if lines[0].measured)
    head = [
        "system", "batch", "with", "new tokens/s", "s", "prefill s", "CPU s", "peak MB", "load s", "same tokens %", "rounds", "load",
        "date", "revision",
    ]  # fmt: skip
    lines = table(head, (_contest_row(own[key]) for key in sorted(own, key=_place)))
    return ([f"{few} rows rest on fewer than {ENOUGH} rounds: a first impression, no more.", ""] if few else []) + lines


def _contest_row(lines: list[Line]) -> list[str]:
    first, case = lines[-1], lines[-1].case
    start = [first.system, str(case.requests), _threads(case)]
    if not first.measured:
        return [*start, first.status, *["–"] * 7, *origin(first)]
    system = first.system if first.version is None else f"{first.system} ({first.version.split('-')[0]})"
    memory, same = median(lines, lambda line: sum(line.peaks or []) / 1e6), median(lines, lambda line: line.same_tokens)
    return [
        system, *start[1:], spread([line.tokens_per_s for line in lines]), spread([line.seconds or 0.0 for line in lines], 2),
        number(median(lines, lambda line: line.prefill_s), 2), number(median(lines, lambda line: line.cpu_s), 1), number(memory, 0),
        number(median(lines, lambda line: line.load_s), 1), number(None if same is None else 100 * same, 1), str(len(lines)),
        *loads_and_origin(lines),
    ]  # fmt: skip


def rates_of(groups: Groups, threads: int) -> Rates | None:
    """The best rates measured with ``threads``, for a floor is what nothing can be faster than; None where one is missing."""
    own = {name: groups.get(("floor", name, "", Case(threads)), []) for name in (*CLASSES, "bandwidth")}
    found = {name: [line.value for line in lines if line.value is not None] for name, lines in own.items()}
    known = {name: max(values) for name, values in found.items() if values}
    return Rates({name: known[name] for name in CLASSES}, known["bandwidth"]) if len(known) == len(found) else None


def over_floor(groups: Groups, spec: ModelSpec, system: str, case: Case) -> tuple[float | None, float | None, float | None]:
    """Our median prefill, decode and total seconds over the floor's; None where something was not measured."""
    lines, least = groups.get(("peers", system, "", case), []), least_s(groups, spec, system, case)
    if least is None:
        return None, None, None
    measured = [
        median(lines, lambda line: line.prefill_s),
        median(lines, lambda line: line.decode_s),
        median(lines, lambda line: line.seconds),
    ]
    prefill, decode, total = (quotient(mine, floor) for mine, floor in zip(measured, (*least, sum(least)), strict=True))
    return prefill, decode, total


def least_s(groups: Groups, spec: ModelSpec, system: str, case: Case) -> tuple[float, float] | None:
    """The floor of prefill and decode in seconds, with all the threads that the stages have together."""
    rates, ours = rates_of(groups, case.threads * case.stages), cases.OURS[system]
    if rates is None:
        return None
    sizes = {key: getattr(case, key) for key in ("requests", "slots", "prompt_tokens", "new_tokens")}
    return floor_s(spec, ours.options(spec), (ours.embedding, ours.head), rates, **sizes)


def limit(groups: Groups, spec: ModelSpec) -> list[str]:
    """Rates of the machine, and how far ours is from what they allow."""
    known = [threads for threads in (1, 2) if rates_of(groups, threads) is not None]
    if not known:
        return []
    rows = []
    for threads in known:
        lines = [groups["floor", name, "", Case(threads)] for name in (*CLASSES, "bandwidth")]
        rows.append([str(threads), *(spread([(line.value or 0.0) / 1e9 for line in own]) for own in lines), *loads_and_origin(lines[-1])])
    names = [f"{name}, Gop/s" for name in CLASSES]
    tables = table(["threads", *names, "bandwidth, GB/s", "load", "date", "revision"], rows)
    shares = []
    for key in sorted((key for key in groups if key[0] == "peers" and key[1] in cases.OURS), key=_place):
        system, case = key[1], key[3]
        least, ratios = least_s(groups, spec, system, case), over_floor(groups, spec, system, case)
        if least is not None and ratios[2] is not None:
            shares.append(
                [system, str(case.requests), _threads(case), *(f"{value:.2f}" for value in least), *(number(ratio, 2) for ratio in ratios)]
            )
    head = ["system", "batch", "with", "floor of prefill s", "floor of decode s", "prefill over it", "decode over it", "total over it"]
    return [*tables, "", *(table(head, shares) if shares else ["Nothing of ours was timed beside it yet."])]


def quality(groups: Groups) -> list[str]:
    """Perplexity of what was timed, beside our own 16 bit."""
    own = [lines[-1] for key, lines in groups.items() if key[0] == "quality"]
    texts = sorted({line.what for line in own if line.measured})
    rows = []
    for system in (name for name in cases.OURS if any(line.system == name for line in own)):
        found = {line.what: line for line in own if line.system == system}
        values = [found[text].value if text in found else None for text in texts]
        why = next((line.status for line in found.values() if not line.measured), "")
        ratio = perplexity_ratio(groups, system)
        rows.append(
            [system, *(number(value, 2) for value in values), why if ratio is None else f"{ratio:.4f}", *origin(next(iter(found.values())))]
        )
    return (
        table(["system", *(f"perplexity {text}" for text in texts), f"over {cases.REFERENCE}", "load", "date", "revision"], rows)
        if rows
        else []
    )


def perplexity_ratio(groups: Groups, system: str) -> float | None:
    """The largest ratio, over the texts, of a system's perplexity to that of our own 16 bit."""
    ratios = []
    for key, lines in groups.items():
        mine, reference = lines[-1], groups.get(("quality", cases.REFERENCE, key[2], Case()), [])
        if key[:2] == ("quality", system) and mine.measured and reference:
            ratios.append(quotient(mine.value, reference[-1].value))
    known = [ratio for ratio in ratios if ratio is not None]
    return max(known) if known else None


def quotient(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _place(key: tuple[Any, ...]) -> tuple[Any, ...]:
    case, names = key[3], [*cases.OURS, *cases.PEERS]
    return (case.requests, -case.threads * case.stages, case.stages, names.index(key[1]) if key[1] in names else len(names))


def _threads(case: Case) -> str:
    threads = f"{case.threads} thread{'s' if case.threads > 1 else ''}"
    return threads if case.stages == 1 else f"{case.stages} stages × {threads}"


def loads_and_origin(lines: Sequence[Line]) -> list[str]:
    """The span of loads, and date and revision of the last."""
    loads = [line.load for line in lines]
    return [f"{min(loads):.1f}–{max(loads):.1f}", *origin(lines[-1])[1:]]


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
