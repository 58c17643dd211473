"""What tasks share whose records have other features than a text and its class."""

import abc
import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.files import existing, replacing, write_text
from tfopt._keras import keras_api
from tfopt.data.features import feature_batches, weighted_by_what_counts, write_features
from tfopt.data.readers.texts import json_rows
from tfopt.data.tokenizers import load_tokenizer, save_tokenizer, train_bpe
from tfopt.errors import DataError
from tfopt.models.encoder import encoder
from tfopt.models.pretrained import from_pretrained
from tfopt.structure.outputs import loss_of_labels
from tfopt.tasks.base import Log
from tfopt.tasks.encoder import EncoderTask

SPLITS = ("train", "validation")
_EXAMPLES = "validation.examples.jsonl"
Row = dict[str, Any]


class LabelledTask(EncoderTask):
    """A task whose examples are rows of a JSONL file and become records with the features that it declares."""

    @abc.abstractmethod
    def read(self, rows: list[Row], source: str) -> list[Row]:
        """Checked examples.

        Raises:
            DataError: a row that is none; it is named.
        """

    @abc.abstractmethod
    def texts(self, examples: list[Row]) -> list[str]:
        """What a tokenizer is trained on."""

    @abc.abstractmethod
    def heads(self, train: list[Row]) -> dict[str, list[str]]:
        """Name of a head -> its classes, from the training data."""

    @abc.abstractmethod
    def encode(self, example: Row, tokenizer: Any, heads: Mapping[str, list[str]]) -> Row:
        """Values of the declared features; all tokens, however many."""

    @abc.abstractmethod
    def cut(self, record: Row, length: int) -> Row:
        """A record that is too long, cut."""

    @abc.abstractmethod
    def head(self, heads: Mapping[str, list[str]]) -> dict[str, Any]:
        """Arguments of `models.bert` for the head."""

    def pack(self, log: Log) -> dict[str, Any]:
        section = self.recipe.data
        examples = {}
        for split, given in {**{split: getattr(section, split) for split in SPLITS}, **self.mixed}.items():
            path = existing(str(given), f"{split} data")
            examples[split] = self.read(json_rows(path), str(path))
        train = [row for split, rows in examples.items() if split != "validation" for row in rows]
        heads = self.heads(train)
        source = section.tokenizer or self.recipe.model.folder
        texts = self.texts(train)
        tokenizer = load_tokenizer(source) if source else train_bpe(texts, section.vocab_size)
        facts: dict[str, Any] = {
            "heads": heads,
            "vocab_size": tokenizer.get_vocab_size(),
            "on_long": section.on_long,
        }
        with replacing(self.data) as folder:
            folder.mkdir()
            save_tokenizer(tokenizer, folder / "tokenizer.json")
            lines = [json.dumps(example, ensure_ascii=False) for example in examples["validation"]]
            write_text(folder / _EXAMPLES, "\n".join(lines) + "\n")
            for split, rows in examples.items():
                found = self._write(folder, split, rows, tokenizer=tokenizer, heads=heads)
                for name, count in found.items():  # of all that is trained on together
                    key, fold = f"{split.partition('-')[0]}_{name}", max if name == "longest" else operator.add
                    facts[key] = fold(facts.get(key, 0), count)
        for note in self.notes(facts):
            log(note)
        return facts

    def _write(self, folder: Path, split: str, examples: list[Row], *, tokenizer: Any, heads: Any) -> Row:
        section = self.recipe.data
        records = [{**self.encode(e, tokenizer, heads), "example": i} for i, e in enumerate(examples)]
        longest = max(len(record["input_ids"]) for record in records)
        over = [record for record in records if len(record["input_ids"]) > section.max_length]
        if over and section.on_long == "error":
            raise DataError(
                f"{split} data: {len(over)} of {len(records)} examples are longer than the {section.max_length} "
                f"tokens the model takes (the longest has {longest}); set data.on_long to 'truncate' or 'drop', or "
                "raise data.max_length"
            )
        if section.on_long == "drop":
            records = [record for record in records if len(record["input_ids"]) <= section.max_length]
        records = [
            self.cut(record, section.max_length) if len(record["input_ids"]) > section.max_length else record
            for record in records
        ]
        write_features(
            folder, split, features=self.features, shards=1 if split == "validation" else section.shards,
            columns={feature.name: [record[feature.name] for record in records] for feature in self.features},
            seed=self.recipe.seed,
            facts={
                "texts": len(examples), "length_limit": section.max_length, "on_long": section.on_long,
                "too_long": len(over), "longest": longest, "heads": heads,
            },
        )  # fmt: skip
        return {"texts": len(examples), "records": len(records), "too_long": len(over), "longest": longest}

    def build(self, facts: dict[str, Any]) -> Any:
        section, generation = self.recipe.model, self.recipe.generation
        head = self.head(facts["heads"])
        if section.folder is not None:
            return from_pretrained(section.folder, generation, dropout=section.dropout, **head)
        return encoder(self.encoder_config(facts["vocab_size"]), generation=generation, **head)

    def batches(self, batch_size: int, split: str, **order: Any) -> tf.data.Dataset:
        found = feature_batches(self.data, batch_size, split=self.drawn_from(split), seed=self.recipe.seed, **order)
        return found.map(lambda inputs, labels: (inputs, self.targets(labels)))

    def targets(self, labels: Any) -> Any:
        """What the model is trained on: labels by the name of the output."""
        return {name: value for name, value in labels.items() if name != "example"}

    def counted(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        return weighted_by_what_counts(batches)

    def compile(self, model: Any, optimizer: Any, jit_compile: bool, *, smoothing: float = 0.0) -> None:
        keras = keras_api.keras_module(keras_api.generation_of(model))
        loss = loss_of_labels(keras, "logits", smoothing=smoothing)
        outputs = self.outputs()
        model.compile(
            optimizer=optimizer, loss=loss if outputs is None else dict.fromkeys(outputs, loss),
            jit_compile=jit_compile,
        )  # fmt: skip

    def outputs(self) -> Sequence[str] | None:
        """Names of the outputs of a model with several, None for one."""
        return None

    def calibration(self) -> dict[str, np.ndarray]:
        return self._samples("train")

    def samples(self) -> dict[str, np.ndarray]:
        return self._samples("validation")

    def _samples(self, split: str) -> dict[str, np.ndarray]:
        batch = next(iter(feature_batches(self.data, self.samples_count, split=self.drawn_from(split))))
        return {name: value.numpy() for name, value in batch[0].items()}


def read_examples(folder: str | Path) -> list[Row]:
    """The held-out examples of a packed folder, in the order of the feature "example"."""
    text = Path(folder, _EXAMPLES).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line]


def answered(predictor: Any, folder: str | Path) -> Any:
    """Inputs, labels and outputs of a loaded artifact, a batch at a time."""
    return predictor.answered(
        ({name: value.numpy() for name, value in part.items()} for part in parts)
        for parts in feature_batches(folder, 32, split="validation")
    )


def text_of(row: Row, key: str, source: str, number: int) -> str:
    """A text of a row.

    Raises:
        DataError: it is missing, empty or no text.
    """
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{source}: example {number} needs a text {key!r}, got {value!r}")
    return value
