"""Devices of this process: GPUs, or parts of the CPU."""

import tensorflow as tf

from tfopt.errors import InputError


def devices(count: int, what: str = "replicas") -> list[str]:
    """Names of so many devices: GPUs where there are enough, else logical devices of the CPU.

    Args:
        count: 1 or more.
        what: they are for, for messages.

    Raises:
        InputError: the CPU cannot be split any more.
    """
    if len(tf.config.list_physical_devices("GPU")) >= count:
        return [f"GPU:{i}" for i in range(count)]
    cpu = tf.config.list_physical_devices("CPU")[0]
    have = tf.config.get_logical_device_configuration(cpu)
    if count > 1 and (have is None or len(have) < count):
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
            tf.config.list_logical_devices()
        except RuntimeError as error:
            raise InputError(
                f"cannot split the CPU into {count} {what} after TensorFlow has started; make them first"
            ) from error
    return [f"CPU:{i}" for i in range(count)]
