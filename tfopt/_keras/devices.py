"""Devices of this process: GPUs, or parts of the CPU."""

import tensorflow as tf

from tfopt.errors import InputError


def limit_gpu_memory(most: float | str) -> None:
    """Sets how much memory TensorFlow takes of each GPU, before it uses one; nothing where there is none.

    Args:
        most: "all", as TensorFlow does; "grow", what is needed so far; or GB.

    Raises:
        InputError: TensorFlow has started.
    """
    if most == "all":
        return
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            if most == "grow":
                tf.config.experimental.set_memory_growth(gpu, True)
            else:
                limit = tf.config.LogicalDeviceConfiguration(memory_limit=round(float(most) * 1e9 / 2**20))
                tf.config.set_logical_device_configuration(gpu, [limit])
    except RuntimeError as error:
        raise InputError(
            f"gpu_memory {most!r} cannot be set after TensorFlow has started; set it before the first model"
        ) from error


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
