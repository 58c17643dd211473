"""The sections of a recipe that are no techniques, typed. Loads no TensorFlow."""

import dataclasses
import difflib
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from tfopt._base.formats import WRITTEN, format_named
from tfopt._base.spread import Through, Workers
from tfopt.numerics.agreement import ACCEPTABLE
from tfopt.quantization import NAMED
from tfopt.schedules import Clipping, OptimizerName, RateSchedule, Tracker

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
_OF_WHOLE_WEIGHTS = ("adafactor", "lamb", "muon")  # optimizers with statistics of whole weights
# Kind of model -> the peak of the schedule: what was trained for long is changed with care, as BERT's authors tell
# (https://arxiv.org/abs/1810.04805, appendix A.3); of somebody's own model it is not known.
LEARNING_RATES = {"fresh": 1e-3, "pretrained": 5e-5, "keras": 2e-4}


class Section(BaseModel):
    """What all sections share: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class DataSection(Section):
    """Where the texts come from and how they become token ids.

    For a causal language model, a `.txt` file is one document and a row of a table is one; without `validation`
    the last tenth is held out, and `max_length` is the tokens of a training window. `packed` takes a `folder` with
    splits "train" and "validation" as they are, such as the `data` of another run. With `least_count`, tokens that
    the training texts have less often go, from a given tokenizer and from the table of the classifier with it.
    `mix` are further training files with a weight for each, where `train` has 1: how often the next record of a
    training comes from there. A pass has as many records as all of them; a small source comes again in it.
    """

    source: Literal["files", "stdlib_docs", "packed"] = "files"
    folder: str | None = None
    train: str | None = None
    mix: dict[str, Annotated[float, Field(gt=0)]] = {}
    validation: str | None = None
    text_column: str | None = None
    label_column: str = "label"
    label_columns: list[str] | None = None
    max_length: Count = 128
    on_long: Literal["error", "truncate", "drop"] = "error"
    tokenizer: str | None = None
    vocab_size: Annotated[int, Field(ge=260)] = 8192
    least_count: Count | None = None
    shards: Count = 4


class ModelSection(Section):
    """The model: read from a folder, a Keras model from a `file`, or built fresh from these sizes.

    `inputs` are what a Keras model calls its inputs, by our names, `{input_ids = "tokens", attention_mask = "m"}`.
    `pooling` is for classifiers; `architecture`, `num_key_value_heads` and `tie_word_embeddings` are for causal
    language models.
    """

    kind: Literal["fresh", "pretrained", "keras"] = "fresh"
    folder: str | None = None
    file: str | None = None
    inputs: dict[Literal["input_ids", "attention_mask"], str] | None = None
    hidden_size: Count = 128
    num_hidden_layers: Count = 2
    num_attention_heads: Count = 4
    intermediate_size: Count = 512
    shared_layers: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    pooling: Literal["mean", "cls", "pooler"] = "mean"
    architecture: Literal["llama", "gpt2"] = "llama"
    num_key_value_heads: Count | None = None
    tie_word_embeddings: bool = True

    @pydantic.model_validator(mode="after")
    def _check_inputs(self) -> "ModelSection":
        if self.inputs is not None and (self.kind != "keras" or "input_ids" not in self.inputs):
            raise ValueError(f"inputs name those of a model of kind 'keras', input_ids too, got {self.inputs}")
        return self

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
    """One training; see `tfopt.train.TrainConfig`. With 0 epochs nothing is trained.

    Without `learning_rate` it is that of the kind of model, `LEARNING_RATES`. With `minutes` it ends when they are
    over. With `stages` the layers of a transformer are spread over so many devices, which work on `micro_batches`
    of each batch in turns; with `tensor_parallel` its heads and neurons are; with `data_parallel` as well there are
    so many of these, each for its share of a batch. With `label_smoothing` the classes share that part of each
    label, in the losses of validation too. With `token_noise` that share of the tokens of training texts is
    unknown or wrong, other ones in every pass. With `tensorboard` the folder "tensorboard" of the run has its
    figures; `trackers` are told them as well.
    """

    epochs: Annotated[int, Field(ge=0)] = 3
    batch_size: Count = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    schedule: RateSchedule = "cosine"
    power: Annotated[float, Field(gt=0)] = 2.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(ge=0)] = 1.0
    clip: Clipping = "global_norm"
    accumulate: Count = 1
    gradient_checkpointing: bool = False
    stages: Count = 1
    micro_batches: Count = 8
    tensor_parallel: Count = 1
    data_parallel: Count = 1
    jit_compile: bool = False
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    keep_best: bool = False
    patience: Count | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    r_drop: Annotated[float, Field(ge=0)] = 0.0
    adversarial: Annotated[float, Field(ge=0)] = 0.0
    token_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0
    tensorboard: bool = False
    trackers: list[Tracker] = []
    checkpoint_every: Annotated[int, Field(ge=0)] = 200
    minutes: Annotated[float, Field(gt=0)] | None = None

    @pydantic.model_validator(mode="after")
    def _check_devices(self) -> "TrainSection":
        several = [name for name in ("stages", "tensor_parallel") if getattr(self, name) > 1]
        if len(several) > 1 or (self.data_parallel > 1 and not several):
            raise ValueError("give stages or tensor_parallel, one of them; data_parallel alone is replicas")
        others = [name for name in ("gradient_checkpointing", "jit_compile") if getattr(self, name)]
        others += ["accumulate"] * (self.accumulate > 1)
        twice = [name for name in ("r_drop", "adversarial") if getattr(self, name)]
        if len(twice) > 1 or (twice and self.gradient_checkpointing):
            raise ValueError("give one of r_drop, adversarial and gradient_checkpointing")
        others += twice
        if several and others:
            raise ValueError(f"{several[0]} divides the work of a batch by itself: leave out {', '.join(others)}")
        whole: list[str] = [self.optimizer] if self.optimizer in _OF_WHOLE_WEIGHTS else []
        whole += ["clip 'norm'"] * (self.clip == "norm") + ["layer_decay"] * (self.layer_decay < 1)
        if self.tensor_parallel > 1 and whole:
            raise ValueError(f"tensor_parallel divides weights, and {', '.join(whole)} needs them whole")
        return self


class ExportSection(Section):
    """One artifact of the baseline or of each named variant."""

    format: Literal["saved_model", "tflite", "litertlm"]
    quantization: str | None = None
    rounding: Literal["nearest", "gptq"] = "nearest"
    smooth: Annotated[float, Field(gt=0, lt=1)] | None = None
    rotate: bool = False
    bits: dict[str, int] = {}
    max_bytes: Count | None = None
    max_loss: Annotated[float, Field(ge=0, le=100)] | None = None
    jit_compile: bool = False
    accept: list[str] = []
    of: list[str] | None = None

    @property
    def by_layer(self) -> bool:
        """Whether layers may have different bits."""
        return bool(self.bits) or self.max_bytes is not None or self.max_loss is not None

    @property
    def suffix(self) -> str:
        """The part of the artifact's name after the variant's."""
        kind = "xla" if self.jit_compile else self.format
        extras = (
            "rotated" * self.rotate, "gptq" * (self.rounding == "gptq"), "smooth" * bool(self.smooth),
            "mixed" * self.by_layer,
        )  # fmt: skip
        return "_".join(part for part in (kind, self.quantization, *extras) if part)

    @pydantic.field_validator("quantization")
    @classmethod
    def _check_quantization(cls, value: str | None) -> str | None:
        known = [name for format in WRITTEN for name in format.quantizations]
        if value is not None and value not in known:
            near = difflib.get_close_matches(value, known, n=1, cutoff=0.0)
            raise ValueError(f"unknown quantization {value!r}; did you mean {near[0]!r}?")
        return value

    @pydantic.field_validator("accept")
    @classmethod
    def _check_accept(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in ACCEPTABLE:
                raise ValueError(f"unknown check {name!r}; those that may be accepted are {', '.join(ACCEPTABLE)}")
        return value

    @pydantic.model_validator(mode="after")
    def _check_kind(self) -> "ExportSection":
        kind = format_named(self.format)
        if self.quantization is not None and self.quantization not in kind.quantizations:
            others = ", ".join(repr(f.name) for f in WRITTEN if self.quantization in f.quantizations)
            raise ValueError(f"quantization {self.quantization!r} needs format {others}")
        if self.jit_compile and not kind.compiles:
            others = ", ".join(repr(f.name) for f in WRITTEN if f.compiles)
            raise ValueError(f"jit_compile needs format {others}")
        if self.max_bytes is not None and self.max_loss is not None:
            raise ValueError("give either max_bytes or max_loss")
        refined = (
            self.rotate or self.rounding != "nearest" or {self.smooth, self.max_bytes, self.max_loss} != {None}
        )
        if self.quantization not in NAMED and (refined or self.bits):
            raise ValueError(
                "rounding, smooth, rotate, bits, max_bytes and max_loss need an integer quantization after training"
            )
        if self.rotate and {self.max_bytes, self.max_loss} != {None}:
            raise ValueError("give either rotate or a budget: bits are chosen for channels as they are")
        if self.quantization is not None and self.quantization in NAMED:
            dataclasses.replace(NAMED[self.quantization], bits=self.bits)  # raises for bits that do not exist
        if self.bits and {self.max_bytes, self.max_loss} != {None}:
            raise ValueError("give either bits or a budget that chooses them")
        return self


class WorkersSection(Section):
    """Who keeps a teacher's answers, finds ranges for static quantization and answers held-out data.

    `count` processes, each with the model or artifact; `through` "ray" as actors of Ray Data.
    """

    count: Count = 1
    through: Through = "processes"

    def made(self) -> Workers:
        return Workers(self.count, self.through)


class MeasureSection(Section):
    """How artifacts are timed: `rounds` calls of each in turns, and `seconds` of each for the throughput.

    Without `memory` no process is started for each artifact to find its peak memory, which takes some seconds.
    Without `length`, encoders are timed on the exported length that holds nine of ten texts.
    `text_tokens` of the held-out text give a causal language model's perplexity.
    """

    rounds: Count = 50
    seconds: Annotated[float, Field(gt=0)] = 1.0
    memory: bool = True
    threads: Count | None = None
    length: Count | None = None
    text_tokens: Annotated[int, Field(ge=2)] = 20_000
