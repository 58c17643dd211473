"""How to train: the typed configuration of one training."""

import dataclasses
import typing

from tfopt.errors import InputError
from tfopt.schedules import Clipping, OptimizerName, RateSchedule, check_choice


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data.
        batch_size: records per step, over all replicas together.
        optimizer: a name, see `optimizers.make_optimizer`.
        learning_rate: peak of the schedule.
        schedule: how the rate falls, see `schedules.Rate`.
        power: of the schedule "polynomial", above 0.
        layer_decay: what the learning rate of a layer is multiplied by in the layer below it, in (0, 1] (Howard and
            Ruder, https://arxiv.org/abs/1801.06146); tables are below the first layer.
        warmup: share of the steps in which the rate grows from near zero, in [0, 1).
        weight_decay: decoupled decay of matrices (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101).
        clip_norm: largest norm of the whole gradient, or 0 for no clipping.
        clip: what `clip_norm` bounds, if not that: "norm", that of each variable's gradient, or "value", single
            values.
        accumulate: parts in which a replica computes its rows of a batch, one after the other: memory of one, and
            the step of the whole batch.
        gradient_checkpointing: keep between the passes only what each layer of a transformer takes, and compute the
            rest again: memory of one layer for about a third more time.
        r_drop: weight of the divergence between two passes with other masks of dropout (R-Drop), 0 or more, for
            models that give logits of classes; takes twice the time.
        adversarial: how far texts are moved in embedding space to where the loss is worse, as a share of the length
            of their embeddings, 0 or more; half of the loss is that of moved texts. Takes twice the time.
        seed: of initial weights, order and dropout.
        jit_compile: compile the training step with XLA.
        ema: decay of a moving average of the weights by a step, which the model is evaluated with and ends with, in
            [0, 1); 0 for none. Masks and clusters of techniques are applied to it at the end alone.
        keep_best: whether the model ends with the weights of the pass whose validation loss was lowest. Techniques
            that go further with every pass, as a growing share of zeros, are applied to them at the end.
        patience: passes whose validation loss is no lower than the lowest before, one after the other, after which
            the training ends; None for no end.
        checkpoint_every: optimizer steps from one checkpoint to the next, or 0 for none.
        minutes: after which the training ends, wherever it is; what was trained until then counts. None for no end.
    """

    epochs: int = 3
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 5e-5
    schedule: RateSchedule = "cosine"
    power: float = 2.0
    layer_decay: float = 1.0
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    clip: Clipping = "global_norm"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    r_drop: float = 0.0
    adversarial: float = 0.0
    seed: int = 0
    jit_compile: bool = False
    ema: float = 0.0
    keep_best: bool = False
    patience: int | None = None
    checkpoint_every: int = 0
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name, known in (("optimizer", OptimizerName), ("schedule", RateSchedule), ("clip", Clipping)):
            check_choice(name, getattr(self, name), typing.get_args(known))
        for name in ("learning_rate", "power", "minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience must be 1 or more, got {self.patience}")
        if self.weight_decay < 0 or self.clip_norm < 0 or self.checkpoint_every < 0:
            raise InputError("weight_decay, clip_norm and checkpoint_every must be 0 or more")
