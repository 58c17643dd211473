"""Recipes: everything a run does, typed, in TOML. Loads no TensorFlow."""

import difflib
import importlib.resources
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import tomli_w
from pydantic import BaseModel, Field

from tfopt._base.foreign import read_text
from tfopt._base.formats import format_named
from tfopt.errors import InputError, MissingFileError
from tfopt.quantization import NAMED
from tfopt.recipe.sections import (
    LEARNING_RATES,
    Count,
    DataSection,
    ExportSection,
    MeasureSection,
    ModelSection,
    Section,
    TrainSection,
    WorkersSection,
)
from tfopt.recipe.techniques import VariantSection
from tfopt.schedules import Precision, StrategyName

BASELINE = "baseline"
_FOLDERS = ("data", "plots")  # of a run, beside one per variant and artifact


class PlannedArtifact(NamedTuple):
    """An artifact that a recipe asks for.

    Attributes:
        name: its name in the report.
        owner: "baseline" or the variant whose model it is.
        section: how it is exported.
        path: where it is written, relative to the run's folder.
    """

    name: str
    owner: str
    section: ExportSection
    path: str


class Recipe(Section):
    """A whole run. `Recipe.load` reads one from TOML or by the name of a built-in recipe."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    task: Literal["classification", "token_classification", "question_answering", "multi_task", "causal_lm"] = (
        "classification"
    )
    generation: Literal["tf_keras", "keras"] = "tf_keras"
    seed: Annotated[int, Field(ge=0)] = 0
    replicas: Count = 1
    strategy: StrategyName = "auto"
    precision: Precision = "float32"
    gpu_memory: Literal["all", "grow"] | Annotated[float, Field(gt=0)] = "all"
    lengths: list[Count] | None = None
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    variants: list[VariantSection] = Field(default_factory=list)
    exports: list[ExportSection] = Field(default_factory=list)
    measure: MeasureSection = MeasureSection()
    workers: WorkersSection = WorkersSection()

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> "Recipe":
        names = [BASELINE, *(v.name for v in self.variants)]
        taken = [*_FOLDERS, *names, *(a.name for a in self.artifacts()[1:])]
        double = next((n for n in taken if taken.count(n) > 1), None)
        if double:
            raise ValueError(f"two things would be named {double!r}: give each variant and export its own name")
        self._check_sources()
        if self.precision != "float32" and self.model.kind == "keras":
            raise ValueError(
                f"precision {self.precision!r} is for models that are built here: a Keras file has its own policies"
            )
        self._check_order()
        for export in self.exports:
            for name in export.of or []:
                if name not in names:
                    raise ValueError(f"exports.of names {name!r}, but the variants are {', '.join(names)}")
        for planned in self.artifacts():
            self._check_bits(planned)
        for export in self.exports:
            if export.quantization == "trained" and not any(a.section is export for a in self.artifacts()):
                raise ValueError("exports: quantization 'trained' needs a variant with a section quantize")
        self._check_task()
        longest = self.data.max_length
        if self.lengths and max(self.lengths) != longest:
            raise ValueError(f"lengths must end at data.max_length {longest}, got {self.lengths}")
        if (self.measure.length or 0) > longest:
            raise ValueError(f"measure.length must be at most data.max_length {longest}, got {self.measure.length}")
        return self

    def _check_order(self) -> None:
        """Variants start from what is there before them; what is on a grid is not trained off it again."""
        done: dict[str, VariantSection] = {}
        for variant in self.variants:
            if variant.start != BASELINE and variant.start not in done:
                names = ", ".join([BASELINE, *done])
                raise ValueError(f"variant {variant.name!r} starts from {variant.start!r}; before it come {names}")
            changes = variant.train.epochs or any(variant.techniques())
            source = done.get(variant.start) if changes else None
            last = source.leaves("grid") if source is not None else None
            if source is not None and last is not None:
                raise ValueError(
                    f"variant {variant.name!r} would train {source.name!r} off the values that its section {last} "
                    f"gave it; {last} last"
                )
            if source is not None and source.leaves("zeros") and not variant.leaves("zeros"):
                raise ValueError(
                    f"variant {variant.name!r} would train the zeros of {source.name!r} away; give it a section "
                    "prune as well, or start from another"
                )
            done[variant.name] = variant

    def _check_sources(self) -> None:
        """What is read goes with how it is read."""
        data, model = self.data, self.model
        given = (
            ("data.folder", data.folder, "data.source", data.source, "packed"),
            ("model.folder", model.folder, "model.kind", model.kind, "pretrained"),
            ("model.file", model.file, "model.kind", model.kind, "keras"),
        )
        for key, value, switch, chosen, right in given:
            if value is not None and chosen != right:
                raise ValueError(f"{key} was given, but {switch} is {chosen!r}; set it to {right!r}")
        if data.source == "packed" and (data.train or data.validation or data.tokenizer):
            raise ValueError(
                "data.source is 'packed', so data.train, data.validation and data.tokenizer are not read"
            )
        if data.mix and (data.source != "files" or data.train is None):
            raise ValueError("data.mix goes with data.train, and with data.source 'files'")
        if data.least_count is not None and (
            self.task != "classification" or data.source == "packed" or model.kind == "fresh"
        ):
            raise ValueError(
                "data.least_count cuts the vocabulary of a classifier that is given; a fresh one has "
                "data.vocab_size, packed data has its ids, and a model that generates needs every token"
            )
        if not self.train.epochs and self.model.kind != "keras":
            raise ValueError(f"train.epochs is 0, but a model of kind {self.model.kind!r} has to be trained")
        if self.task != "classification" and (self.data.source == "packed" or self.model.kind == "keras"):
            raise ValueError("data.source 'packed' and model.kind 'keras' are for task 'classification'")

    def _check_task(self) -> None:
        if self.data.label_columns and self.task != "multi_task":
            raise ValueError("data.label_columns are for task 'multi_task'; set data.label_column")
        if self.task != "causal_lm":
            if any(export.format == "litertlm" for export in self.exports):
                raise ValueError("exports: format 'litertlm' is for models that generate, task 'causal_lm'")
            if any(export.rotate for export in self.exports):
                raise ValueError("exports: rotate is for models that generate, task 'causal_lm'")
            return
        if self.data.max_length < 4:
            raise ValueError(f"data.max_length must be 4 or more for task 'causal_lm', got {self.data.max_length}")
        if any(section.adversarial for section in (self.train, *(v.train for v in self.variants))):
            raise ValueError("train.adversarial is for models that look tokens up once, not for task 'causal_lm'")
        static = next((e.quantization for e in self.exports if e.quantization in ("int8", "int16")), None)
        if static is not None:
            raise ValueError(
                f"exports: {static!r} is static, and files that generate have no static kind; use a dynamic or "
                "weight-only one"
            )
        for variant in self.variants:
            if variant.quantize is not None and variant.quantize.activations == "static":
                raise ValueError(
                    f"variant {variant.name!r}: files that generate have no static kind; set quantize.activations "
                    "to 'dynamic' or 'none'"
                )

    def artifacts(self) -> "list[PlannedArtifact]":
        """What a run exports; the first is the float SavedModel that the rest is compared with."""
        planned = [
            PlannedArtifact(BASELINE, BASELINE, ExportSection(format="saved_model"), path="baseline/saved_model")
        ]
        for owner in (BASELINE, *(v.name for v in self.variants)):
            for section in self.exports:
                if self._exports(section, owner):
                    name = f"{owner}_{section.suffix}"
                    file = format_named(section.format).file
                    planned.append(PlannedArtifact(name, owner, section, path=f"{name}/{file}"))
        return planned

    def _check_bits(self, planned: PlannedArtifact) -> None:
        """An export must not round a trained variant again, to fewer bits."""
        variant = next((v for v in self.variants if v.name == planned.owner), None)
        if planned.section.rotate and variant is not None and (variant.quantize or variant.factorize):
            raise ValueError(
                f"exports: rotate would turn {variant.name!r} off its grids or factors; name the others in 'of'"
            )
        wanted = NAMED.get(planned.section.quantization or "")
        if variant is None or variant.quantize is None or wanted is None:
            return
        trained = variant.quantize.weight_bits or 8
        bits = min([wanted.weight_bits or 8, *planned.section.bits.values()])
        if trained > bits:
            raise ValueError(
                f"exports: {planned.section.quantization!r} would round variant {variant.name!r}, trained with "
                f"{trained} bits, again; name the others in 'of', or export it as 'trained'"
            )

    def _exports(self, section: ExportSection, owner: str) -> bool:
        """Whether an export is for this model; what was trained is there for quantized variants only."""
        trained = any(v.name == owner and v.quantize for v in self.variants)
        return (section.of is None or owner in section.of) and (section.quantization != "trained" or trained)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> "Recipe":
        """Reads a TOML file, or a built-in recipe by name.

        Raises:
            MissingFileError: no such file and no such built-in recipe.
            InputError: not TOML, an unknown key (the nearest known one is named), or a bad value.
        """
        path = Path(source)
        if _is_file(path):
            return cls.parse(_read(path), str(path))
        if str(source) in builtin_recipes():
            text = (
                importlib.resources.files("tfopt")
                .joinpath("recipe", "builtin", f"{source}.toml")
                .read_text("utf-8")
            )
            return cls.parse(text, f"built-in recipe {source}")
        raise MissingFileError(
            f"no recipe file {str(source)!r}, and the built-in ones are {', '.join(builtin_recipes())}"
        )

    @classmethod
    def parse(cls, text: str, source: str = "recipe") -> "Recipe":
        """Reads a recipe from TOML text; see `load`."""
        try:
            return cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{source} is not TOML: {error}") from error
        except pydantic.ValidationError as error:
            raise InputError(f"{source}: {_explain(error, cls)}") from None

    def with_changes(self, changes: Mapping[str, Any]) -> "Recipe":
        """A copy with dotted keys replaced, for example ``{"data.train": "a.tsv"}``; None changes nothing."""
        values = self.to_dict()
        for key, value in changes.items():
            if value is None:
                continue
            *sections, last = key.split(".")
            target = values
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value
        if "model.kind" in changes:  # what was read before is not read now
            for key in {"folder", "file"} - {name.removeprefix("model.") for name in changes}:
                values["model"].pop(key, None)
        try:
            return type(self).model_validate(values)
        except pydantic.ValidationError as error:
            raise InputError(_explain(error, type(self))) from None

    def rate(self, section: TrainSection) -> float:
        """The learning rate of a training, as it is given or fits the kind of model."""
        return section.learning_rate or LEARNING_RATES[self.model.kind]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is unset is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """TOML that `parse` reads back to an equal recipe."""
        return tomli_w.dumps(self.to_dict())


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with tfopt."""
    folder = importlib.resources.files("tfopt").joinpath("recipe", "builtin")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for a file
        return False


def _read(path: Path) -> str:
    return read_text(path, "recipe", error=InputError)


_OF_UNION = re.compile(r"constrained-|function-|dict\[|list\[|float$|int$")  # kinds of values, not keys


def _explain(error: pydantic.ValidationError, root: type[BaseModel]) -> str:
    """The first problem in one line."""
    problems = error.errors(include_url=False)
    # A misspelt key is the cause where the right one is also reported missing.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(str(part) for part in first["loc"] if not _OF_UNION.match(str(part)))
    if first["type"] == "extra_forbidden":
        section = _section_at(root, first["loc"][:-1])
        known = [f.alias or name for name, f in section.model_fields.items()]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {place!r}; did you mean {near[0]!r}?"
    if first["type"] == "missing":
        return f"key {place!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    got = "" if "got" in message or isinstance(first["input"], dict) else f", got {first['input']!r}"
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        near = difflib.get_close_matches(first["input"], re.findall(r"'(\w+)'", message), n=1, cutoff=0.0)
        got += "".join(f"; did you mean {name!r}?" for name in near)
    return f"{place}: {message}{got}" if place else message


def _section_at(section: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    for part in location:
        if isinstance(part, str):
            fields = {f.alias or name: f for name, f in section.model_fields.items()}
            section = _model_in(fields[part].annotation)
    return section


def _model_in(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation
    return next(_model_in(a) for a in typing.get_args(annotation) if a is not type(None) and not isinstance(a, str))
