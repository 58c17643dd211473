"""Structured pruning: heads, neurons, channels and layers are taken out, and the model really is smaller.

Importance is the magnitude of a unit's weights (Li et al., https://arxiv.org/abs/1608.08710) or the first-order
estimate of what the loss would change without it (Molchanov et al., https://arxiv.org/abs/1906.10771; for heads
Michel et al., https://arxiv.org/abs/1905.10650). While a model trains, whole units become zero and stay so;
`finish` then cuts them out, which changes no output.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.selection import Patterns, Selection, Skipped
from tfopt.compress.base import Option, Prepared, attach, attached, detach
from tfopt.errors import InputError, TfoptError
from tfopt.numerics.masked_assign import MaskedAssign
from tfopt.schedules import Follower, PolynomialDecay, SparsitySchedule
from tfopt.structure.blocks import blocks_of
from tfopt.structure.cut import Kept, cut, pooled_early, without_layers
from tfopt.structure.early_pooling import cheaper, early_pooling
from tfopt.structure.groups import Group, Structure, check_names, of_class, structure_of, why_none
from tfopt.structure.importance import importance, magnitude
from tfopt.structure.masked import alive, clear, compare, touched
from tfopt.structure.nodes import is_functional

_log = logging.getLogger(__name__)
_NAME = "shrink"
KINDS = ("heads", "neurons", "channels", "width")
# Shares of units that a search tries.
SHARES = dict.fromkeys(KINDS[:3], (0.25, 0.5, 0.75)) | {"width": (0.125, 0.25, 0.5)}
_GRADUAL = KINDS[:3]  # a norm would see the zeros of a width that is not cut yet


@dataclasses.dataclass(frozen=True)
class ShrinkConfig:
    """What to take out.

    Attributes:
        heads, neurons, channels: share of each group's units, in [0, 1), or by the name of the layer that makes
            them; at least one unit stays.
        width: likewise of the units of the residual stream, or wherever else norms compute statistics; not for
            training, since a norm over zeros is another one than a norm without them.
        schedule: for training: step -> share of that share, so that units go gradually; by default all at once.
        include, exclude: name patterns, layer class names or classes of the layers that make the units.
        layers, pool_early, data, loss: before training, as for `shrink`.
        when: "during" training, or "before" it.
    """

    heads: float | Mapping[str, float] = 0.0
    neurons: float | Mapping[str, float] = 0.0
    channels: float | Mapping[str, float] = 0.0
    width: float | Mapping[str, float] = 0.0
    schedule: SparsitySchedule | None = None
    include: Patterns = None
    exclude: Patterns = None
    layers: int | Sequence[int] | None = None
    pool_early: bool = False
    data: Iterable[Any] | None = dataclasses.field(default=None, repr=False)
    loss: Any = None
    when: Literal["before", "during"] = "during"

    def __post_init__(self) -> None:
        for kind in KINDS:
            given = getattr(self, kind)
            for share in given.values() if isinstance(given, Mapping) else [given]:
                if not 0 <= share < 1:
                    raise InputError(f"{kind} must be in [0, 1), the share to take out, got {share}")

    def share(self, group: Group) -> float:
        """The share of a group's units to take out."""
        given = getattr(self, group.kind) if group.kind in KINDS else 0.0
        return float(given.get(group.name, 0.0) if isinstance(given, Mapping) else given)


Config = ShrinkConfig


def shrink(
    model: Any,
    *,
    heads: float | Mapping[str, float] = 0.0,
    neurons: float | Mapping[str, float] = 0.0,
    channels: float | Mapping[str, float] = 0.0,
    width: float | Mapping[str, float] = 0.0,
    layers: int | Sequence[int] | None = None,
    pool_early: bool = False,
    data: Iterable[Any] | None = None,
    loss: Any = None,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Any:
    """Takes units out at once.

    Args:
        model: a built functional model of either generation; it is not changed.
        heads: share of the attention heads of each layer to take out, in [0, 1), or shares by the name of the
            layer that makes them. Heads that share keys and values go together.
        neurons: share of the units between dense layers.
        channels: share of the channels of convolutions.
        width: share of the units of the residual stream, or wherever else norms compute statistics; the norms are
            then over those that stay.
        layers: how many transformer layers to take out, evenly spread, or which ones, counted from 0.
        pool_early: whether the last layer computes one token: what pools its output moves to before its queries,
            while keys and values stay those of all tokens. The same outputs where one token is taken; where a
            mean or maximum is, the model has to be trained on.
        data: batches of (inputs, labels) for first-order importance; magnitudes count without it.
        loss: (labels, outputs) -> scalar; by default cross-entropy of logits with integer labels.
        include: name patterns, layer class names or classes; only units that such layers make are taken out.
        exclude: likewise; units of such layers stay.

    Returns:
        A new model; of its own class, such as KerasHub's, where that has a configuration for it. Layers go first,
        then the pooling; the outputs are those of what is left with the units' weights at zero, which was checked.

    Raises:
        InputError: a share out of range, no such units, layers that do not exist, a model that is not functional.
        VerificationError: the outputs differ; nothing is returned.

    >>> import tf_keras, tfopt
    >>> layers = [tf_keras.layers.Input((4,)), tf_keras.layers.Dense(8), tf_keras.layers.Dense(2)]
    >>> tfopt.shrink(tf_keras.Sequential(layers), neurons=0.5).count_params()
    30
    """
    config = ShrinkConfig(
        heads, neurons, channels, width=width, include=include, exclude=exclude, layers=layers,
        pool_early=pool_early, data=data, loss=loss, when="before",
    )  # fmt: skip
    return _before(model, config)


def _before(model: Any, config: ShrinkConfig) -> Any:
    keras_api.check_finite(keras_api.weights(keras_api.check_model(model)))
    removed = config.layers or 0
    if removed != 0:
        model = without_layers(model, removed)
        if not config.pool_early and not any(getattr(config, kind) for kind in KINDS):
            return model
    structure = structure_of(model)
    if config.pool_early:
        model = pooled_early(model, early_pooling(model, structure))
        structure = structure_of(model)
    chosen = _chosen(model, structure, config)
    if not chosen:
        if removed == 0 and not config.pool_early:
            raise InputError("nothing to take out: give heads, neurons, channels, width, layers or pool_early")
        return model
    scores = importance(model, structure, config.data, loss=config.loss)
    return _checked(model, structure, {g.name: _best(scores[g.name], g.count(config.share(g))) for g in chosen})


def prepare(model: Any, config: ShrinkConfig) -> Prepared:
    """A smaller model; or the model unchanged, with the callback that zeroes units during `fit`."""
    keras_api.check_finite(keras_api.weights(keras_api.check_model(model)))
    if config.when == "before":
        return Prepared(_before(model, config), [])
    _check_gradual(config)
    structure = structure_of(model)
    groups = _chosen(model, structure, config)
    if not groups:
        raise InputError("nothing to take out: give heads, neurons or channels")
    _try_cut(model, structure, groups, config=config)
    chosen = {g.name for g in groups}
    others = [g.name for g in structure.groups if g.kind in _GRADUAL and g.name not in chosen]
    skipped = [Skipped(name, "not chosen") for name in others]
    return Prepared(model, [StructuredPruning(config)], skipped)


def finish(model: Any, *, include: Patterns = None, exclude: Patterns = None) -> Any:
    """A new, smaller model without the units that training left at zero; outputs stay the same.

    Args:
        model: a built functional model of either generation; it is not changed.
        include, exclude: as for `shrink`; by default those of the training.

    Raises:
        InputError: no unit is zero, or all units of a group are.
    """
    config: ShrinkConfig | None = attached(model).get(_NAME)
    if config is not None and include is None and exclude is None:
        include, exclude = config.include, config.exclude
    structure = structure_of(keras_api.check_model(model))
    selection = Selection(model, include, exclude)
    by_path = {w.path: w for w in selection.weights}
    values = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    kept: dict[str, np.ndarray] = {}
    for group in structure.groups:
        if group.kind not in _GRADUAL or not _is_meant(group, selection, by_path):
            continue
        left = np.flatnonzero(alive(group, values))
        if not len(left):
            raise InputError(f"all {group.units} {group.kind} of {group.name!r} are zero; one has to stay")
        if len(left) < group.units:
            kept[group.name] = left
    if not kept:
        raise InputError(
            f"model {model.name!r} has no units of zeros to cut; train it with StructuredPruning first"
        )
    made = _checked(model, structure, kept)
    for technique, what in attached(model).items():
        if technique != _NAME:
            attach(made, technique, what)
    detach(model, _NAME)
    return made


def is_attached(model: Any) -> bool:
    return _NAME in attached(model)


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> the units that can be taken out of it."""
    if not is_functional(model):
        return {}
    found: dict[str, list[str]] = {}
    for group in structure_of(model).groups:
        for path in {place.path for place in group.slices}:
            found.setdefault(path, []).append(f"{group.units} {group.kind}")
    return {path: ", ".join(units) for path, units in found.items()}


def options(model: Any) -> Iterator[Option]:
    """Layers, early pooling, and shares of the units of each group; of models whose graph is known."""
    if not is_functional(model):
        return
    structure = structure_of(model)
    matrices = {w.path: w for w in keras_api.weights(model) if len(w.variable.shape) > 1}
    blocks = blocks_of(model, structure)
    for number, block in enumerate(blocks if len(blocks) > 1 else []):
        inside = [path for path in matrices if any(path.startswith(f"{name}/") for name in block.names)]
        yield Option("layer", str(number), 1, shares=dict.fromkeys(inside, 0.0))
    with contextlib.suppress(TfoptError):  # no layers, none whose tokens are pooled, or one that needs them all
        found = early_pooling(model, structure)
        pooled_early(model, found)
        paths = [p for p in cheaper(model, found) if p in matrices and matrices[p].name != "embeddings"]
        yield Option("pooling", str(len(blocks) - 1), 1, shares=dict.fromkeys(paths, 1.0), computes=False)
    for group in structure.groups:
        if group.kind != "width" or _has_smaller_width(model, group):
            yield from _shares(group)


def _shares(group: Group) -> Iterator[Option]:
    for share in SHARES.get(group.kind, ()):
        gone = group.count(share)
        if gone and group.alone:
            left: dict[str, float] = {}
            for place in group.slices:  # a square matrix may have the units on both axes
                left[place.path] = left.get(place.path, 1.0) * (1 - gone / group.units)
            yield Option(group.kind, group.name, share, shares=left)


def _has_smaller_width(model: Any, group: Group) -> bool:
    """Whether a smaller width can be made and computes what it should; operations over the width may not."""
    try:
        shrink(model, width={group.name: 1 / group.units})
    except TfoptError:
        return False
    return True


class StructuredPruning(keras_api.Callback):
    """Keras callback that sets the least important units to zero while a model trains; `finish` cuts them out.

    Importance is the magnitude of a unit's weights at the time. Units that are zero stay so, and more follow as the
    schedule goes on.

    Args:
        config: what to take out; its schedule gives the share of it by step, counted as by `MagnitudePruning`.
        resume: count the optimizer's earlier steps as well, to go on with a training that was interrupted.
    """

    def __init__(self, config: ShrinkConfig, *, resume: bool = False) -> None:
        _check_gradual(config)
        self._config = config
        self._schedule = config.schedule or PolynomialDecay(0.0, 0.999, 0, end_step=1, frequency=1)  # stays below 1
        self._resume = resume
        self._supports_tf_logs = True
        self._groups: list[Group] = []
        self._assign: MaskedAssign | None = None
        self._owner: Any = None
        self._follower = Follower(self._schedule, resume)

    def go_on(self) -> None:
        """The training that begins goes on with one that was cut off: as `resume` says."""
        self._resume, self._owner = True, None

    def on_train_begin(self, logs: Any = None) -> None:
        attach(self.model, _NAME, self._config)
        if self._owner is not self.model:
            self._owner = self.model
            structure = structure_of(self.model)
            self._groups = _chosen(self.model, structure, self._config)
            if not all(group.alone for group in self._groups):
                _try_cut(self.model, structure, self._groups, config=self._config)
            self._weights = [w for w in keras_api.weights(self.model) if w.path in touched(self._groups)]
            self._assign = MaskedAssign([keras_api.tf_variable(w.variable) for w in self._weights])
            self._follower = Follower(self._schedule, self._resume)
        self._follower.begin(keras_api.learning_step(self.model))
        self._catch_up()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._catch_up()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if isinstance(logs, dict):
            values = self._values()
            gone = sum(int((~alive(g, values)).sum()) for g in self._groups)
            logs["units_cut"] = gone / sum(g.units for g in self._groups)

    def on_train_end(self, logs: Any = None) -> None:
        if self._assign is None:
            return
        self._assign()  # another callback may have restored earlier weights
        target = self._follower.target
        if target is not None and (self._follower.reached or 0.0) < target:
            _log.warning(
                "training ended at step %d, before all units were taken out: the schedule was at %.4f of %.4f",
                self._follower.done, self._follower.reached or 0.0, target,
            )  # fmt: skip

    def _catch_up(self) -> None:
        assert self._assign is not None
        share = self._follower.due(keras_api.learning_step(self.model))
        if share is not None:
            # What the schedule ends at stands for everything that is to go.
            self._update(min(1.0, share / (self._follower.target or 1.0)))
        self._assign()

    def _values(self) -> dict[str, np.ndarray]:
        return {w.path: keras_api.to_numpy(w.variable) for w in self._weights}

    def _update(self, share: float) -> None:
        """New masks from the weights as they are now."""
        values = self._values()
        masks = {path: np.ones(value.shape, bool) for path, value in values.items()}
        for group in self._groups:
            scores = magnitude(group, values)
            count = round(share * group.count(self._config.share(group)))
            gone = np.argsort(scores, kind="stable")[:count]
            for place in group.slices:
                clear(masks[place.path], place, group.units, gone=gone)
        assert self._assign is not None
        self._assign.set_masks([masks[w.path] for w in self._weights])


def _try_cut(model: Any, structure: Structure, groups: list[Group], *, config: ShrinkConfig) -> None:
    """What cannot be cut shows now, not after the training."""
    cut(model, structure, Kept({g.name: np.arange(g.units - g.count(config.share(g))) for g in groups}))


def _check_gradual(config: ShrinkConfig) -> None:
    if config.width:
        raise InputError("width cannot go while a model trains: norms would see its zeros; take it out before")


def _best(scores: np.ndarray, gone: int) -> np.ndarray:
    return np.sort(np.argsort(scores, kind="stable")[gone:])


def _chosen(model: Any, structure: Structure, config: ShrinkConfig) -> list[Group]:
    """The groups that units are to be taken from."""
    selection = Selection(model, config.include, config.exclude)
    by_path = {w.path: w for w in selection.weights}
    found = []
    for kind in KINDS:
        share = getattr(config, kind)
        groups = [g for g in structure.groups if g.kind == kind]
        if isinstance(share, Mapping):
            check_names(kind, share, groups)
        if not share:
            continue
        meant = [g for g in groups if config.share(g) and _is_meant(g, selection, by_path)]
        if not meant:
            raise InputError(why_none(kind, groups, structure))
        if not any(g.count(config.share(g)) for g in meant):
            most = max(g.units for g in meant)
            raise InputError(
                f"{kind}={share} takes none of {most} {kind}; the smallest share that takes one is {1 / most:.3g}"
            )
        found += meant
    by_name = any(isinstance(getattr(config, kind), Mapping) for kind in KINDS)
    return found if by_name else of_class(model, found, {g.name: g.count(config.share(g)) for g in found})


def _is_meant(group: Group, selection: Selection, weights: Mapping[str, Any]) -> bool:
    """Whether all layers that make the units are meant."""
    makers = (weights[s.path] for s in group.slices if not s.consumed)
    return all(selection.reason_to_skip(weight) is None for weight in makers)


def _checked(model: Any, structure: Structure, kept: Mapping[str, np.ndarray]) -> Any:
    """The smaller model, compared with the masked one."""
    made = cut(model, structure, Kept(kept))
    compare(model, structure, kept, made=made)
    return made
