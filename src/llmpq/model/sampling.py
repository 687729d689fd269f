"""Choice of the next token at random: temperature, nucleus (top-p), and a draw that only the request's seed and the position decide."""

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def sample(logits: np.ndarray, temperatures: np.ndarray, top_ps: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One token id [b] (int64) for each row of ``logits`` [b, vocab] fp32.

    Token i of a row has probability softmax(logits / temperature)[i], ``temperatures`` [b] above 0. With ``top_ps`` [b] below 1 only the
    likeliest tokens count whose probabilities first reach that sum (Holtzman et al. 2020, nucleus sampling), with all that tie with the
    last of them; the others get none. ``draws`` [b] in [0, 1) choose by inversion, in the order of the ids.
    """
    rows = zip(logits, temperatures.tolist(), top_ps.tolist(), draws.tolist(), strict=True)  # one by one: little memory beside the logits
    return np.array([_sample_row(*row) for row in rows], dtype=np.int64)


def _sample_row(logits: np.ndarray, temperature: float, top_p: float, drawn: float) -> int:
    table = logits.astype(np.float64)
    weights = np.exp((table - table.max()) / temperature)
    weights /= weights.sum()
    if top_p < 1:
        weights = _nucleus(weights, top_p)
    sums = np.cumsum(weights)
    # Logits that are not finite lead behind the last token; their margin tells, once the token is taken.
    return min(int(np.searchsorted(sums, drawn * sums[-1], side="right")), len(sums) - 1)


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """``weights`` [vocab] with 0 for what is outside the nucleus of ``top_p``."""
    ordered = np.sort(weights)[::-1]
    last = min(int((np.cumsum(ordered) < top_p).sum()), len(weights) - 1)
    return np.where(weights >= ordered[last], weights, 0.0)


def draw(seed: int, position: int) -> float:
    """A number in [0, 1) that ``seed`` (any 64 bits) and ``position`` decide and nothing else: Philox (Salmon et al. 2011) as a counter.

    ``position`` is the one that the new token takes in its sequence. So neither the batch nor the cut nor a restart changes a draw.
    """
    return float(np.random.Philox(key=seed & _MASK, counter=position).random_raw() >> 11) * 2.0**-53
