"""The sections of a recipe, typed. Loads no TensorFlow."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from tfopt.numerics.masks import check_pattern_sparsity, parse_structure
from tfopt.quantization import NAMED, QuantizeConfig
from tfopt.schedules import check_sparsity

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """What all sections share: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSection(Section):
    """Where the texts come from and how they become token ids.

    For a causal language model, a `.txt` file is one document and a row of a table is one; without `validation`
    the last tenth is held out, and `max_length` is the tokens of a training window. `packed` takes a `folder` with
    splits "train" and "validation" as they are, such as the `data` of another run. With `least_count`, tokens that
    the training texts have less often go, from a given tokenizer and from the table of the classifier with it.
    """

    source: Literal["files", "stdlib_docs", "packed"] = "files"
    folder: str | None = None
    train: str | None = None
    validation: str | None = None
    text_column: str | None = None
    label_column: str = "label"
    max_length: Count = 128
    on_long: Literal["error", "truncate", "drop"] = "error"
    tokenizer: str | None = None
    vocab_size: Annotated[int, Field(ge=260)] = 8192
    least_count: Count | None = None
    shards: Count = 4


class ModelSection(Section):
    """The model: read from a folder, a Keras model from a `file`, or built fresh from these sizes.

    `pooling` is for classifiers; `architecture`, `num_key_value_heads` and `tie_word_embeddings` are for causal
    language models.
    """

    kind: Literal["fresh", "pretrained", "keras"] = "fresh"
    folder: str | None = None
    file: str | None = None
    hidden_size: Count = 128
    num_hidden_layers: Count = 2
    num_attention_heads: Count = 4
    intermediate_size: Count = 512
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    architecture: Literal["llama", "gpt2"] = "llama"
    num_key_value_heads: Count | None = None
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _check_sizes(self) -> "ModelSection":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                "num_attention_heads must be a multiple of num_key_value_heads, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )
        return self


class TrainSection(Section):
    """One training; see `tfopt.train.TrainConfig`. With 0 epochs nothing is trained."""

    epochs: Annotated[int, Field(ge=0)] = 3
    batch_size: Count = 32
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    jit_compile: bool = False


class PruneSection(Section):
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


class ClusterSection(Section):
    """Weight clustering during the training of a variant; see `tfopt.callbacks.WeightClustering`."""

    clusters: Annotated[int, Field(ge=2)] = 16
    include: list[str] | None = None
    exclude: list[str] | None = None


class QuantizeSection(Section):
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


class ShrinkSection(Section):
    """Units and layers to take out, as for `tfopt.shrink`: before the training of a variant, or during it.

    During it, units become zero from the share `begin` of the steps to `end`, and are cut after it. Shares may be
    given by the layer that makes the units.
    """

    heads: Share | dict[str, Share] = 0.0
    neurons: Share | dict[str, Share] = 0.0
    channels: Share | dict[str, Share] = 0.0
    width: Share | dict[str, Share] = 0.0
    layers: int | list[int] | None = None
    pool_early: bool = False
    importance: Literal["magnitude", "first_order"] = "magnitude"
    when: Literal["before", "during"] = "before"
    begin: Share = 0.0
    end: Share = 0.5
    frequency: Count = 20
    include: list[str] | None = None
    exclude: list[str] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> "ShrinkSection":
        units = {kind: getattr(self, kind) for kind in ("heads", "neurons", "channels", "width")}
        for kind, share in units.items():
            most = max(share.values(), default=0.0) if isinstance(share, dict) else share
            if most >= 1:
                raise ValueError(f"{kind} must be in [0, 1), the share to take out, got {most:g}")
        shares = [share for one in units.values() for share in (one.values() if isinstance(one, dict) else [one])]
        if not any(shares) and not self.layers and not self.pool_early:
            raise ValueError("nothing to take out: give heads, neurons, channels, width, layers or pool_early")
        early = self.layers or self.pool_early or self.width or self.importance != "magnitude"
        if self.when == "during" and early:
            raise ValueError("layers, pool_early, width and first-order importance need when = 'before'")
        if self.begin >= self.end:
            raise ValueError(f"begin must come before end, got begin {self.begin:g}, end {self.end:g}")
        return self


class FactorizeSection(Section):
    """Matrices to split before the training of a variant, as for `tfopt.factorize`.

    `weighted` lets errors of products on training texts count instead of errors of matrices.
    """

    rank: Count | dict[str, Count] | None = None
    energy: Annotated[float, Field(gt=0, le=1)] | None = None
    max_bytes: Count | None = None
    weighted: bool = False
    include: list[str] | None = None
    exclude: list[str] | None = None

    @pydantic.model_validator(mode="after")
    def _check_one(self) -> "FactorizeSection":
        if [self.rank, self.energy, self.max_bytes].count(None) != 2:
            raise ValueError("give one of rank, energy and max_bytes")
        return self


class LoraSection(Section):
    """Adapters that are trained beside frozen weights, as `tfopt.compress.lora.LoraConfig`."""

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    include: list[str] | None = None
    exclude: list[str] | None = None
    whole: list[str] | None = None


class DistillSection(Section):
    """What a variant learns from the baseline, as `tfopt.Distiller`; `cache` keeps its answers on disk."""

    logits: Annotated[float, Field(ge=0)] = 1.0
    labels: Annotated[float, Field(ge=0)] = 0.0
    hidden: Annotated[float, Field(ge=0)] = 0.0
    attention: Annotated[float, Field(ge=0)] = 0.0
    embeddings: Annotated[float, Field(ge=0)] = 0.0
    relations: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    cache: bool = False


def _as_list(value: Any) -> Any:
    """One section, or several."""
    return [value] if isinstance(value, Mapping | PruneSection) else value


class VariantSection(Section):
    """A model made from the trained baseline, or from the variant `start`, by compressing and training it on.

    First units go and matrices are split, then everything else works while it is trained. Several `prune` sections
    give different weights different zeros.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    start: str = "baseline"
    shrink: ShrinkSection | None = None
    factorize: FactorizeSection | None = None
    distill: DistillSection | None = None
    lora: LoraSection | None = None
    prune: Annotated[list[PruneSection] | None, Field(min_length=1), pydantic.BeforeValidator(_as_list)] = None
    cluster: ClusterSection | None = None
    quantize: QuantizeSection | None = None
    train: TrainSection = TrainSection()

    @pydantic.model_validator(mode="after")
    def _check_any(self) -> "VariantSection":
        names = ("shrink", "factorize", "distill", "lora", "prune", "cluster", "quantize")
        used = [name for name in names if getattr(self, name)]
        if not used and self.train.epochs:  # without both it is a copy, to be exported in another way
            raise ValueError(f"variant {self.name!r} needs one of the sections {', '.join(names)}")
        during = self.shrink is not None and self.shrink.when == "during"
        other = next((k for k in ("factorize", "lora", "prune", "cluster", "quantize") if k in used), None)
        if during and other is not None:
            raise ValueError(
                f"variant {self.name!r}: units are cut after the training, which would undo what {other} does; "
                f"put {other} into a variant with start = {self.name!r}, or shrink with when = 'before'"
            )
        other = next((k for k in ("prune", "cluster", "quantize") if k in used), None)
        if self.lora is not None and other is not None:
            raise ValueError(
                f"variant {self.name!r}: with lora the weights are frozen, and its products would then leave what "
                f"{other} gave them; put {other} into a variant with start = {self.name!r}"
            )
        trained = next((k for k in ("distill", "lora", "quantize") if k in used), "shrink" if during else None)
        if not self.train.epochs and trained is not None:
            raise ValueError(f"variant {self.name!r}: section {trained} needs train.epochs of 1 or more, got 0")
        return self


class ExportSection(Section):
    """One artifact of the baseline or of each named variant."""

    format: Literal["saved_model", "tflite"]
    quantization: str | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    smooth: Annotated[float, Field(gt=0, lt=1)] | None = None
    bits: dict[str, int] = {}
    max_bytes: Count | None = None
    max_loss: Annotated[float, Field(ge=0, le=100)] | None = None
    jit_compile: bool = False
    of: list[str] | None = None

    @property
    def by_layer(self) -> bool:
        """Whether layers may have different bits."""
        return bool(self.bits) or self.max_bytes is not None or self.max_loss is not None

    @property
    def suffix(self) -> str:
        """The part of the artifact's name after the variant's."""
        kind = "xla" if self.jit_compile else self.format
        extras = ("gptq" * (self.rounding == "gptq"), "smooth" * bool(self.smooth), "mixed" * self.by_layer)
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
        if self.quantization not in NAMED and (refined or self.bits):
            raise ValueError(
                "rounding, smooth, bits, max_bytes and max_loss need an integer quantization after training"
            )
        if self.quantization is not None and self.quantization in NAMED:
            dataclasses.replace(NAMED[self.quantization], bits=self.bits)  # raises for bits that do not exist
        if self.bits and {self.max_bytes, self.max_loss} != {None}:
            raise ValueError("give either bits or a budget that chooses them")
        return self


class MeasureSection(Section):
    """How artifacts are timed; `text_tokens` of the held-out text give a causal language model's perplexity."""

    rounds: Count = 50
    threads: Count | None = None
    length: Count | None = None
    text_tokens: Annotated[int, Field(ge=2)] = 20_000
