"""Writing masks into TensorFlow variables, on one device or on every replica."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.errors import InputError


class MaskedAssign:
    """Sets variables to zero where their mask is False, in one traced call.

    Args:
        variables: TensorFlow variables; mirrored ones are updated on every replica.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        self._variables = list(variables)
        self._masks: list[tf.Tensor] = []
        self._assign = tf.function(self._assign_all)

    def set_masks(self, masks: Sequence[np.ndarray]) -> None:
        """Replaces the masks: one bool array per variable, True where the weight stays.

        Raises:
            InputError: masks of other shapes, which broadcasting would let through.
        """
        have, want = ([tuple(one.shape) for one in some] for some in (masks, self._variables))
        for mask, weight in itertools.zip_longest(have, want):
            if mask != weight:
                raise InputError(
                    f"masks must have the shapes of the weights they are for, got {mask} for {weight}; prepare a "
                    "model again after its sizes changed"
                )
        self._masks = [tf.constant(mask) for mask in masks]

    def __call__(self) -> None:
        if not self._masks:
            return
        strategy = getattr(self._variables[0], "distribute_strategy", None)
        if strategy is None:
            self._assign(self._masks)
            return
        for variable, mask in zip(self._variables, self._masks, strict=True):
            strategy.extended.update(variable, _keep, args=(mask,))

    def _assign_all(self, masks: list[tf.Tensor]) -> None:
        for variable, mask in zip(self._variables, masks, strict=True):
            _keep(variable, mask)


def _keep(variable: Any, mask: tf.Tensor) -> None:
    # Not a multiplication: NaN and infinity times zero would stay.
    variable.assign(tf.where(mask, variable, tf.zeros((), variable.dtype)))
