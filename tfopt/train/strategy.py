"""Distribution strategies: several devices of this process, or several processes."""

import contextlib
import os
import typing
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt._base.cluster import check_free, cluster_of
from tfopt._keras.devices import devices
from tfopt.errors import InputError
from tfopt.schedules import StrategyName, check_choice


def make_strategy(replicas: int = 1, *, kind: StrategyName = "auto") -> Any:
    """A distribution strategy of TensorFlow, or None for one replica in one process.

    It must be made before TensorFlow runs its first operation where it splits the CPU or joins other processes.

    Args:
        replicas: devices of this process; GPUs where there are enough, else logical devices of the CPU.
        kind: "none"; "mirrored", over `replicas`, or all GPUs for 1; "multi_worker", over the processes that
            `TF_CONFIG` lists, each with its GPUs or its CPU; "auto" takes "multi_worker" where `TF_CONFIG` lists
            several workers, else "mirrored" for several replicas. "tpu" and "parameter_server" are refused with the
            reason.

    Raises:
        InputError: fewer than one replica, a strategy that cannot be had here, or one that is asked for too late.
    """
    check_choice("strategy", kind, typing.get_args(StrategyName))
    if replicas < 1:
        raise InputError(f"replicas must be 1 or more, got {replicas}")
    cluster = cluster_of() if kind in ("auto", "multi_worker") else None
    if kind == "auto":
        kind = "multi_worker" if cluster else "mirrored" if replicas > 1 else "none"
    if kind == "none" and replicas > 1:
        raise InputError(f"{replicas} replicas need a strategy: take 'mirrored', or 1 replica")
    if kind == "multi_worker" and replicas > 1:
        raise InputError("each worker takes its GPUs, or its CPU: leave replicas at 1, and start more workers")
    makers: dict[str, Callable[[int], Any]] = {
        "none": lambda replicas: None, "mirrored": _mirrored, "multi_worker": _multi_worker,
        "parameter_server": _parameter_server, "tpu": _tpu,
    }  # fmt: skip
    return makers[kind](replicas)


def _mirrored(replicas: int) -> Any:
    gpus = len(tf.config.list_physical_devices("GPU"))
    if replicas == 1:
        if gpus < 2:
            raise InputError(f"strategy 'mirrored' needs 2 replicas or more, or several GPUs; {gpus} were found")
        replicas = gpus
    found = devices(replicas)
    # Keras 3 launches its collectives in no fixed order, and on CPUs those of two replicas now and then meet
    # the wrong partner ("Shape mismatch in the collective instance"); summing on one device has no such race.
    sums = tf.distribute.ReductionToOneDevice() if found[0].startswith("CPU") else None
    return tf.distribute.MirroredStrategy(found, cross_device_ops=sums)


def _multi_worker(replicas: int) -> Any:
    cluster = cluster_of()
    if cluster is None:
        raise InputError(
            "strategy 'multi_worker' needs TF_CONFIG with two workers or more, which is not set: start the workers "
            "with `tfopt launch --workers 2 -- run RECIPE`, or set it on each machine"
        )
    check_free(cluster.workers[cluster.index])
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "cannot join other workers after TensorFlow has started; make the strategy first"
        ) from error


def _parameter_server(replicas: int) -> Any:
    raise InputError(
        "strategy 'parameter_server' is not supported: its workers add gradients of weights of different steps, "
        "so that masks, ranges and checkpoints would be those of no step; take 'multi_worker'"
    )


def _tpu(replicas: int) -> Any:
    try:
        # Without a name it would ask the cloud for minutes.
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(f"strategy 'tpu' needs a TPU, and none was found ({str(error)[:100]})") from error
    raise InputError(
        "a TPU was found, but trainings here divide batches in ways that it cannot compile; take 'none'"
    )


def is_chief(strategy: Any) -> bool:
    """Whether this process writes what a training leaves; of several workers one does."""
    cluster = cluster_of() if works_with_others(strategy) else None
    return cluster is None or cluster.is_chief


def works_with_others(strategy: Any) -> bool:
    """Whether other processes take part in every step."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def scope(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    """The strategy's scope, or nothing for one replica."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
