"""A multiple-choice task that needs nothing but the packaged news: which words follow the beginning of a report?

The context is the beginning of a news report, the right choice the words that follow it there; the wrong ones stand at the same place of
three other reports of the same part of the text. All are real sentences of one source, so only what the context says tells them apart.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from llmpq.errors import ConfigError
from llmpq.evaluate.choice import Question
from llmpq.text import read_region

NAME, TEXT = "continuation", "news"
CHOICES, QUESTIONS = 4, 100
CONTEXT_WORDS, CHOICE_WORDS = 24, 8
_SEED = 0


def continuation_questions(path: str | Path, region: Sequence[float], count: int) -> list[Question]:
    """``count`` questions from the reports (one a paragraph) that lie wholly in a region of the news; the same every time.

    Raises ConfigError when the region has fewer reports that are long enough.
    """
    parts = read_region(path, region).split("\n\n")
    whole = parts[1 if region[0] > 0 else 0 : -1 if region[1] < 1 else None]
    reports = [words for words in (part.split() for part in whole) if len(words) >= CONTEXT_WORDS + CHOICE_WORDS]
    if len(reports) < max(count, CHOICES):
        raise ConfigError(
            f"{path}: region {list(region)} has {len(reports)} reports of {CONTEXT_WORDS + CHOICE_WORDS} words or more, "
            f"but key 'evaluate.questions' asks for {count} (at least {CHOICES} reports); widen evaluate.region or ask for fewer"
        )
    draw, followed = random.Random(_SEED), [" " + " ".join(words[CONTEXT_WORDS:][:CHOICE_WORDS]) for words in reports]
    questions = []
    for index in range(count):
        own = index * len(reports) // count
        others = draw.sample([other for other in range(len(reports)) if followed[other] != followed[own]], CHOICES - 1)
        right = draw.randrange(CHOICES)
        choices = [followed[other] for other in others]
        choices.insert(right, followed[own])
        questions.append(Question(" ".join(reports[own][:CONTEXT_WORDS]), tuple(choices), right))
    return questions
