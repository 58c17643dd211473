"""Turns the channels of a decoder, so that none reaches further than the others and few bits hold them better.

Ashkboos et al., "QuaRot", https://arxiv.org/abs/2404.00456, and Liu et al., "SpinQuant",
https://arxiv.org/abs/2405.16406. Values are turned by head, and the residual stream where only the scale of a norm
stands between it and a product; both go into the matrices before and behind. Inner states of feed-forward layers
are turned while the model runs, as are final states where a tied table multiplies them: the scale of the last norm
would make another table of it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt._keras.precision import default_policy
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.weights import config_of, is_causal_lm, weights_of
from tfopt.errors import InputError
from tfopt.models.causal_lm import causal_lm
from tfopt.numerics.hadamard import hadamard, mixing, power_of_two_in

# Inner states are turned in blocks: wider ones cost more for each token than they gained where that was tried.
_LEAST, _BLOCK = 8, 32
_OFF = 1e-2  # of the largest output: more is no rounding of float32
_TABLES = ("token_embeddings/embeddings", "position_embeddings/embeddings")
# Norm of a layer -> the products behind it.
_READERS = {"attention_norm": ("attention_query", "attention_key", "attention_value"), "mlp_norm": ("gate", "up")}

Weights = dict[str, np.ndarray]


def rotated(model: Any) -> Any:
    """A decoder that computes the same, whose weights and activations are easier to round.

    Rounded or trained with few bits, a real one loses less: see `QuantizeConfig.rotate`, which does this while
    exporting. Exact zeros of a pruned model, and weights that came in blocks of few bits, are spread and lost.

    Args:
        model: a causal language model in float; it is not changed.

    Returns:
        A new model of the same generation in float32, with tokenizer and chat template.

    Raises:
        InputError: the model is something else, was turned or quantized before, has factorized matrices, or has
            something attached that `finish` would end.
    """
    config = config_of(model)
    if is_turned(model):
        raise InputError(f"model {model.name!r} was rotated before; once is all that helps")
    if any(name.startswith("tfopt_quantization") for name in extras.of(model)):
        raise InputError(f"model {model.name!r} was quantized, and would be turned off its grids; rotate before")
    weights = weights_of(model)
    split = next((path for path in weights if path.endswith("_low/kernel")), None)
    if split is not None:
        raise InputError(f"factorized models cannot be rotated ({split} is half of a matrix); rotate first")
    block = min(_BLOCK, power_of_two_in(config.intermediate_size))
    turned = dataclasses.replace(
        config, inner_rotation=block if block >= _LEAST else 0,
        turned_stream=turns_stream(config) and config.tie_word_embeddings,
    )  # fmt: skip
    _turn_values(turned, weights)
    if turned.inner_rotation:
        _turn_inner(turned, weights)
    if turns_stream(config):
        _turn_stream(turned, weights)
    return _built(model, turned, weights)


def is_turned(model: Any) -> bool:
    """Whether it is a decoder that `rotated` gave back."""
    config = config_of(model) if is_causal_lm(model) else None
    return config is not None and (config.inner_rotation > 0 or config.turned_stream)


def turns_stream(config: CausalLMConfig) -> bool:
    """Whether the residual stream can be turned: norms are of the mean square, and none stands behind a layer."""
    return config.norm == "rms" and not config.post_norms


def _built(model: Any, config: CausalLMConfig, weights: Weights) -> Any:
    generation = keras_api.generation_of(model)
    with default_policy(keras_api.keras_module(generation)):
        made = causal_lm(config, generation)
    variables = {w.path: w.variable for w in keras_api.weights(made) if not w.name.startswith("moving_")}
    other = sorted(variables.keys() ^ weights.keys())
    if other:
        raise InputError(f"model {model.name!r} has other weights than its shape ({other[0]}); call finish first")
    for path, variable in variables.items():
        variable.assign(weights[path])
    ids = np.arange(min(8, config.max_position_embeddings), dtype=np.int32)[None] % config.vocab_size
    before, after = (np.asarray(m({"input_ids": ids, "attention_mask": ids * 0 + 1}, training=False), np.float32)
                     for m in (model, made))  # fmt: skip
    if not np.abs(after - before).max() <= _OFF * np.abs(before).max():
        raise InputError(f"model {model.name!r} computes something else than its weights alone; call finish first")
    extras.put(made, {**extras.of(model), **extras.of(made)})
    return made


def _turn_values(config: CausalLMConfig, weights: Weights) -> None:
    """Values of each head, and back behind the sum over what is seen."""
    turn = mixing(config.head_size)
    for layer in range(config.num_hidden_layers):
        name = f"layer_{layer}_attention"
        for path in _present(weights, f"{name}_value/kernel", f"{name}_value/bias"):
            value = weights[path]
            weights[path] = _narrow((value.reshape(*value.shape[:-1], -1, len(turn)) @ turn).reshape(value.shape))
        weights[f"{name}_output/kernel"] = _turned_rows(weights[f"{name}_output/kernel"], turn)


def _turn_inner(config: CausalLMConfig, weights: Weights) -> None:
    """What undoes the turn of the network, in the matrices behind."""
    turn = hadamard(config.inner_rotation)
    for layer in range(config.num_hidden_layers):
        path = f"layer_{layer}_down/kernel"
        weights[path] = _turned_rows(weights[path], turn)


def _turn_stream(config: CausalLMConfig, weights: Weights) -> None:
    """Everything that is read from the residual stream, behind the scales of norms, and written to it."""
    turn, written = mixing(config.hidden_size), list(_TABLES)
    for layer in range(config.num_hidden_layers):
        name = f"layer_{layer}"
        for norm, products in _READERS.items():
            paths = (f"{name}_{product}/kernel" for product in products)
            _read_turned(weights, f"{name}_{norm}", paths, turn=turn)
        written += [f"{name}_{part}/{kind}" for part in ("attention_output", "down") for kind in ("kernel", "bias")]
    for path in _present(weights, *written):
        weights[path] = _narrow(weights[path] @ turn)
    if not config.turned_stream:
        _read_turned(weights, "final_norm", ["logits/kernel"], turn=turn)


def _read_turned(weights: Weights, norm: str, paths: Any, turn: np.ndarray) -> None:
    """Matrices behind a norm, which take its scale."""
    gamma = weights[f"{norm}/gamma"]
    for path in _present(weights, *paths):
        weights[path] = _narrow(turn.T @ (gamma[:, None] * weights[path]))
    weights[f"{norm}/gamma"] = np.ones_like(gamma)


def _turned_rows(matrix: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """A matrix (inputs, outputs) that undoes a turn of each block of its inputs."""
    blocks = matrix.reshape(-1, len(turn), matrix.shape[-1])
    return _narrow(turn.T @ blocks).reshape(matrix.shape)


def _narrow(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float32)


def _present(weights: Weights, *paths: str) -> Iterator[str]:
    return (path for path in paths if path in weights)
