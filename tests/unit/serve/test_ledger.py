"""The byte budget refuses before anything is allocated."""

import pytest
import torch

from llmpq.errors import ServeError
from llmpq.serve.ledger import Ledger, anonymous_bytes


def test_what_fits_is_entered_and_what_does_not_is_refused_with_the_missing_bytes() -> None:
    ledger = Ledger("fast0", 1000)
    ledger.reserve("weights", 600)
    ledger.reserve("weights", 100)
    ledger.reserve("kv", 300)
    assert ledger.taken == {"weights": 700, "embedding": 0, "head": 0, "kv": 300, "workspace": 0, "transport": 0}
    with pytest.raises(ServeError, match=r"device fast0: 50 bytes of head do not fit, 50 bytes are missing \(budget 1,000"):
        ledger.reserve("head", 50)
    assert ledger.total_bytes == 1000


def test_anonymous_bytes_grow_with_an_allocation() -> None:
    before = anonymous_bytes()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    grown = anonymous_bytes() - before
    assert block.nbytes * 0.98 < grown < block.nbytes * 1.1
