"""Texts with labels, an encoder with a classifier on top, accuracy."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.files import existing, replacing
from tfopt._base.formats import format_named
from tfopt._keras import keras_api
from tfopt._keras.keras_io import call, inputs_of
from tfopt.data import batches as batching
from tfopt.data import pack as packing
from tfopt.data.readers import Texts, label_names, read_texts
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.tokenizers import load_tokenizer, parse_tokenizer, save_tokenizer, train_bpe
from tfopt.data.vocabulary import cut_tokenizer
from tfopt.errors import DataError, InputError, ModelFileError
from tfopt.models.bert import BertConfig, bert
from tfopt.models.checkpoints import files_of
from tfopt.models.pretrained import check_weights, from_pretrained, read_config
from tfopt.recipe.sections import ExportSection
from tfopt.tasks.base import HeldOut, Log, Task, widened

_SPLITS, _KEPT = ("train", "validation"), "kept_tokens.npy"


class ClassificationTask(Task):
    """A text's class, by an encoder."""

    def check_inputs(self) -> list[Path]:
        recipe, inputs = self.recipe, []
        if recipe.data.source == "files":
            for key in ("train", "validation"):
                value = getattr(recipe.data, key)
                if value is None:
                    raise InputError(f"recipe {recipe.name!r} needs data.{key}: set it or pass --{key} FILE")
                inputs.append(existing(value, f"{key} data"))
        elif recipe.data.source == "packed":
            inputs += self._check_packed()
        config = None
        if recipe.model.kind == "pretrained":
            config, files = self._check_folder()
            inputs += files
        elif recipe.model.kind == "keras":
            inputs.append(existing(self._model_file(), "model"))
        source = recipe.data.tokenizer or recipe.model.folder
        if source is not None:
            vocabulary = load_tokenizer(source).get_vocab_size()
            if config is not None and vocabulary > config.vocab_size:
                raise InputError(
                    f"{source} has {vocabulary} tokens, the model's table has {config.vocab_size} rows"
                )
            inputs.append(Path(source) / "tokenizer.json" if Path(source).is_dir() else Path(source))
        return inputs

    def _check_packed(self) -> list[Path]:
        """The files of a packed folder that fits the recipe."""
        folder, recipe = self.recipe.data.folder, self.recipe
        if folder is None:
            raise InputError(f"recipe {recipe.name!r} needs data.folder, a packed folder")
        load_tokenizer(folder)
        manifests = {split: packing.read_manifest(folder, split) for split in _SPLITS}
        for split, manifest in manifests.items():
            packing.check_shards(folder, manifest)
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

    def _model_file(self) -> str:
        if self.recipe.model.file is None:
            raise InputError(f"recipe {self.recipe.name!r} needs model.file: the .keras file of a model")
        return self.recipe.model.file

    def _check_folder(self) -> tuple[BertConfig, list[Path]]:
        recipe = self.recipe
        if recipe.model.folder is None:
            raise InputError(f"recipe {recipe.name!r} needs model.folder: set it or pass --model DIR")
        folder = existing(recipe.model.folder, "model folder")
        config = read_config(folder)
        if not isinstance(config, BertConfig):
            raise ModelFileError(f"{folder} holds a model that generates; an encoder is needed here")
        check_weights(folder, config)
        if recipe.data.max_length > config.max_position_embeddings:
            raise InputError(
                f"data.max_length {recipe.data.max_length} is more than the {config.max_position_embeddings} "
                "positions of the model"
            )
        return config, [folder / "config.json", *files_of(folder)]

    def pack(self, log: Log) -> dict[str, Any]:
        section = self.recipe.data
        if section.source == "packed":
            manifests = {split: packing.read_manifest(str(section.folder), split) for split in _SPLITS}
            with replacing(self.data) as folder:
                folder.mkdir()
                for name in _packed_files(manifests):
                    shutil.copy2(Path(str(section.folder), name), folder / name)
            return self._facts(manifests, load_tokenizer(self.data).get_vocab_size(), log)
        train, validation = self._texts()
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
                np.save(folder / _KEPT, kept)
            save_tokenizer(tokenizer, folder / "tokenizer.json")
            manifests = {
                split: packing.write_pack(
                    folder, split, data=texts, tokenizer=tokenizer, max_length=section.max_length, labels=names,
                    shards=section.shards if split == "train" else 1, on_long=section.on_long,
                    seed=self.recipe.seed,
                )
                for split, texts in (("train", train), ("validation", validation))
            }  # fmt: skip
        return self._facts(manifests, tokenizer.get_vocab_size(), log)

    def _facts(self, manifests: dict[str, packing.Manifest], vocab_size: int, log: Log) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "labels": manifests["train"].labels, "vocab_size": vocab_size, "on_long": manifests["train"].on_long,
        }  # fmt: skip
        for split, m in manifests.items():
            facts[f"{split}_texts"], facts[f"{split}_records"] = m.texts, m.records
            facts[f"{split}_too_long"], facts[f"{split}_longest"] = m.too_long, m.longest
            facts[f"{split}_majority"] = round(max(m.class_counts) / m.records, 4)
        for note in self.notes(facts):
            log(note)
        return facts

    def _texts(self) -> tuple[Texts, Texts]:
        section = self.recipe.data
        if section.source == "stdlib_docs":
            return read_stdlib_docs(self.recipe.seed)
        found = []
        for path in (section.train, section.validation):
            texts = read_texts(str(path), section.text_column, section.label_column)
            if texts.labels is None:
                raise DataError(f"{path} has no labels; a classifier needs a .tsv, .csv or .jsonl file with them")
            found.append(texts)
        return found[0], found[1]

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
        config = BertConfig(
            vocab_size=facts["vocab_size"], hidden_size=section.hidden_size,
            num_hidden_layers=section.num_hidden_layers, num_attention_heads=section.num_attention_heads,
            intermediate_size=section.intermediate_size, max_position_embeddings=self.recipe.data.max_length,
            hidden_dropout_prob=section.dropout,
        )  # fmt: skip
        return bert(config, classes, pooling=section.pooling, generation=self.recipe.generation)

    def _loaded(self) -> Any:
        path, generation = self._model_file(), self.recipe.generation
        model = keras_api.load_model(path)
        if keras_api.generation_of(model) != generation:
            raise InputError(f"{path} is a model of {keras_api.generation_of(model)}, the recipe says {generation}")
        check_fits(model, self.data, self.recipe.data.max_length)
        return model

    def kept_tokens(self) -> np.ndarray | None:
        path = self.data / _KEPT
        return np.load(path) if path.exists() else None

    def batches(self, batch_size: int, split: str, shuffle: bool = False) -> tf.data.Dataset:
        return batching.batches(self.data, batch_size, shuffle=shuffle, seed=self.recipe.seed, split=split)

    def lengths(self, section: ExportSection) -> list[int] | None:
        if not (section.jit_compile or format_named(section.format).fixed_lengths):
            return None
        longest = self.recipe.data.max_length
        return self.recipe.lengths or sorted({n for n in (32, 64, 128) if n < longest} | {longest})

    def calibration(self) -> dict[str, np.ndarray]:
        return batching.samples(self.data, self.samples_count, split="train", balanced=True)

    def held_out(self) -> HeldOut:
        length, samples = self.recipe.measure.length or self.recipe.data.max_length, self.samples()
        inputs = {name: widened(samples[name], length) for name in ("input_ids", "attention_mask")}
        return HeldOut(inputs, self.data)

    def notes(self, facts: dict[str, Any]) -> list[str]:
        """What happened to texts that were too long."""
        return [
            f"{facts[f'{split}_too_long']} of {facts[f'{split}_texts']} {split} texts were longer than the model "
            f"takes and were {'cut' if facts['on_long'] == 'truncate' else 'dropped'} (the longest had "
            f"{facts[f'{split}_longest']} tokens)."
            for split in ("train", "validation")
            if facts[f"{split}_too_long"]
        ]


def check_fits(model: Any, folder: str | Path, max_length: int) -> None:
    """Runs a model on one row of the largest id and length of packed data.

    Raises:
        InputError: it does not take them, or does not give one row of logits for the labels.
    """
    manifest, inputs = packing.read_manifest(folder, "train"), inputs_of(model)
    row = {name: np.ones((1, max_length), np.int32) for name in ("input_ids", "attention_mask")}
    row["input_ids"][:] = load_tokenizer(folder).get_vocab_size() - 1
    if set(inputs.specs) - set(row):
        raise InputError(f"model {model.name!r} takes {sorted(inputs.specs)}, packed data holds {sorted(row)}")
    try:
        found = call(model, inputs, {name: row[name] for name in inputs.specs})
    except (tf.errors.InvalidArgumentError, ValueError) as error:
        raise InputError(
            f"model {model.name!r} does not take {max_length} tokens with ids up to {int(row['input_ids'].max())}, "
            f"as {folder} has them: {' '.join(str(error).split())[:300]}"
        ) from error
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if list(shapes.values()) != [(1, len(manifest.labels or []))]:
        raise InputError(
            f"model {model.name!r} gives {shapes} for one text; {folder} needs logits for {manifest.labels}"
        )


def _packed_files(manifests: dict[str, packing.Manifest]) -> list[str]:
    """Names of everything that belongs to the splits."""
    shards = [shard.file for manifest in manifests.values() for shard in manifest.shards]
    return ["tokenizer.json", *(packing.manifest_name(split) for split in manifests), *shards]
