"""Which stage of a failed run was at fault: what each has said, and who blames whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpq.errors import ServeError

LOG_TAIL_LINES = 15


class StageLostError(ServeError):
    """A stage died, hung or failed in a way that is no fault of its input: starting again may help."""


@dataclass
class Stage:
    """A running stage as its launcher knows it: its last word, ``failed`` or ``done``, and whether its process has ended."""

    rank: int
    title: str
    log: Path
    failed: dict[str, Any] | None = None
    done: dict[str, Any] | None = None
    ended: bool = False

    def last_word(self, event: dict[str, Any]) -> bool:
        """Take ``event`` where it is the stage's last word; returns whether it was."""
        if event["event"] not in ("failed", "done"):
            return False
        setattr(self, event["event"], event)
        return True

    def tail(self) -> str:
        """The end of the log."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return "\n".join(f"  {line}" for line in text.strip().splitlines()[-LOG_TAIL_LINES:]) or "  (empty)"


def silence(stages: Sequence[Stage], patience: float) -> StageLostError:
    """The error for stages that have said nothing for ``patience`` seconds."""
    silent = "; ".join(f"{stage.title}\n{stage.tail()}" for stage in stages if not stage.ended)
    return StageLostError(f"nothing happened for {patience:g} s; the stages' logs end:\n{silent}")


def cause(stages: Sequence[Stage], certain: bool) -> Stage | None:
    """The stage at fault: one that does not blame another, or (not ``certain``) one that blames a stage which has not failed itself."""
    failed = [(stage, stage.failed) for stage in stages if stage.failed is not None]
    for stage, said in failed:
        if said["blames"] is None:
            return stage
    if certain or not failed:
        return None
    ranks = {stage.rank for stage, _ in failed}
    return next((stage for stage, said in failed if said["blames"] not in ranks), failed[0][0])


def fault(stages: Sequence[Stage]) -> ServeError:
    """The error that names the stage at fault, with the end of its log; one stage at least has failed."""
    found = cause(stages, certain=False)
    assert found is not None
    assert found.failed is not None
    blames = found.failed["blames"]
    if found.failed["expected"] and blames is None:
        return ServeError(f"{found.title}: {found.failed['message']}")
    # A stage that hangs cannot say so: the one that waited for it does, but the fault, and the log that may tell why, are its own.
    culprit = next((stage for stage in stages if stage.rank == blames and stage.failed is None), found)
    said_by = f" (as {found.title} says)" if culprit is not found else ""
    return StageLostError(f"{culprit.title}: {found.failed['message']}{said_by}\nIts log {culprit.log} ends:\n{culprit.tail()}")
