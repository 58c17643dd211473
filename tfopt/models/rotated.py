"""Turns the channels of a decoder, so that none reaches further than the others and few bits hold them better.

Ashkboos et al., "QuaRot", https://arxiv.org/abs/2404.00456, and Liu et al., "SpinQuant",
https://arxiv.org/abs/2405.16406. The residual stream is turned where it is normed by its mean square alone, values
by head, both without a trace in the network: the turn goes into the matrices before and behind. The inner states of
the feed-forward layers are turned while the model runs, and so are final states that a tied table multiplies: the
scale of the last norm, which would go into the table, stands between.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.weights import config_of, weights_of
from tfopt.errors import InputError
from tfopt.models.causal_lm import causal_lm
from tfopt.numerics.hadamard import hadamard, mixing, power_of_two_in

# Blocks of inner states: of 64 to 512 the small ones cost least, and turn nearly as well.
_BLOCK, _LEAST = 128, 8
FINAL = "final_linear"

Weights = dict[str, np.ndarray]


def rotated(model: Any) -> Any:
    """A decoder that computes the same, whose weights and activations are easier to round.

    Rounded or trained with few bits, it loses less: see `QuantizeConfig.rotate`, which does this while exporting.
    Exact zeros of a pruned model, and weights that came in blocks of few bits, are spread and lost.

    Args:
        model: a causal language model in float; it is not changed.

    Returns:
        A new model of the same generation, with tokenizer and chat template.

    Raises:
        InputError: the model is something else, was turned before, or has factorized matrices.
    """
    config = config_of(model)
    if config.inner_rotation or config.final_linear:
        raise InputError(f"model {model.name!r} was rotated before; once is all that helps")
    weights = {path: value.astype(np.float64) for path, value in weights_of(model).items()}
    split = next((path for path in weights if path.endswith("_low/kernel")), None)
    if split is not None:
        raise InputError(f"factorized models cannot be rotated ({split} is half of a matrix); rotate first")
    block = min(_BLOCK, power_of_two_in(config.intermediate_size))
    turns_stream = config.norm == "rms" and not config.post_norms
    turned = dataclasses.replace(
        config, inner_rotation=block if block >= _LEAST else 0,
        final_linear=turns_stream and config.tie_word_embeddings,
    )  # fmt: skip
    _turn_values(turned, weights)
    if turned.inner_rotation:
        _turn_inner(turned, weights)
    if turns_stream:
        _turn_stream(turned, weights)
    return _built(model, turned, weights)


def _built(model: Any, config: CausalLMConfig, weights: Weights) -> Any:
    made = causal_lm(config, keras_api.generation_of(model))
    for weight in keras_api.weights(made):
        if weight.path in weights:  # all but the statistics of norms that have none
            weight.variable.assign(weights[weight.path].astype(np.float32))
    extras.put(made, {**extras.of(model), **extras.of(made)})
    return made


def _turn_values(config: CausalLMConfig, weights: Weights) -> None:
    """Values of each head, and back before the heads are joined."""
    size, turn = config.head_size, mixing(config.head_size)
    for layer in range(config.num_hidden_layers):
        name = f"layer_{layer}_attention"
        for path in _present(weights, f"{name}_value/kernel", f"{name}_value/bias"):
            value = weights[path]
            weights[path] = (value.reshape(*value.shape[:-1], -1, size) @ turn).reshape(value.shape)
        weights[f"{name}_output/kernel"] = _turned_rows(weights[f"{name}_output/kernel"], turn)


def _turn_inner(config: CausalLMConfig, weights: Weights) -> None:
    """What undoes the turn of the network, in the matrices behind."""
    turn = hadamard(config.inner_rotation)
    for layer in range(config.num_hidden_layers):
        path = f"layer_{layer}_down/kernel"
        weights[path] = _turned_rows(weights[path], turn)


def _turn_stream(config: CausalLMConfig, weights: Weights) -> None:
    """Everything that is read from the residual stream, behind the scales of norms, and written to it."""
    turn, tables = mixing(config.hidden_size), ["token_embeddings/embeddings", "position_embeddings/embeddings"]
    scale = weights["final_norm/gamma"]
    for layer in range(config.num_hidden_layers):
        name = f"layer_{layer}"
        readers = {"attention_norm": ("attention_query", "attention_key", "attention_value"),
                   "mlp_norm": ("gate", "up")}  # fmt: skip
        for norm, products in readers.items():
            gamma = weights[f"{name}_{norm}/gamma"]
            for path in _present(weights, *(f"{name}_{product}/kernel" for product in products)):
                weights[path] = turn.T @ (gamma[:, None] * weights[path])
            weights[f"{name}_{norm}/gamma"] = np.ones_like(gamma)
        for written in ("attention_output", "down"):
            tables += [f"{name}_{written}/kernel", f"{name}_{written}/bias"]
    for path in _present(weights, *tables):
        weights[path] = weights[path] @ turn
    if config.final_linear:
        weights[f"{FINAL}/kernel"] = turn.T @ (scale[:, None] * turn)
    else:
        weights["logits/kernel"] = turn.T @ (scale[:, None] * weights["logits/kernel"])
    weights["final_norm/gamma"] = np.ones_like(scale)


def _turned_rows(matrix: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A matrix (inputs, outputs) that undoes a turn of each block of its inputs."""
    blocks = matrix.reshape(-1, len(turn), matrix.shape[-1])
    return np.asarray(turn.T @ blocks).reshape(matrix.shape)


def _present(weights: Weights, *paths: str) -> Iterator[str]:
    return (path for path in paths if path in weights)
