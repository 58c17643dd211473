"""Weight clustering: every kernel keeps few distinct values, which go on training.

Han et al., "Deep Compression", https://arxiv.org/abs/1510.00149. After each optimizer step the weights of a
cluster get their mean, which is what averaging their gradients would have done; the model stays plain.
"""

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.keras_api import Weight
from tfopt._keras.selection import Patterns, Selection, Skipped
from tfopt.compress.base import Option, Prepared, attach, attached, detach
from tfopt.errors import InputError
from tfopt.numerics.clusters import kmeans, nearest
from tfopt.numerics.masks import PRUNED_SHARE

_log = logging.getLogger(__name__)
_NAME = "cluster"
# As in tensorflow-model-optimization: kernels; lookup tables only when asked for.
_KERNELS = frozenset({"kernel", "depthwise_kernel", "pointwise_kernel"})


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """What `prepare` needs to know; see `WeightClustering` for the meaning of each field."""

    clusters: int = 16
    preserve_sparsity: bool = True
    include: Patterns = None
    exclude: Patterns = None

    def __post_init__(self) -> None:
        if isinstance(self.clusters, bool) or not isinstance(self.clusters, int) or self.clusters < 2:
            raise InputError(f"clusters must be 2 or more, got {self.clusters!r}")


Config = ClusterConfig


def prepare(model: Any, config: ClusterConfig) -> Prepared:
    """The model unchanged, with the callback that clusters it during `fit`."""
    keras_api.check_model(model)
    _, skipped = clusterable(model, config)
    return Prepared(model, [WeightClustering(**vars(config))], skipped)


def finish(model: Any) -> Any:
    """The model as it is: clustering leaves nothing behind but equal values."""
    detach(model, _NAME)
    return model


def is_attached(model: Any) -> bool:
    return _NAME in attached(model)


def at_once(model: Any, config: ClusterConfig) -> Any:
    """The model with its kernels clustered, in place."""
    _Clusters(model, config).apply()
    return model


def explain(model: Any) -> dict[str, str]:
    """Path of a matrix -> "clusterable", or the reason why it is left alone."""
    kernels, skipped = _kernels(model, ClusterConfig())
    return {**{w.path: "clusterable" for w in kernels}, **{s.path: s.reason for s in skipped}}


def options(model: Any) -> Iterator[Option]:
    """None: nothing of a file is smaller for it until it is packed, and bits do more there."""
    yield from ()


def cluster(
    model: Any,
    clusters: int = 16,
    *,
    preserve_sparsity: bool = True,
    include: Patterns = None,
    exclude: Patterns = None,
) -> Any:
    """Clusters the model's kernels once, in place, and returns the model; see `WeightClustering`."""
    keras_api.check_model(model)
    return at_once(model, ClusterConfig(clusters, preserve_sparsity, include, exclude=exclude))


def clusterable(model: Any, config: ClusterConfig) -> tuple[list[Weight], list[Skipped]]:
    """The kernels that clustering would touch, and the other matrices with the reason why not.

    Raises:
        InputError: nothing to cluster, or a kernel that is not finite (named).
    """
    chosen, skipped = _kernels(model, config)
    if not chosen:
        reasons = "; ".join(f"{s.path}: {s.reason}" for s in skipped[:3]) or "it has no matrices"
        raise InputError(f"nothing to cluster in model {model.name!r} ({reasons})")
    keras_api.check_finite(chosen)
    return chosen, skipped


def _kernels(model: Any, config: ClusterConfig) -> tuple[list[Weight], list[Skipped]]:
    selection = Selection(model, config.include, config.exclude)
    chosen, skipped = [], []
    for weight in selection.weights:
        if len(weight.variable.shape) < 2:
            continue
        reason = selection.reason_to_skip(weight)
        if reason is None and weight.name not in _KERNELS and not selection.included_by_name(weight):
            reason = f"{type(weight.layer).__name__}.{weight.name} is no kernel; name it in include to cluster it"
        if reason is None:
            chosen.append(weight)
        else:
            skipped.append(Skipped(weight.path, reason))
    return chosen, skipped


class _Clusters:
    """The assignment of every kernel's weights to its clusters."""

    def __init__(self, model: Any, config: ClusterConfig) -> None:
        self.model = model
        self._parts = []
        for weight in clusterable(model, config)[0]:
            value = keras_api.to_numpy(weight.variable).astype(np.float32)
            zeros = (value == 0) if config.preserve_sparsity and PRUNED_SHARE < (value == 0).mean() < 1 else None
            rest = value if zeros is None else value[~zeros]
            centers = kmeans(rest, config.clusters - (zeros is not None)) if rest.size else np.zeros(1, np.float32)
            index = nearest(value, centers)
            if zeros is not None:  # a cluster of its own, whose center does not move
                index[zeros] = len(centers)
            count = len(centers) + (zeros is not None)
            self._parts.append(
                (keras_api.tf_variable(weight.variable), tf.constant(index), count, zeros is not None)
            )

    def apply(self) -> None:
        """Gives every weight the mean of its cluster."""
        for variable, index, count, has_zeros in self._parts:
            value = tf.convert_to_tensor(keras_api.to_numpy(variable))
            means = tf.math.unsorted_segment_mean(value, index, count)
            if has_zeros:
                means = tf.concat([means[:-1], tf.zeros([1], means.dtype)], 0)
            variable.assign(tf.gather(means, index))


class WeightClustering(keras_api.Callback):
    """Keras callback that keeps few distinct values in each kernel while it trains, in either generation.

    The clusters are found when training begins; put it before callbacks that save the model.

    Args:
        clusters: distinct values of each kernel, 2 or more.
        preserve_sparsity: exact zeros of a pruned kernel are a cluster of their own and stay zero.
        include: name patterns, layer class names or classes; only what matches is clustered.
        exclude: likewise; what matches is left alone.

    Raises:
        InputError: a bad argument; when training begins, a kernel that is not finite.
    """

    def __init__(
        self,
        clusters: int = 16,
        *,
        preserve_sparsity: bool = True,
        include: Patterns = None,
        exclude: Patterns = None,
    ) -> None:
        self._config = ClusterConfig(clusters, preserve_sparsity, include, exclude=exclude)
        self._supports_tf_logs = True
        self._clusters: _Clusters | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._clusters = None
        attach(self.model, _NAME, self)
        if self.model.built:
            self._apply()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._apply()

    def on_train_end(self, logs: Any = None) -> None:
        self._apply()  # another callback may have restored earlier weights

    def _apply(self) -> None:
        if self._clusters is None:
            self._clusters = _Clusters(self.model, self._config)
        self._clusters.apply()
