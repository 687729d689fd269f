"""Errors meant for the user: one clear message, no trace."""

from typing import Any


def first_line(error: BaseException) -> str:
    """What another package's error says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class LlmpqError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do."""


class ArtifactError(LlmpqError):
    """A file between two stages is missing, truncated, of another schema, or holds impossible values."""


class ConfigError(LlmpqError):
    """The configuration names something unknown, or a value of the wrong type or range."""


class InfeasibleError(LlmpqError):
    """No plan satisfies the constraints; the message names the device and the missing bytes.

    ``details`` is the same as JSON: what is short, and the smallest changes that would do, each alone (``plan.infeasible``).
    """

    def __init__(self, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = details or {}


class ServeError(LlmpqError):
    """A serving run could not finish; finished requests are kept in its journal."""
