"""The sections of a recipe's variants: one for each technique, typed. Loads no TensorFlow."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Protocol

import pydantic
from pydantic import Field

from tfopt.compress.techniques import NAMES, Technique, chosen
from tfopt.numerics.masks import check_pattern_sparsity, parse_structure
from tfopt.quantization import QuantizeConfig
from tfopt.recipe.sections import Count, Section, Share, TrainSection
from tfopt.schedules import ConstantSparsity, PolynomialDecay, SparsitySchedule, check_sparsity

_ALL = 0.999  # a schedule stays below 1; its end stands for everything that is to go


class Material(Protocol):
    """What a run gives to the techniques of a variant.

    Attributes:
        steps: optimizer steps of its training.
        passes: of batches, or parts of them, through the model in its training.
    """

    steps: int
    passes: int

    def batches(self) -> Any:
        """Batches of (inputs, labels) of the training data."""

    def samples(self) -> dict[str, Any]:
        """Inputs by name, out of the training data."""

    def teacher(self) -> Any:
        """The trained baseline."""


class TechniqueSection(Section):
    """The settings of one technique."""

    def settings(self, material: Material) -> dict[str, Any]:
        """Fields of the technique's `Config`, for a run with this material."""
        return self.model_dump()


def _steps(section: Any, material: Material) -> tuple[int, int]:
    """The steps at which a section's shares of the training begin and end."""
    return round(section.begin * material.steps), max(round(section.end * material.steps), 1)


class PruneSection(TechniqueSection):
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

    def settings(self, material: Material) -> dict[str, Any]:
        begin, end = _steps(self, material)
        schedule: SparsitySchedule = ConstantSparsity(self.sparsity, begin, end, frequency=self.frequency)
        if self.schedule == "polynomial":
            schedule = PolynomialDecay(
                self.initial_sparsity, self.sparsity, begin, end_step=end, frequency=self.frequency
            )
        return {"schedule": schedule, **self.model_dump(include={"structure", "scope", "include", "exclude"})}


class ClusterSection(TechniqueSection):
    """Weight clustering during the training of a variant; see `tfopt.callbacks.WeightClustering`."""

    clusters: Annotated[int, Field(ge=2)] = 16
    include: list[str] | None = None
    exclude: list[str] | None = None


class QuantizeSection(TechniqueSection):
    """Quantization-aware training, as `tfopt.QuantizeConfig`; warmup and freeze are shares of a variant's steps."""

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    activations: Literal["none", "dynamic", "static"] = "dynamic"
    weight_granularity: Literal["tensor", "channel"] | int = "channel"
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    weight_scale: Literal["max", "mse", "learned"] = "max"
    activation_range: Literal["moving_average", "learned"] = "moving_average"
    bits: dict[str, int] = Field(default_factory=dict)
    table_bits: int | None = None
    warmup: Share = 0.0
    freeze: Share | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    strict: bool = False

    @pydantic.model_validator(mode="after")
    def _check(self) -> "QuantizeSection":
        QuantizeConfig(**self._of(1000))
        return self

    def settings(self, material: Material) -> dict[str, Any]:
        return self._of(material.passes)

    def _of(self, steps: int) -> dict[str, Any]:
        values = self.model_dump(exclude={"warmup", "freeze"})
        frozen = None if self.freeze is None else round(self.freeze * steps)
        return {**values, "warmup_steps": round(self.warmup * steps), "freeze_after": frozen}


class ShrinkSection(TechniqueSection):
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

    def settings(self, material: Material) -> dict[str, Any]:
        values = self.model_dump(exclude={"importance", "begin", "end", "frequency"})
        if self.when == "during":
            begin, end = _steps(self, material)
            return {**values, "schedule": PolynomialDecay(0.0, _ALL, begin, end_step=end, frequency=self.frequency)}
        return {**values, "data": material.batches() if self.importance == "first_order" else None}


class FactorizeSection(TechniqueSection):
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

    def settings(self, material: Material) -> dict[str, Any]:
        values = self.model_dump(exclude={"weighted"})
        return {**values, "representative": material.samples() if self.weighted else None}


class LoraSection(TechniqueSection):
    """Adapters that are trained beside frozen weights, as `tfopt.compress.lora.LoraConfig`."""

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0)] = 16.0
    include: list[str] | None = None
    exclude: list[str] | None = None
    whole: list[str] | None = None


class DistillSection(TechniqueSection):
    """What a variant learns from the baseline, as `tfopt.Distiller`; `cache` keeps its answers on disk."""

    logits: Annotated[float, Field(ge=0)] = 1.0
    labels: Annotated[float, Field(ge=0)] = 0.0
    hidden: Annotated[float, Field(ge=0)] = 0.0
    attention: Annotated[float, Field(ge=0)] = 0.0
    embeddings: Annotated[float, Field(ge=0)] = 0.0
    relations: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    cache: bool = False

    @property
    def looks_inside(self) -> bool:
        """Whether more than outputs count."""
        return any((self.hidden, self.attention, self.embeddings, self.relations))

    def settings(self, material: Material) -> dict[str, Any]:
        return {**self.model_dump(exclude={"cache"}), "teacher": material.teacher()}


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
        used = list(self.techniques())
        if not used and self.train.epochs:  # without both it is a copy, to be exported in another way
            raise ValueError(f"variant {self.name!r} needs one of the sections {', '.join(NAMES)}")
        names = [technique.name for technique, _ in used]
        if used and self.train.tensor_parallel > 1:
            raise ValueError(f"variant {self.name!r}: {names[0]} works on whole layers, tensor_parallel on parts")
        of_labels = [name for name in ("label_smoothing", "r_drop") if getattr(self.train, name)]
        if self.distill is not None and of_labels:
            raise ValueError(
                f"variant {self.name!r}: train.{of_labels[0]} is for labels, and distill learns answers"
            )
        inside = self.distill is not None and self.distill.looks_inside
        if inside and (self.train.stages > 1 or self.train.gradient_checkpointing):
            raise ValueError(
                f"variant {self.name!r}: distill looks at states between layers, which stages and "
                "gradient_checkpointing hide"
            )
        if self.train.stages > 1 and self.quantize is not None and self.quantize.activations == "static":
            raise ValueError(
                f"variant {self.name!r}: ranges that are observed and stages do not go together; set "
                "quantize.activations, or leave out stages"
            )
        if self.distill is not None and self.distill.cache and self.train.token_noise:
            raise ValueError(
                f"variant {self.name!r}: with train.token_noise a teacher answers other texts in every pass; set "
                "distill.cache = false"
            )
        for technique, section in used:
            stage = technique.stage(getattr(section, "when", None), self.train.epochs)
            spoiled = next((name for name in technique.spoils if name in names), None)
            if spoiled is not None and stage != "before":
                why = technique.why.format(other=spoiled, variant=self.name)
                raise ValueError(f"variant {self.name!r}: {why}")
        for technique, section in used:
            if technique.stage(getattr(section, "when", None), self.train.epochs) is None:
                raise ValueError(
                    f"variant {self.name!r}: section {technique.name} needs train.epochs of 1 or more, got 0"
                )
        return self

    def techniques(self) -> Iterator[tuple[Technique, Any]]:
        """Every technique of the variant with a section of it, in the order of the table."""
        return chosen({name: getattr(self, name) for name in NAMES})

    def leaves(self, what: str) -> str | None:
        """Name of the last technique that leaves a "grid" or "zeros", which training would take away; or None."""
        found = [technique.name for technique, _ in self.techniques() if technique.leaves == what]
        return found[-1] if found else None
