"""Scaling of the loss, so that gradients in float16 do not vanish.

Micikevicius et al., "Mixed precision training", https://arxiv.org/abs/1710.03740.
"""

import tensorflow as tf

_FIRST, _GOOD_STEPS = 2.0**15, 2000


class LossScale:
    """What a loss is multiplied by: halved where a gradient overflows, doubled after many steps where none does.

    Attributes:
        value: the scale, a power of two of 1 or more.
        state: variables of it, which a checkpoint must hold.
    """

    def __init__(self) -> None:
        self.value = tf.Variable(_FIRST, trainable=False, name="loss_scale")
        self._good = tf.Variable(0, trainable=False, name="good_steps")
        self.state = [self.value, self._good]

    def passed(self, finite: bool) -> bool:
        """Takes note of a step; returns whether its gradients count.

        Args:
            finite: whether all gradients were.

        Returns:
            False for a step to be left out; True for one that is not finite at the lowest scale, too.
        """
        if not finite:
            self._good.assign(0)
            if self.value.numpy() <= 1.0:
                return True
            self.value.assign(self.value / 2.0)
            return False
        self._good.assign_add(1)
        if self._good.numpy() >= _GOOD_STEPS:
            self.value.assign(self.value * 2.0)
            self._good.assign(0)
        return True
