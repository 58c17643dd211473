"""GPTQ on a decoder as its paper has it: each matrix sees what the rounded ones before it make of a text.

Frantar et al., https://arxiv.org/abs/2210.17323. One pass over all texts at once is enough, since the network asks
for its products one after the other: each is rounded when its inputs are there, and multiplies so from then on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.decoding.step import float_products, forward
from tfopt.decoding.weights import config_of, weights_of
from tfopt.quantization.calibration import Improved, improvement
from tfopt.quantization.gptq import Rounded, gptq
from tfopt.quantization.record import Grid

_MOST_TOKENS = 1 << 14  # that are run at once; more change little


def rounded_in_order(model: Any, grids: Mapping[str, Grid], ids: np.ndarray) -> tuple[dict[str, Grid], Improved]:
    """Rounds the matrices of a decoder anew on the scales of their grids.

    Args:
        model: a causal language model in float; it is not changed.
        grids: its weights rounded to nearest, by path.
        ids: (texts, tokens) int32, without padding; of many, the first are looked at.

    Returns:
        The grids, each the better of both roundings on its inputs, and how much better they are.
    """
    ids = ids[: max(1, _MOST_TOKENS // ids.shape[1])]
    config, weights = config_of(model), {path: tf.constant(value) for path, value in weights_of(model).items()}
    tables = (path for path in grids if path.endswith("/embeddings"))
    weights |= {path: tf.constant(grids[path].values, tf.float32) for path in tables}
    found: dict[str, Rounded] = {}
    last: list[Any] = [None, None]  # inputs, and the sum of their outer products: several matrices share them

    def rounded(x: tf.Tensor, name: str) -> None:
        path = f"{name}/kernel"
        if path not in grids:
            return
        if last[0] is not x:
            rows = np.asarray(x, np.float32).reshape(-1, x.shape[-1])
            last[:] = x, rows.T @ rows
        found[path] = gptq(grids[path], last[1])
        weights[path] = tf.constant(found[path].grid.values.T, tf.float32)

    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        if f"{name}_low/kernel" in weights:  # a matrix that was split into two
            x = linear(x, f"{name}_low")
        rounded(x, name)
        y = tf.matmul(x, weights[f"{name}/kernel"])
        return y + weights[f"{name}/bias"] if f"{name}/bias" in weights else y

    products = float_products(config, weights)._replace(linear=linear)
    hidden, _ = forward(config, products, tf.constant(ids), start=tf.constant(0), pads=None, caches=[])
    if not config.tie_word_embeddings:
        rounded(hidden, "logits")
    return {**grids, **{path: one.grid for path, one in found.items()}}, improvement(found.values())
