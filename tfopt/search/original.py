"""What is to be made smaller, as a recipe: a model of one kind or another, and texts with labels."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from tfopt._base.files import existing, write_bytes, write_text
from tfopt._base.formats import kind_of
from tfopt._base.members import FACTS, TOKENIZER
from tfopt._keras import extras, keras_api
from tfopt._keras.input_facts import facts_of, size_to_try
from tfopt._keras.keras_io import inputs_of
from tfopt._keras.loading import load_model
from tfopt.data.readers.texts import Texts, label_names, read_texts
from tfopt.data.stdlib_docs import read_stdlib_docs
from tfopt.data.text_facts import ONLY, TextFacts
from tfopt.errors import DataError, InputError
from tfopt.models.keras_hub_encoders import as_encoder
from tfopt.models.keras_hub_presets import from_preset
from tfopt.models.pretrained import from_pretrained, save_pretrained
from tfopt.recipe import Recipe
from tfopt.tasks.classification import PACKED

_HELD_OUT, _SEED = 10, 7  # one text of so many
_MOST_TOKENS = 128  # unless the model says otherwise
_MODEL_TOKENS = 512  # of what a model says; who wants more says so


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts with labels to learn from and to measure on.

    Attributes:
        train, validation: files; `validation` is None where a part of the other is to be held out.
        text_column, label_column: of tables.
    """

    train: Path
    validation: Path | None = None
    text_column: str | None = None
    label_column: str = "label"

    def files(self, folder: Path) -> dict[str, Any]:
        """The `data` of a recipe; what is held out is written into the folder."""
        validation = self.validation
        columns = {"text_column": self.text_column, "label_column": self.label_column}
        train = existing(self.train, "training data").resolve()
        if validation is not None:
            found = {"train": train, "validation": existing(validation, "validation data").resolve()}
        else:
            found = _split(_labelled(train, self.text_column, self.label_column), folder)
            columns = {"text_column": "text", "label_column": "label"}
        return {**{key: str(path) for key, path in found.items()}, **{k: v for k, v in columns.items() if v}}


def recipe_of(
    model: Any, corpus: Corpus, folder: Path, *, tokenizer: str | Path | None, max_length: int | None, epochs: int
) -> Recipe:
    """A recipe whose baseline is the model, trained before if it has no head for these labels.

    Args:
        model: a classifier, its `.keras` or `.h5` file, or a folder of Hugging Face or KerasHub.
        corpus: the texts.
        folder: for what has to be written.
        tokenizer: a `tokenizer.json`, where none comes with the model.
        max_length: tokens of a text; longer ones are cut.
        epochs: of the training of a model without a head.

    Raises:
        InputError: no tokenizer, or classes that are not those of the texts.
    """
    data = corpus.files(folder)
    names = label_names(_labelled(data["train"], data.get("text_column"), data["label_column"]))
    generation, section, trained = "tf_keras", {}, True
    if isinstance(model, str | Path) and kind_of(model) == "keras_hub":
        model = from_preset(model)
    if isinstance(model, str | Path) and existing(model, "model").is_dir():
        found = from_pretrained(model, head="stored")
        trained = FACTS in extras.of(found)
        section = {"kind": "pretrained", "folder": str(Path(model).resolve())}
    else:
        found = load_model(model) if isinstance(model, str | Path) else keras_api.check_model(model)
        found = as_encoder(found)
        generation = keras_api.generation_of(found)
    members = extras.of(found)
    shape = json.loads(members[extras.ENCODER]) if extras.ENCODER in members else {"head": "of somebody's own"}
    if trained and shape.get("head") is None and "cut" not in shape:  # an encoder alone gets a head
        save_pretrained(found, folder / "encoder")
        generation, section, trained = "tf_keras", {"kind": "pretrained", "folder": str(folder / "encoder")}, False
        data["tokenizer"] = str(_tokenizer(members, tokenizer, folder))
    facts = TextFacts.from_json(members[FACTS], "the model") if FACTS in members else None
    if facts is not None:
        _check_labels(facts, names)
        max_length = max_length or min(facts.max_length or _MOST_TOKENS, _MODEL_TOKENS)
    if trained:
        section = {
            "kind": "keras",
            "file": str(keras_api.save_model(found, folder / "given.keras")),
            **_roles(found),
        }
        data["tokenizer"] = str(_tokenizer(members, tokenizer, folder))
    return Recipe.model_validate({
        "schema": 1, "name": "original", "seed": _SEED, "generation": generation, "model": section,
        "data": {**data, "on_long": "truncate", "max_length": max_length or _MOST_TOKENS},
        "train": {"epochs": 0 if trained else epochs},
    })  # fmt: skip


def _roles(model: Any) -> dict[str, Any]:
    """What the model calls the inputs of a classifier of texts, where that is not what they are called here."""
    inputs = inputs_of(model)
    if set(inputs.specs) <= set(PACKED):
        return {}
    facts = facts_of(model, inputs, size_to_try(model, inputs))
    ids, masks = [name for name in inputs.specs if name in facts.rows], list(facts.masks)
    if len(ids) != 1 or len(inputs.specs) > 1 + len(masks):
        given = ", ".join(inputs.specs)
        raise InputError(f"the model takes {given}; of texts only token ids and a mask of padding are known")
    return {"inputs": dict(zip(PACKED, (*ids, *masks[:1]), strict=False))}


def held_out(recipe: Recipe) -> Texts:
    """The texts that a recipe measures on."""
    data = recipe.data
    if data.source == "stdlib_docs":
        return read_stdlib_docs(recipe.seed)[1]
    return read_texts(str(data.validation), data.text_column, data.label_column)


def _labelled(path: str | Path, text_column: str | None, label_column: str) -> Texts:
    found = read_texts(path, text_column, label_column)
    if found.labels is None:
        raise DataError(f"{path} has no labels; a classifier needs a .tsv, .csv or .jsonl file with them")
    return found


def _check_labels(facts: TextFacts, names: list[str]) -> None:
    have = facts.labels.get(ONLY, ())
    if facts.task != "classification" or len(have) != len(names):
        raise InputError(
            f"the model is for {facts.task} with the classes {', '.join(have) or 'of several heads'}; the texts "
            f"have the labels {', '.join(names)}"
        )
    numbers = [str(i) for i in range(len(names))]
    if list(have) != names and names != numbers and list(have) != numbers:
        raise InputError(
            f"the model's classes are {', '.join(have)}, in this order; the texts have {', '.join(names)}: rename "
            "those of the texts, or number them from 0"
        )


def _tokenizer(members: dict[str, bytes], given: str | Path | None, folder: Path) -> Path:
    if given is not None:
        return existing(given, "tokenizer").resolve()
    if TOKENIZER not in members:
        raise InputError("no tokenizer came with the model; give one: tokenizer='tokenizer.json'")
    return write_bytes(folder / "tokenizer.json", members[TOKENIZER])


def _split(texts: Texts, folder: Path) -> dict[str, Path]:
    """The same texts in two files, every tenth in the second."""
    rows = list(zip(texts.texts, texts.labels or [], strict=True))
    random.Random(_SEED).shuffle(rows)
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    count = max(len(lines) // _HELD_OUT, 1)
    parts = {"validation": lines[:count], "train": lines[count:]}
    return {n: write_text(folder / f"{n}.jsonl", "\n".join(part) + "\n") for n, part in parts.items()}
