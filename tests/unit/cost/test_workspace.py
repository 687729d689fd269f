"""Workspace between and beyond measured shapes: exact on them, never less than a convex truth between them."""

from llmpq.cost.workspace import workspace_bytes


def truth(v: int, s: int) -> int:
    return v * (10 * s + s * s)


def rows(part: str = "layer", scale: int = 1) -> list[dict[str, object]]:
    return [
        {"part": part, "phase": "prefill", "micro_batch": v, "tokens": s, "context": s, "bytes": scale * truth(v, s)}
        for v in (1, 4, 8)
        for s in (16, 64, 128)
    ]


def test_exact_on_the_grid_and_never_below_the_truth_between() -> None:
    assert workspace_bytes(rows(), "prefill", 4, 64) == truth(4, 64)
    for v in range(1, 20):
        for s in range(16, 300, 7):
            assert workspace_bytes(rows(), "prefill", v, s) >= truth(v, s)
    assert workspace_bytes(rows(), "prefill", 6, 96) < 1.2 * truth(6, 96)


def test_the_largest_part_counts_and_phases_are_apart() -> None:
    both = rows() + rows("head", scale=3)
    assert workspace_bytes(both, "prefill", 4, 64) == 3 * truth(4, 64)
    assert workspace_bytes(both, "decode", 4, 64) == 0
