"""How much memory a training will take, told before its first step."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfopt._base.memory import free_memory_bytes, memory_bytes
from tfopt._keras import keras_api
from tfopt.train.config import TrainConfig
from tfopt.train.live_tensors import peak_bytes
from tfopt.train.step import TrainStep

# What the runtime keeps of an operation that computes gradients, for the step it is a part of: measured with
# TensorFlow 2.21 (`benchmarks/training_memory.py`). A loop over parts holds the operations once more.
_BYTES_OF_OPERATION, _BYTES_IN_LOOP = 40_000, 20_000
_WASTE = 1.1  # of tensors, which do not lie side by side, and of which some wait for others; measured there too
# Of smaller models nobody asks, and to look takes seconds.
_LEAST_WEIGHTS = 1_000_000
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training takes on the machine it runs on.

    Attributes:
        held: by the process already, with weights and the optimizer's state.
        tensors: alive at once in a step: activations, gradients and what is made of them.
        copies: of weights that the training keeps.
        runtime: of the graph.
    """

    held: int
    tensors: int
    copies: int
    runtime: int

    @property
    def peak(self) -> int:
        """The most that the process holds."""
        return self.held + self.tensors + self.copies + self.runtime


def estimate_memory(
    step: TrainStep, batch: Any, *, config: TrainConfig, strategy: Any = None, keeps: Sequence[Any] = ()
) -> MemoryEstimate:
    """Estimates the peak memory of a training from the graph of its step: nothing is computed.

    Args:
        step: of the training.
        batch: specifications of a batch, whose first sizes are not looked at.
        config: of the training.
        strategy: of the model, or None.
        keeps: variables of which the training keeps copies besides.
    """
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    rows = config.batch_size // (replicas * config.accumulate)
    here = 1 if strategy is None else len(strategy.extended.worker_devices)
    given = tf.nest.map_structure(lambda t: tf.TensorSpec([rows, *t.shape[1:]], t.dtype), batch)
    graph = tf.function(step.one_part, autograph=False).get_concrete_function(*given).graph
    weights = sum(map(_bytes_of, step.variables))
    return MemoryEstimate(
        held=memory_bytes() or 0,
        tensors=here * (round(_WASTE * peak_bytes(graph)) + (2 * weights if config.accumulate > 1 else 0)),
        copies=weights + sum(map(_bytes_of, keeps)),  # of weights by the last good step
        runtime=len(graph.get_operations()) * (_BYTES_OF_OPERATION + (config.accumulate > 1) * _BYTES_IN_LOOP),
    )


def tell_memory(
    title: str,
    step: TrainStep,
    data: Callable[[], tf.data.Dataset],
    *,
    config: TrainConfig,
    strategy: Any,
    keeps: Sequence[Any],
    longest: int | None,
) -> None:
    """Says how much a training of a larger model will take, and warns where there is less.

    Args:
        title: of the training.
        step, config, strategy, keeps: as for `estimate_memory`.
        data: gives its batches.
        longest: what stands for sizes that the data does not tell; None for those of the first batch.
    """
    if sum(int(keras_api.tf_variable(v).shape.num_elements()) for v in step.variables) < _LEAST_WEIGHTS:
        return
    try:
        batch = _batch_of(data(), longest, inputs=step.inputs)
        found = estimate_memory(step, batch, config=config, strategy=strategy, keeps=keeps)
    except Exception as error:  # noqa: BLE001 - whatever somebody's data or layers raise, the training may go well
        _log.info("%s: what memory it needs is not known (%s)", title, str(error).partition("\n")[0][:200])
        return
    _log.info("%s needs about %.1f GB of memory", title, found.peak / 1e9)
    free = None if tf.config.list_physical_devices("GPU") else free_memory_bytes()
    if free is not None and found.peak - found.held > free:
        _log.warning(
            "%s needs about %.1f GB of memory, and %.1f GB are free; set gradient_checkpointing, accumulate or a "
            "mixed precision, or take a smaller batch",
            title, found.peak / 1e9, (found.held + free) / 1e9,
        )  # fmt: skip


def _batch_of(data: tf.data.Dataset, longest: int | None, *, inputs: Sequence[Any]) -> Any:
    """Specifications of the largest batch, of a model with these inputs."""
    spec = data.element_spec
    fixed = [size for tensor in inputs for size in tuple(tensor.shape)[1:2] if size is not None]
    if longest is None and any(None in t.shape[1:] for t in tf.nest.flatten(spec)):
        spec = tf.nest.map_structure(tf.TensorSpec.from_tensor, next(iter(data.take(1))))
    length = fixed[0] if fixed else longest
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec([None, *(length if size is None else size for size in t.shape[1:])], t.dtype), spec
    )


def _bytes_of(variable: Any) -> int:
    of = keras_api.tf_variable(variable)
    return int(of.shape.num_elements()) * int(of.dtype.size)
