"""What answers are worth: entities as CoNLL counts them, spans of text as SQuAD compares them. NumPy only."""

import collections
import dataclasses
import re
import string
from collections.abc import Sequence
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What an artifact's answers to held-out data are worth.

    Attributes:
        metrics: name -> value in [0, 1]; the first one is what the task is judged by.
        answers: one answer per example, for the share that two artifacts agree on.
        true: the right ones, where an answer is one class; else None.
    """

    metrics: dict[str, float]
    answers: list[Any]
    true: list[Any] | None = None


def agreement(answers: Sequence[Any], others: Sequence[Any]) -> float:
    """Share of equal answers."""
    return sum(a == b for a, b in zip(answers, others, strict=True)) / max(len(answers), 1)


def confusion(answers: Sequence[Any], true: Sequence[Any]) -> dict[str, Any]:
    """How often each class was taken for each.

    Returns:
        "classes" in order, and "counts", a row for each true class with a column for each answer.

    >>> confusion(["a", "b", "b"], ["a", "a", "b"])
    {'classes': ['a', 'b'], 'counts': [[1, 1], [0, 1]]}
    """
    classes = sorted({*answers, *true})
    counted = collections.Counter(zip(true, answers, strict=True))
    return {"classes": classes, "counts": [[counted[right, said] for said in classes] for right in classes]}


def class_scores(counts: Sequence[Sequence[int]]) -> list[tuple[float, float, float]]:
    """Precision, recall and F1 of each class of a confusion matrix with a row for each true class.

    >>> [[round(x, 3) for x in row] for row in class_scores([[1, 1], [0, 1]])]
    [[1.0, 0.5, 0.667], [0.5, 1.0, 0.667]]
    """
    found = []
    for i, row in enumerate(counts):
        precision, recall = row[i] / max(sum(r[i] for r in counts), 1), row[i] / max(sum(row), 1)
        found.append((precision, recall, _f1(precision, recall)))
    return found


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and behind the last place of every entity in tags of the scheme IOB2.

    As in the CoNLL-2003 evaluation, an "I-" that continues nothing of its type begins an entity.

    >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC"]))
    [('LOC', 3, 4), ('PER', 0, 2)]
    """
    found, kind, start = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if kind and (prefix != "I" or name != kind):
            found.add((kind, start, place))
            kind = ""
        if prefix in ("B", "I") and not kind:
            kind, start = name, place
    return found


def entity_scores(predicted: Sequence[Sequence[str]], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall over all entities of all texts; exact borders and types count."""
    hits = made = wanted = 0
    for some, others in zip(predicted, true, strict=True):
        ours, theirs = entities(some), entities(others)
        hits, made, wanted = hits + len(ours & theirs), made + len(ours), wanted + len(theirs)
    precision, recall = hits / max(made, 1), hits / max(wanted, 1)
    return {"entity_f1": _f1(precision, recall), "entity_precision": precision, "entity_recall": recall}


def answer_scores(predicted: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """Exact match and F1 of words as SQuAD (https://arxiv.org/abs/1606.05250) computes them.

    Args:
        predicted: an answer per question, "" where there is none.
        true: accepted answers per question; of several, the best counts.
    """
    exact = [max(float(normal(p) == normal(t)) for t in some) for p, some in zip(predicted, true, strict=True)]
    shared = [max(_shared(p, t) for t in some) for p, some in zip(predicted, true, strict=True)]
    count = max(len(exact), 1)
    return {"f1": sum(shared) / count, "exact_match": sum(exact) / count}


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and blanks that do not count.

    >>> normal("The  Eiffel-Tower.")
    'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _shared(predicted: str, true: str) -> float:
    ours, theirs = normal(predicted).split(), normal(true).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return _f1(common / len(ours), common / len(theirs))


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
