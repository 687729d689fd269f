"""Choice of the next token at random: temperature, nucleus (top-p), and a draw that only the request's seed and the position decide."""

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def sample(logits: np.ndarray, temperatures: np.ndarray, top_ps: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """One token id [b] (int64) for each row of ``logits`` [b, vocab] fp32.

    Token i of a row has probability softmax(logits / temperature)[i], ``temperatures`` [b] above 0. With ``top_ps`` [b] below 1 only the
    likeliest tokens count whose probabilities first reach that sum (Holtzman et al. 2020, nucleus sampling), with all that tie with the
    last of them; the others get none. ``draws`` [b] in [0, 1) choose by inversion, in the order of the ids.
    """
    table = logits.astype(np.float64)
    weights = np.exp((table - table.max(axis=1, keepdims=True)) / temperatures[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    cut = np.flatnonzero(top_ps < 1)
    if cut.size:
        weights[cut] = _nucleus(weights[cut], top_ps[cut])
    sums = np.cumsum(weights, axis=1)
    targets = draws * sums[:, -1]
    return np.array([np.searchsorted(row, target, side="right") for row, target in zip(sums, targets, strict=True)], dtype=np.int64)


def _nucleus(weights: np.ndarray, top_ps: np.ndarray) -> np.ndarray:
    """``weights`` [b, vocab] with 0 for what is outside the nucleus of ``top_ps`` [b]."""
    ordered = -np.sort(-weights, axis=1)
    last = np.minimum((np.cumsum(ordered, axis=1) < top_ps[:, None]).sum(axis=1), weights.shape[1] - 1)
    least = ordered[np.arange(weights.shape[0]), last]
    return np.where(weights >= least[:, None], weights, 0.0)


def draw(seed: int, position: int) -> float:
    """A number in [0, 1) that ``seed`` (any 64 bits) and ``position`` decide and nothing else: Philox (Salmon et al. 2011) as a counter.

    ``position`` is the one that the new token takes in its sequence. So neither the batch nor the cut nor a restart changes a draw.
    """
    return float(np.random.Philox(key=seed & _MASK, counter=position).random_raw() >> 11) * 2.0**-53
