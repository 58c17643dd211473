"""Distribution strategies by number of replicas."""

import contextlib
from typing import Any

import tensorflow as tf

from tfopt.errors import InputError


def make_strategy(replicas: int) -> Any:
    """A MirroredStrategy over `replicas` devices, or None for one replica.

    GPUs are used where there are enough; else the CPU is split into logical devices, which must happen
    before TensorFlow runs its first operation.

    Raises:
        InputError: fewer than one replica, or too late to split the CPU.
    """
    if replicas < 1:
        raise InputError(f"replicas must be 1 or more, got {replicas}")
    if replicas == 1:
        return None
    if len(tf.config.list_physical_devices("GPU")) >= replicas:
        return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(replicas)])
    cpu = tf.config.list_physical_devices("CPU")[0]
    have = tf.config.get_logical_device_configuration(cpu)
    if have is None or len(have) < replicas:
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
            tf.config.list_logical_devices()
        except RuntimeError as error:
            raise InputError(
                f"cannot split the CPU into {replicas} replicas after TensorFlow has started; "
                "make the strategy first"
            ) from error
    # Keras 3 launches its collectives in no fixed order, and on CPUs those of two replicas now and then meet
    # the wrong partner ("Shape mismatch in the collective instance"); summing on one device has no such race.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def scope(strategy: Any) -> contextlib.AbstractContextManager[Any]:
    """The strategy's scope, or nothing for one replica."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
