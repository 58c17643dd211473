"""Texts with labels, an encoder with a classifier on top, accuracy."""

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfopt._base.files import replacing
from tfopt._base.remaining import told_now_and_then
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call, inputs_of
from tfopt._keras.loading import load_model
from tfopt.data import batches as batching
from tfopt.data.features import Feature
from tfopt.data.pack import write_pack
from tfopt.data.readers.texts import Texts, joined, label_names, read_texts
from tfopt.data.records.manifest import Manifest, check_shards, manifest_name, read_manifest, splits
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.data.tokenizers import load_tokenizer, parse_tokenizer, save_tokenizer, train_bpe
from tfopt.data.vocabulary import cut_tokenizer
from tfopt.errors import DataError, InputError
from tfopt.models.encoder import encoder
from tfopt.models.pretrained import from_pretrained
from tfopt.numerics.metrics import Scored, agreement
from tfopt.recipe.sections import ExportSection
from tfopt.structure.outputs import kinds_of_outputs
from tfopt.tasks.base import HeldOut, Log
from tfopt.tasks.encoder import EncoderTask

_SCORED = 64  # rows at once, as `measure` takes them
PACKED = ("input_ids", "attention_mask")  # names of inputs in packed data
_SPLITS, KEPT = ("train", "validation"), "kept_tokens.npy"


class ClassificationTask(EncoderTask):
    """A text's class, by an encoder."""

    features = (Feature("input_ids", "tokens"), Feature("label", "class"))
    metrics = ("accuracy",)
    sources = ("files", "stdlib_docs", "packed")

    def check_inputs(self) -> list[Path]:
        found = super().check_inputs()
        _ = self._own  # raises for inputs that the recipe does not name
        return found

    def check_packed(self) -> list[Path]:
        """The files of a packed folder that fits the recipe."""
        folder, recipe = self.recipe.data.folder, self.recipe
        if folder is None:
            raise InputError(f"recipe {recipe.name!r} needs data.folder, a packed folder")
        load_tokenizer(folder)
        mixed = [split for split in splits(folder) if split.startswith("train-")]
        if mixed:
            raise InputError(
                f"{folder} holds texts of several files that were mixed ({', '.join(mixed)}), of which packed data "
                "would be the first alone; give the files, with data.mix"
            )
        manifests = {split: read_manifest(folder, split) for split in _SPLITS}
        for split, manifest in manifests.items():
            check_shards(folder, manifest)
            if not manifest.labels or manifest.labels != manifests["train"].labels:
                raise DataError(
                    f"splits of {folder} must have the same labels, {split!r} has {manifest.labels or 'none'}"
                )
            if manifest.max_length > recipe.data.max_length:
                raise InputError(
                    f"split {split!r} of {folder} has texts of {manifest.max_length} tokens, "
                    f"data.max_length is {recipe.data.max_length}"
                )
        return [Path(folder, name) for name in _packed_files(manifests)]

    def pack(self, log: Log) -> dict[str, Any]:
        section = self.recipe.data
        if section.source == "packed":
            manifests = {split: read_manifest(str(section.folder), split) for split in _SPLITS}
            with replacing(self.data) as folder:
                folder.mkdir()
                for name in _packed_files(manifests):
                    shutil.copy2(Path(str(section.folder), name), folder / name)
            return self._facts(manifests, load_tokenizer(self.data).get_vocab_size(), log)
        given = self._texts()
        train = joined([texts for split, texts in given.items() if split != "validation"])
        names = label_names(train)
        source = section.tokenizer or self.recipe.model.folder
        tokenizer = load_tokenizer(source) if source else train_bpe(train.texts, section.vocab_size)
        kept = None
        if section.least_count is not None:
            content, kept = cut_tokenizer(tokenizer.to_str(), str(source), train.texts, least=section.least_count)
            tokenizer = parse_tokenizer(content.decode(), str(source))
        with replacing(self.data) as folder:
            folder.mkdir()
            if kept is not None:
                np.save(folder / KEPT, kept)
            save_tokenizer(tokenizer, folder / "tokenizer.json")
            manifests = {
                split: write_pack(
                    folder, split, data=texts, tokenizer=tokenizer, max_length=section.max_length, labels=names,
                    shards=1 if split == "validation" else section.shards, on_long=section.on_long,
                    seed=self.recipe.seed, progress=told_now_and_then(f"packing {split} texts", log),
                )
                for split, texts in given.items()
            }  # fmt: skip
        return self._facts(manifests, tokenizer.get_vocab_size(), log)

    def _facts(self, manifests: dict[str, Manifest], vocab_size: int, log: Log) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "labels": manifests["train"].labels, "vocab_size": vocab_size, "on_long": manifests["train"].on_long,
        }  # fmt: skip
        for split in _SPLITS:
            some = [m for name, m in manifests.items() if name.startswith(split)]
            records = sum(m.records for m in some)
            facts[f"{split}_texts"], facts[f"{split}_records"] = sum(m.texts for m in some), records
            facts[f"{split}_too_long"] = sum(m.too_long for m in some)
            facts[f"{split}_longest"] = max(m.longest for m in some)
            counts = np.sum([m.class_counts for m in some], axis=0)
            facts[f"{split}_majority"] = round(int(counts.max()) / records, 4)
        for note in self.notes(facts):
            log(note)
        return facts

    def _texts(self) -> dict[str, Texts]:
        """By split, those that are mixed among them."""
        section = self.recipe.data
        if section.source == "stdlib_docs":
            return dict(zip(_SPLITS, read_stdlib_docs(self.recipe.seed), strict=True))
        found = {}
        for split, path in {"train": section.train, "validation": section.validation, **self.mixed}.items():
            found[split] = texts = read_texts(str(path), section.text_column, section.label_column)
            if texts.labels is None:
                raise DataError(f"{path} has no labels; a classifier needs a .tsv, .csv or .jsonl file with them")
        return found

    def build(self, facts: dict[str, Any]) -> Any:
        section, classes = self.recipe.model, len(facts["labels"])
        if section.kind == "keras":
            return self._loaded()
        if section.folder is not None:
            return from_pretrained(
                section.folder,
                self.recipe.generation,
                num_labels=classes,
                pooling=section.pooling,
                dropout=section.dropout,
            )
        config = self.encoder_config(facts["vocab_size"])
        return encoder(config, classes, pooling=section.pooling, generation=self.recipe.generation)

    def _loaded(self) -> Any:
        path, generation = self.model_file(), self.recipe.generation
        model = load_model(path)
        if keras_api.generation_of(model) != generation:
            raise InputError(f"{path} is a model of {keras_api.generation_of(model)}, the recipe says {generation}")
        check_fits(model, self.data, self.recipe.data.max_length, names=self._own[0])
        return model

    @functools.cached_property
    def _own(self) -> tuple[dict[str, str], list[int] | None]:
        """What the model calls its inputs, by our names, and the only length that one of somebody's takes."""
        section = self.recipe.model
        if section.kind != "keras":
            return {name: name for name in PACKED}, None
        specs = inputs_of(load_model(self.model_file())).specs
        names = {**(section.inputs or _same_names(specs))}
        check_names(self.model_file(), specs, names)
        length = specs[names[PACKED[0]]].shape[1]
        return names, None if length is None else [int(length)]

    def kind_of_output(self, model: Any) -> Literal["logits", "probabilities"]:
        (kind,) = kinds_of_outputs(model).values()
        return "probabilities" if kind == "probabilities" else "logits"

    def text_facts(self, facts: dict[str, Any]) -> TextFacts:
        return self.facts_of_text(facts, "classification", {ONLY: facts["labels"]})

    def kept_tokens(self) -> np.ndarray | None:
        path = self.data / KEPT
        return np.load(path) if path.exists() else None

    def batches(self, batch_size: int, split: str, **order: Any) -> tf.data.Dataset:
        found = batching.batches(
            self.data, batch_size, seed=self.recipe.seed, split=self.drawn_from(split), buckets=self._own[1],
            **order,
        )  # fmt: skip
        names = self._own[0]
        return found.map(lambda inputs, labels: (renamed(inputs, names), labels))

    def calibration(self) -> dict[str, np.ndarray]:
        return self._samples("train", balanced=True)

    def samples(self) -> dict[str, np.ndarray]:
        return self._samples("validation")

    def _samples(self, split: str, *, balanced: bool = False) -> dict[str, np.ndarray]:
        found = batching.samples(self.data, self.samples_count, split=self.drawn_from(split), balanced=balanced)
        names, lengths = self._own
        if lengths is not None:
            found |= {name: _padded(found[name], lengths[0]) for name in PACKED}
        return renamed(found, names)

    def lengths(self, section: ExportSection) -> list[int] | None:
        return super().lengths(section) if self._own[1] is None else None

    def timed_inputs(self) -> dict[str, np.ndarray]:
        if self._own[1] is not None:  # the samples have the length that there is
            return self.samples()
        return super().timed_inputs()

    def texts_at(self, rows: Sequence[int]) -> dict[int, str]:
        wanted, found, place = set(rows), dict[int, str](), 0
        tokenizer = load_tokenizer(self.data)
        for inputs, _ in batching.batches(self.data, _SCORED, split="validation", buckets=self._own[1]):
            ids = inputs[PACKED[0]].numpy()
            for i in wanted.intersection(range(place, place + len(ids))):
                found[i] = tokenizer.decode(ids[i - place].tolist())
            place += len(ids)
        return found

    def held_out(self) -> HeldOut:
        if self.recipe.model.kind != "keras":
            return HeldOut(self.timed_inputs(), self.data)
        return HeldOut(self.timed_inputs(), score=functools.partial(score, str(self.data), *self._own))


def _same_names(specs: Mapping[str, Any]) -> dict[Any, str]:
    return {name: name for name in PACKED if name in specs}


def check_names(source: str, specs: Mapping[str, Any], names: Mapping[Any, str]) -> None:
    """Raises InputError unless a model takes just the inputs of these names, token ids among them."""
    if set(specs) != set(names.values()) or PACKED[0] not in names:
        raise InputError(
            f"{source} takes {', '.join(specs)}, the recipe gives {', '.join(names.values()) or 'none of them'}; "
            'say in model.inputs which is which, such as {input_ids = "' + next(iter(specs)) + '"}'
        )


def renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The inputs that a model takes, under its names."""
    return {theirs: values[ours] for ours, theirs in names.items()}


def _padded(value: np.ndarray, length: int) -> np.ndarray:
    return np.pad(value, [(0, 0), (0, length - value.shape[1])])


def score(folder: str, names: Mapping[str, str], buckets: list[int] | None, predictor: Any) -> Scored:
    """The share of right classes of the held-out texts, and the classes."""
    predicted: list[int] = []
    true: list[int] = []
    given = (
        ({name: value.numpy() for name, value in renamed(inputs, names).items()}, labels.numpy())
        for inputs, labels in batching.batches(folder, _SCORED, split="validation", buckets=buckets)
    )
    for _, labels, outputs in predictor.answered(given):
        (scores,) = outputs.values()
        predicted, true = predicted + scores.argmax(-1).tolist(), true + labels.tolist()
    return Scored({"accuracy": agreement(predicted, true)}, predicted, true)


def check_fits(model: Any, folder: str | Path, max_length: int, names: Mapping[str, str] | None = None) -> None:
    """Runs a model on one row of the largest id and length of packed data.

    Raises:
        InputError: it does not take them, or does not give one row of logits for the labels.
    """
    manifest, inputs = read_manifest(folder, "train"), inputs_of(model)
    names = _same_names(inputs.specs) if names is None else names
    check_names(f"model {model.name!r}", inputs.specs, names)
    row = {name: np.ones((1, max_length), np.int32) for name in names.values()}
    largest = load_tokenizer(folder).get_vocab_size() - 1
    row[names[PACKED[0]]][:] = largest
    try:
        found = call(model, inputs, row)
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} does not take {max_length} tokens with ids up to {largest}, "
            f"as {folder} has them: {' '.join(str(error).split())[:300]}"
        ) from error
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if list(shapes.values()) != [(1, len(manifest.labels or []))]:
        raise InputError(
            f"model {model.name!r} gives {shapes} for one text; {folder} needs logits for {manifest.labels}"
        )


def _packed_files(manifests: dict[str, Manifest]) -> list[str]:
    """Names of everything that belongs to the splits."""
    shards = [shard.file for manifest in manifests.values() for shard in manifest.shards]
    return ["tokenizer.json", *(manifest_name(split) for split in manifests), *shards]
