"""explain.json in sentences: every figure in them is one of the file's."""

from collections.abc import Mapping
from typing import Any

from llmpq.plan.infeasible import readable
from llmpq.plan.problem import Problem

Entry = Mapping[str, Any]

# Gains below this share of the objective are called nothing: rounding of the solvers.
NOTHING = 1e-7


def head_sentences(problem: Problem, body: Entry, plan: Entry, asked: str | None) -> list[str]:
    """What is explained, how good it is, and what binds the whole pipeline."""
    found = [] if asked is None else [f"The strategy asked for has no plan ({asked}); what follows is about the best plan."]
    value, best, bound = body["objective_ms"], body["best_objective_ms"], body["best_bound_ms"]
    found.append(
        f"{body['strategy']} reaches {value:,.3f} ms a batch, {plan['predicted']['prefill_s']:.3f} s prefill and "
        f"{plan['predicted']['decode_s']:.3f} s decode for all requests, sum of omega {plan['omega_sum']:.4g}."
    )
    if best < value * (1 - NOTHING):
        found.append(
            f"A better plan exists: {best:,.3f} ms, {100 * (value - best) / value:.2f} % less; gains below are counted from that one."
        )
    found.append(f"No plan for this problem is below {bound:,.3f} ms: that is proved.")
    used = {stage["device"] for stage in plan["stages"]}
    idle = [device.name for device in problem.devices if device.name not in used]
    if idle:
        found.append(f"It leaves out {', '.join(idle)}.")
    whats = {entry["what"] for entry in plan["binding"]}
    if "round_trip" in whats:
        found.append("Decode waits for the round trip: a next token must pass all stages first, so that no stage is busy all the time.")
    if "quality" in whats:
        found.append(f"The quality budget binds: of {problem.quality_budget:.4g} too little is left for a harsher option in any layer.")
    return found


def stage_sentence(load: Entry) -> str:
    """One stage: what it holds, how full and busy it is, and what binds."""
    words = {
        "memory": "memory binds: no layer could take a gentler option in it",
        "prefill": "prefill waits for it",
        "decode": "decode waits for it",
        "prefill_link": "prefill waits for its link to the next stage",
        "decode_link": "decode waits for its link to the next stage",
    }
    options = " + ".join(f"{count} × {option}" for option, count in load["options"].items())
    binds = "; ".join(words[what] for what in load["binds"]) or "nothing binds on it"
    return (
        f"Stage {load['stage']} on {load['device']} ({options}): {readable(load['free_bytes'])} free, prefill "
        f"{load['prefill_ms']:,.3f} ms ({load['prefill_share']:.0%} of the slowest stage), decode round {load['decode_ms']:,.3f} ms "
        f"({load['decode_share']:.0%}); {binds}."
    )


def change_sentence(entry: Entry) -> str:
    """What a change buys, and the plan that it would lead to."""
    where = " and ".join([entry["where"], *entry["alike"]]) if entry["alike"] else entry["where"]
    what = f"{entry['amount']} on {where}" if where else entry["amount"]
    what += ", one of them," if entry["alike"] else ""
    total = entry["objective_ms"] + entry["gain_ms"]
    if entry["gain_ms"] <= NOTHING * total:
        proof = "" if entry["gain_at_most_ms"] <= NOTHING * total else f" that was found (at most {entry['gain_at_most_ms']:,.3f} ms)"
        return f"{what} would buy nothing{proof}."
    plan = f"; the plan would be {entry['moves']}" if entry["moves"] else "; the plan would stay as it is"
    return f"{what} would buy {entry['gain_ms']:,.3f} ms ({entry['gain_percent']:.2f} %){plan}."


def baseline_sentence(loss: Entry) -> str:
    """Why a baseline loses."""
    name = loss["strategy"]
    if loss["verdict"] == "does_not_fit":
        return f"{name} has no plan: {loss['message']}."
    if loss["verdict"] == "breaks_budget":
        return f"{name} breaks the quality budget: sum of omega {loss['omega_sum']:.4g} against {loss['quality_budget']:.4g}."
    if loss["verdict"] == "ties":
        return f"{name} reaches the same objective ({loss['objective_ms']:,.3f} ms)."
    parts = {"prefill": loss["lost_in_prefill_ms"], "decode": loss["lost_in_decode_ms"], "damage": loss["lost_by_damage_ms"]}
    split = ", ".join(f"{value:+,.3f} ms {kind}" for kind, value in parts.items() if value)
    options = " + ".join(f"{count} × {option}" for option, count in loss["stage_options"].items())
    text = f"{name} loses {loss['lost_ms']:,.3f} ms ({loss['lost_percent']:.2f} %): {split}."
    if loss[f"lost_in_{loss['phase']}_ms"] > 0:
        text += (
            f" Its {loss['phase']} waits for stage {loss['stage']} on {loss['device']} ({options}), {loss['stage_ms']:,.3f} ms against "
            f"{loss['best_stage_ms']:,.3f} ms on the slowest stage of the best plan"
        )
        text += f"; its stages idle {loss['idle_share']:.0%} of that time" if loss["idle_share"] > 0.005 else ""
        text += "."
    if loss["micro_batch"] != loss["best_micro_batch"]:
        mine, best = (" / ".join(map(str, loss[key])) for key in ("micro_batch", "best_micro_batch"))
        text += f" Its micro-batches are {mine}, the best plan's {best} (prefill / decode)."
    if loss["unused_devices"]:
        text += f" It leaves out {', '.join(loss['unused_devices'])}."
    return text
