"""Multiple choice by likelihood: of four continuations, the one that a language model finds the likeliest.

Questions are made of the held-out text, as Zellers et al., "HellaSwag", https://arxiv.org/abs/1905.07830, ask
how a passage goes on: the wrong continuations are what follows elsewhere in the same text.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tfopt.numerics.agreement import log_softmax

_QUESTIONS, _CHOICES = 32, 4
_TOKENS, _CONTINUATION = 80, 16  # of a question, and of its end


@dataclasses.dataclass(frozen=True)
class Question:
    """A passage and how it may go on.

    Attributes:
        passage: token ids (length,) int32.
        choices: continuations (choices, tokens) int32.
        answer: which is the text's own.
    """

    passage: np.ndarray
    choices: np.ndarray
    answer: int


def questions_of(text: np.ndarray, window: int) -> list[Question]:
    """Questions about places that are spread over a text, the same each time.

    Args:
        text: token ids (length,).
        window: tokens that a model sees at once; a question takes at most so many.

    Returns:
        At most 32, each of four choices; none where the text is too short for four different continuations.
    """
    whole = min(window, _TOKENS)
    tail = min(_CONTINUATION, whole // 4)
    count = min(_QUESTIONS, len(text) // max(whole, 1))
    if tail < 1 or count < _CHOICES:
        return []
    starts = np.linspace(0, len(text) - whole, count).astype(int)
    parts = np.stack([text[start : start + whole] for start in starts]).astype(np.int32)
    rng, found = np.random.default_rng(0), []
    for passage, own in zip(parts[:, :-tail], parts[:, -tail:], strict=True):
        others = np.unique(parts[:, -tail:], axis=0)
        others = others[(others != own).any(1)]
        if len(others) < _CHOICES - 1:
            return []
        choices = rng.choice(others, _CHOICES - 1, replace=False)
        answer = int(rng.integers(_CHOICES))
        found.append(Question(passage, np.insert(choices, answer, own, axis=0), answer))
    return found


def right_choices(logits_of: Callable[[np.ndarray], np.ndarray], questions: Sequence[Question]) -> float:
    """Share of the questions to which the likeliest continuation is the answer; ties count as wrong.

    Args:
        logits_of: token ids (texts, length) int32 -> logits (texts, length, vocabulary).
        questions: one or more.
    """
    right = 0
    for question in questions:
        count, tail = question.choices.shape
        texts = np.concatenate([np.tile(question.passage, (count, 1)), question.choices], axis=1)
        said = log_softmax(logits_of(texts[:, :-1])[:, -tail:])
        scores = np.take_along_axis(said, question.choices[..., None], -1).sum((1, 2))
        others = np.delete(scores, question.answer)
        right += bool(scores[question.answer] > others.max())
    return right / len(questions)
