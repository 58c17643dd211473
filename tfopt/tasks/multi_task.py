"""Several classes of a text at once, by several heads on one encoder in one pass."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfopt.data.features import IGNORED, Feature
from tfopt.data.records.manifest import read_manifest
from tfopt.data.text_facts import TextFacts
from tfopt.errors import DataError, InputError
from tfopt.numerics.metrics import Scored
from tfopt.recipe import Recipe
from tfopt.tasks.base import HeldOut
from tfopt.tasks.labelled import LabelledTask, Row, answered, text_of


class MultiTask(LabelledTask):
    """Rows with a text and a class in each column of data.label_columns; null where it is not known.

    A class that is not known does not count, so that texts of several data sets may be mixed.
    """

    # And a class for each head.
    features: tuple[Feature, ...] = (Feature("input_ids", "tokens"), Feature("example", "number"))  # type: ignore[misc]
    metrics = ("accuracy",)  # the mean, and one more for each head

    def __init__(self, recipe: Recipe, data: Path) -> None:
        super().__init__(recipe, data)
        self._columns = list(recipe.data.label_columns or ())
        self.features = (*type(self).features, *(Feature(name, "class") for name in self._columns))

    def check_inputs(self) -> list[Path]:
        if len(self._columns) < 2 or len(set(self._columns)) < len(self._columns):
            raise InputError(
                f"task 'multi_task' needs data.label_columns, two or more that differ, got {self._columns}; with "
                "one, use task 'classification'"
            )
        return super().check_inputs()

    def read(self, rows: list[Row], source: str) -> list[Row]:
        key = self.recipe.data.text_column or "text"
        found = []
        for number, row in enumerate(rows, 1):
            missing = [column for column in self._columns if column not in row]
            if missing:
                raise DataError(f"{source}: example {number} has no column {missing[0]!r}; null stands for unknown")
            known = {column: row[column] for column in self._columns if row[column] is not None}
            classes = {column: str(value) for column, value in known.items()}
            found.append({"text": text_of(row, key, source, number=number), **classes})
        return found

    def texts(self, examples: list[Row]) -> list[str]:
        return [example["text"] for example in examples]

    def heads(self, train: list[Row]) -> dict[str, list[str]]:
        heads = {column: sorted({e[column] for e in train if column in e}) for column in self._columns}
        few = {column: classes for column, classes in heads.items() if len(classes) < 2}
        if few:
            raise DataError(f"the training data has fewer than two classes in {few}")
        return heads

    def encode(self, example: Row, tokenizer: Any, heads: Mapping[str, list[str]]) -> Row:
        classes = {}
        for column, names in heads.items():
            name = example.get(column)
            if name is not None and name not in names:
                raise DataError(
                    f"class {name!r} of {column!r} never occurs in the training data, which has {names}"
                )
            classes[column] = IGNORED if name is None else names.index(name)
        return {"input_ids": list(tokenizer.encode(example["text"]).ids), **classes}

    def cut(self, record: Row, length: int) -> Row:
        return {**record, "input_ids": record["input_ids"][:length]}

    def head(self, heads: Mapping[str, list[str]]) -> dict[str, Any]:
        return {"heads": {column: len(classes) for column, classes in heads.items()},
                "pooling": self.recipe.model.pooling}  # fmt: skip

    def text_facts(self, facts: dict[str, Any]) -> TextFacts:
        return self.facts_of_text(facts, "classification", facts["heads"])

    def outputs(self) -> Sequence[str]:
        return self._columns

    def held_out(self) -> HeldOut:
        return HeldOut(self.timed_inputs(), score=functools.partial(score, str(self.data)))


def score(folder: str, predictor: Any) -> Scored:
    """The mean of the heads' accuracies, each of them, and the classes of every text."""
    heads = read_manifest(folder, "validation").heads
    right, counted = dict.fromkeys(heads, 0), dict.fromkeys(heads, 0)
    answers = []
    for _, labels, outputs in answered(predictor, folder):
        chosen = {name: outputs[name].argmax(-1) for name in heads}
        for name in heads:
            counts = labels[name] != IGNORED
            right[name] += int((chosen[name] == labels[name])[counts].sum())
            counted[name] += int(counts.sum())
        answers += list(zip(*(chosen[name].tolist() for name in heads), strict=True))
    each = {f"{name}_accuracy": right[name] / max(counted[name], 1) for name in heads}
    return Scored({"accuracy": sum(each.values()) / len(each), **each}, answers)
