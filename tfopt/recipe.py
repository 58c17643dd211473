"""Recipes: everything a run does, typed, in TOML. Loads no TensorFlow."""

import difflib
import importlib.resources
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pydantic
import tomli_w
from pydantic import BaseModel, ConfigDict, Field

from tfopt.errors import InputError, MissingFileError
from tfopt.numerics.masks import check_pattern_sparsity, parse_structure
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.schedules import check_sparsity

BASELINE = "baseline"
_FOLDERS = ("data", "plots")  # of a run, beside one per variant and artifact
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSection(_Section):
    """Where the texts come from and how they become token ids."""

    source: Literal["files", "stdlib_docs"] = "files"
    train: str | None = None
    validation: str | None = None
    text_column: str | None = None
    label_column: str = "label"
    max_length: Count = 128
    on_long: Literal["error", "truncate", "drop"] = "error"
    tokenizer: str | None = None
    vocab_size: Annotated[int, Field(ge=260)] = 8192
    shards: Count = 4


class ModelSection(_Section):
    """The classifier: read from a Hugging Face folder, or built fresh from these sizes."""

    kind: Literal["fresh", "pretrained"] = "fresh"
    folder: str | None = None
    hidden_size: Count = 128
    num_hidden_layers: Count = 2
    num_attention_heads: Count = 4
    intermediate_size: Count = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pooling: Literal["mean", "cls"] = "mean"

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> "ModelSection":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        return self


class TrainSection(_Section):
    """One training; see `tfopt.train.TrainConfig`."""

    epochs: Count = 3
    batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    jit_compile: bool = False


class PruneSection(_Section):
    """Magnitude pruning during the training of a variant; begin and end are shares of its steps."""

    sparsity: float
    initial_sparsity: float = 0.0
    schedule: Literal["polynomial", "constant"] = "polynomial"
    begin: Share = 0.0
    end: Share = 0.6
    frequency: Count = 100
    structure: str = "unstructured"
    scope: Literal["layer", "global"] = "layer"
    include: list[str] | None = None
    exclude: list[str] | None = None

    @pydantic.field_validator("sparsity", "initial_sparsity")
    @classmethod
    def _check_sparsity(cls, value: float, info: pydantic.ValidationInfo) -> float:
        return check_sparsity(value, info.field_name or "sparsity")

    @pydantic.model_validator(mode="after")
    def _check_order(self) -> "PruneSection":
        if self.begin >= self.end:
            raise ValueError(f"begin must come before end, got begin {self.begin:g}, end {self.end:g}")
        structure = parse_structure(self.structure)
        check_pattern_sparsity(structure, self.sparsity)
        if structure.kind == "n:m" and self.scope == "global":
            raise ValueError("scope 'global' cannot be combined with an n:m structure")
        return self


class ClusterSection(_Section):
    """Weight clustering during the training of a variant; see `tfopt.callbacks.WeightClustering`."""

    clusters: Annotated[int, Field(ge=2)] = 16
    include: list[str] | None = None
    exclude: list[str] | None = None


class QuantizeSection(_Section):
    """Quantization-aware training, as `tfopt.QuantizeConfig`; warmup and freeze are shares of a variant's steps."""

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    activations: Literal["none", "dynamic", "static"] = "dynamic"
    weight_granularity: Literal["tensor", "channel"] | int = "channel"
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_scale: Literal["max", "mse", "learned"] = "max"
    activation_range: Literal["moving_average", "learned"] = "moving_average"
    bits: dict[str, int] = {}
    table_bits: int | None = None
    warmup: Share = 0.0
    freeze: Share | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    strict: bool = False

    @pydantic.model_validator(mode="after")
    def _check(self) -> "QuantizeSection":
        self.config(1000)
        return self

    def config(self, steps: int) -> QuantizeConfig:
        """The technique's configuration for a training of so many steps."""
        values = self.model_dump(exclude={"warmup", "freeze"})
        frozen = None if self.freeze is None else round(self.freeze * steps)
        return QuantizeConfig(**values, warmup_steps=round(self.warmup * steps), freeze_after=frozen)


class VariantSection(_Section):
    """A model made from the trained baseline by compressing and training it on."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    prune: PruneSection | None = None
    cluster: ClusterSection | None = None
    quantize: QuantizeSection | None = None
    train: TrainSection = TrainSection()

    @pydantic.model_validator(mode="after")
    def _check_any(self) -> "VariantSection":
        if not (self.prune or self.cluster or self.quantize):
            raise ValueError(f"variant {self.name!r} needs a section prune, cluster or quantize")
        return self


class ExportSection(_Section):
    """One artifact of the baseline or of each named variant."""

    format: Literal["saved_model", "tflite"]
    quantization: str | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    smooth: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_bytes: Count | None = None
    max_loss: Annotated[float, Field(ge=0, le=100)] | None = None
    jit_compile: bool = False
    of: list[str] | None = None

    @property
    def suffix(self) -> str:
        """The part of the artifact's name after the variant's."""
        kind = "xla" if self.jit_compile else self.format
        mixed = "mixed" * ({self.max_bytes, self.max_loss} != {None})
        extras = ("gptq" * (self.rounding == "gptq"), "smooth" * bool(self.smooth), mixed)
        name = self.quantization or ""
        name = {"dynamic_int8": "int8", "int8": "static_int8"}.get(name, name)
        return "_".join(part for part in (kind, name, *extras) if part)

    @pydantic.field_validator("quantization")
    @classmethod
    def _check_quantization(cls, value: str | None) -> str | None:
        known = ("float16", *NAMED, "trained")
        if value is not None and value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown quantization {value!r}; did you mean {near[0]!r}?")
        return value

    @pydantic.model_validator(mode="after")
    def _check_kind(self) -> "ExportSection":
        if self.format == "saved_model" and self.quantization:
            raise ValueError(f"quantization {self.quantization!r} needs format 'tflite'")
        if self.format == "tflite" and self.jit_compile:
            raise ValueError("jit_compile needs format 'saved_model'")
        if self.max_bytes is not None and self.max_loss is not None:
            raise ValueError("give either max_bytes or max_loss")
        refined = self.rounding != "nearest" or {self.smooth, self.max_bytes, self.max_loss} != {None}
        if self.quantization not in NAMED and refined:
            raise ValueError("rounding, smooth, max_bytes and max_loss need an integer quantization after training")
        return self


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


class MeasureSection(_Section):
    """How artifacts are timed."""

    rounds: Count = 50
    threads: Count | None = None
    length: Count | None = None


class Recipe(_Section):
    """A whole run. `Recipe.load` reads one from TOML or by the name of a built-in recipe."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    generation: Literal["tf_keras", "keras"] = "tf_keras"
    seed: Annotated[int, Field(ge=0)] = 0
    replicas: Count = 1
    lengths: list[Count] | None = None
    data: DataSection = DataSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    variants: list[VariantSection] = []
    exports: list[ExportSection] = []
    measure: MeasureSection = MeasureSection()

    @pydantic.model_validator(mode="after")
    def _check_names(self) -> "Recipe":
        names = [BASELINE, *(v.name for v in self.variants)]
        taken = [*_FOLDERS, *names, *(a.name for a in self.artifacts()[1:])]
        double = next((n for n in taken if taken.count(n) > 1), None)
        if double:
            raise ValueError(f"two things would be named {double!r}: give each variant and export its own name")
        for export in self.exports:
            for name in export.of or []:
                if name not in names:
                    raise ValueError(f"exports.of names {name!r}, but the variants are {', '.join(names)}")
        for planned in self.artifacts():
            self._check_bits(planned)
        for export in self.exports:
            if export.quantization == "trained" and not any(a.section is export for a in self.artifacts()):
                raise ValueError("exports: quantization 'trained' needs a variant with a section quantize")
        longest = self.data.max_length
        if self.lengths and max(self.lengths) != longest:
            raise ValueError(f"lengths must end at data.max_length {longest}, got {self.lengths}")
        if (self.measure.length or 0) > longest:
            raise ValueError(f"measure.length must be at most data.max_length {longest}, got {self.measure.length}")
        return self

    def artifacts(self) -> "list[PlannedArtifact]":
        """What a run exports; the first is the float SavedModel that the rest is compared with."""
        planned = [PlannedArtifact(BASELINE, BASELINE, ExportSection(format="saved_model"), "baseline/saved_model")]
        for owner in (BASELINE, *(v.name for v in self.variants)):
            for section in self.exports:
                if self._exports(section, owner):
                    name = f"{owner}_{section.suffix}"
                    file = "model.tflite" if section.format == "tflite" else "saved_model"
                    planned.append(PlannedArtifact(name, owner, section, f"{name}/{file}"))
        return planned

    def _check_bits(self, planned: PlannedArtifact) -> None:
        """An export must not round a trained variant again, to fewer bits."""
        variant = next((v for v in self.variants if v.name == planned.owner), None)
        wanted = NAMED.get(planned.section.quantization or "")
        if variant is None or variant.quantize is None or wanted is None:
            return
        trained, bits = variant.quantize.weight_bits or 8, wanted.weight_bits or 8
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
        if path.is_file():
            return cls.parse(_read(path), str(path))
        if str(source) in builtin_recipes():
            text = importlib.resources.files("tfopt").joinpath("recipes", f"{source}.toml").read_text("utf-8")
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
        try:
            return type(self).model_validate(values)
        except pydantic.ValidationError as error:
            raise InputError(_explain(error, type(self))) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is unset is absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_toml(self) -> str:
        """TOML that `parse` reads back to an equal recipe."""
        return tomli_w.dumps(self.to_dict())


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with tfopt."""
    folder = importlib.resources.files("tfopt").joinpath("recipes")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text, so it is no recipe") from error


def _explain(error: pydantic.ValidationError, root: type[BaseModel]) -> str:
    """The first problem in one line."""
    problems = error.errors(include_url=False)
    # A misspelt key is the cause where the right one is also reported missing.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    place = ".".join(str(part) for part in first["loc"])
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
