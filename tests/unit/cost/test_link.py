"""Links: alpha and beta come back from exact points, in both directions, and bad measurements are named."""

import pytest

from llmpq.cost.link import MAX_BYTES_PER_MS, fit_alpha_beta, fit_links
from llmpq.errors import ArtifactError


def row(sender: str, receiver: str, size: int, ms: float) -> dict[str, object]:
    return {"from": sender, "to": receiver, "bytes": size, "p10_ms": ms, "p50_ms": ms, "p90_ms": ms, "repeats": 3}


def test_known_alpha_and_beta() -> None:
    alpha, beta = fit_alpha_beta([(size, 0.1 + size / 2e6) for size in (64, 4096, 1_000_000)])
    assert alpha == pytest.approx(0.1)
    assert beta == pytest.approx(2e6)


def test_a_link_whose_time_falls_with_the_size_costs_nothing_per_byte() -> None:
    alpha, beta = fit_alpha_beta([(64, 0.3), (4096, 0.2), (8192, 0.1)])
    assert alpha > 0
    assert beta == MAX_BYTES_PER_MS


def test_each_direction_is_its_own_link() -> None:
    rows = [row("a", "b", size, 0.1 + size / 1e6) for size in (1, 10_000, 1_000_000)]
    rows += [row("b", "a", size, 0.2 + size / 4e6) for size in (1, 10_000, 1_000_000)]
    fitted = {(link["from"], link["to"]): link for link in fit_links({"rows": rows})}
    assert fitted["a", "b"]["alpha_ms"] == pytest.approx(0.1, rel=1e-3)
    assert fitted["b", "a"]["bytes_per_ms"] == pytest.approx(4e6, rel=1e-3)
    assert fitted["a", "b"]["heldout_mape"] == pytest.approx(0, abs=1e-5)


def test_one_payload_size_is_not_enough() -> None:
    with pytest.raises(ArtifactError, match="two payload sizes"):
        fit_alpha_beta([(64, 0.1), (64, 0.2)])


def test_a_time_of_zero_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cannot be fitted"):
        fit_alpha_beta([(64, 0.0), (4096, 0.2)])
