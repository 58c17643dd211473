"""Cross-entropy with labels that are a little unsure.

Szegedy et al., "Rethinking the Inception architecture", https://arxiv.org/abs/1512.00567.
"""

from collections.abc import Callable

import tensorflow as tf

_LEAST = 1e-7  # of a probability


def smoothed_cross_entropy(smoothing: float, *, from_logits: bool) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A loss of (labels, outputs): each label keeps 1 - smoothing, and all classes share the rest.

    Keras has it for labels that are one-hot alone.

    Args:
        smoothing: in [0, 1).
        from_logits: whether outputs are logits, else probabilities of classes.

    Returns:
        A function of integer labels of shape (batch, ...) and outputs of shape (batch, ..., classes), that gives
        the loss of each label.
    """

    def loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        outputs = tf.cast(outputs, tf.float32)
        logs = tf.nn.log_softmax(outputs) if from_logits else tf.math.log(tf.maximum(outputs, _LEAST))
        labels = tf.reshape(tf.cast(labels, tf.int32), tf.shape(logs)[:-1])
        own = tf.gather(logs, labels, batch_dims=len(logs.shape) - 1)
        return -(1.0 - smoothing) * own - smoothing * tf.reduce_mean(logs, -1)

    return loss
