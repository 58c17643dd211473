"""A class for every word, such as the entities of a text: F1 over entities."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfopt.data.features import IGNORED, Feature
from tfopt.data.records.manifest import read_manifest
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.errors import DataError
from tfopt.numerics.metrics import Scored, entity_scores
from tfopt.tasks.base import HeldOut
from tfopt.tasks.labelled import LabelledTask, Row, answered

_LEAST_TAGS = 2


class TokenClassificationTask(LabelledTask):
    """Rows with "tokens", a list of words, and "tags", one per word in the scheme IOB2 ("B-PER", "I-PER", "O").

    The first token of a word carries its tag; the others do not count.
    """

    features = (Feature("input_ids", "tokens"), Feature("tags", "tags"), Feature("example", "number"))
    metrics = ("entity_f1", "entity_precision", "entity_recall")

    def read(self, rows: list[Row], source: str) -> list[Row]:
        for number, row in enumerate(rows, 1):
            words, tags = row.get("tokens") or [], row.get("tags") or []
            lists = isinstance(words, list) and isinstance(tags, list) and bool(words)
            if not lists or len(words) != len(tags) or not all(map(_is_word, [*words, *tags])):
                raise DataError(
                    f"{source}: example {number} needs lists of as many words 'tokens' as 'tags', got {row}"
                )
        return [{"tokens": row["tokens"], "tags": row["tags"]} for row in rows]

    def texts(self, examples: list[Row]) -> list[str]:
        return [" ".join(example["tokens"]) for example in examples]

    def heads(self, train: list[Row]) -> dict[str, list[str]]:
        found = sorted({tag for example in train for tag in example["tags"]})
        if len(found) < _LEAST_TAGS:
            raise DataError(f"the training data has the tag {found[0]!r} alone; there is nothing to tell apart")
        return {"tags": found}

    def encode(self, example: Row, tokenizer: Any, heads: Mapping[str, list[str]]) -> Row:
        names = {tag: i for i, tag in enumerate(heads["tags"])}
        encoding = tokenizer.encode(example["tokens"], is_pretokenized=True)
        unknown = next((tag for tag in example["tags"] if tag not in names), None)
        if unknown is not None:
            raise DataError(f"tag {unknown!r} never occurs in the training data, which has {list(names)}")
        tags, before = [], None
        for word in encoding.word_ids:
            counts = word is not None and word != before
            tags.append(names[example["tags"][word]] if counts else IGNORED)
            before = word
        return {"input_ids": list(encoding.ids), "tags": tags}

    def cut(self, record: Row, length: int) -> Row:
        return {**record, "input_ids": record["input_ids"][:length], "tags": record["tags"][:length]}

    def head(self, heads: Mapping[str, list[str]]) -> dict[str, Any]:
        return {"head": "tokens", "num_labels": len(heads["tags"])}

    def text_facts(self, facts: dict[str, Any]) -> TextFacts:
        return self.facts_of_text(facts, "token_classification", {ONLY: facts["heads"]["tags"]})

    def targets(self, labels: Any) -> Any:
        return labels["tags"]

    def held_out(self) -> HeldOut:
        return HeldOut(self.timed_inputs(), score=functools.partial(score, str(self.data)))


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def score(folder: str, predictor: Any) -> Scored:
    """F1 over the entities of the held-out texts, and the tags of each."""
    names = read_manifest(folder, "validation").heads["tags"]
    predicted: list[list[str]] = []
    true: list[list[str]] = []
    for _, labels, outputs in answered(predictor, folder):
        (logits,) = outputs.values()
        for chosen, tags in zip(logits.argmax(-1), labels["tags"], strict=True):
            places = np.flatnonzero(tags != IGNORED)
            predicted.append([names[int(chosen[place])] for place in places])
            true.append([names[int(tags[place])] for place in places])
    return Scored(entity_scores(predicted, true), predicted)
