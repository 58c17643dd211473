"""The weights of a Keras model that generates, as a decoder reads them."""

from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.seq2seq_config import Seq2SeqConfig
from tfopt.errors import InputError


def is_causal_lm(model: Any) -> bool:
    """Whether `models.causal_lm` built this model, in this process or before it was saved."""
    return extras.CONFIG in extras.of(model)


def is_seq2seq(model: Any) -> bool:
    """Whether `models.seq2seq` built this model, in this process or before it was saved."""
    return extras.SEQ2SEQ in extras.of(model)


def is_generative(model: Any) -> bool:
    """Whether it is one of both: a file of it generates."""
    return is_causal_lm(model) or is_seq2seq(model)


def seq2seq_config_of(model: Any) -> Seq2SeqConfig:
    """The shape of an encoder-decoder.

    Raises:
        InputError: the model is something else.
    """
    return Seq2SeqConfig.from_json(_member(model, extras.SEQ2SEQ, "encoder-decoder", builder="seq2seq"))


def config_of(model: Any) -> CausalLMConfig:
    """The shape of a causal language model.

    Raises:
        InputError: the model is something else.
    """
    return CausalLMConfig.from_json(_member(model, extras.CONFIG, "causal language model", builder="causal_lm"))


def _member(model: Any, name: str, what: str, builder: str) -> bytes:
    members = extras.of(model)
    if name not in members:
        raise InputError(
            f"model {model.name!r} is no {what} of tfopt: build it with models.{builder} or "
            "models.from_pretrained, and save it with models.save"
        )
    return members[name]


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Values by path, for example "layer_0_up/kernel"; the statistics of norms that have none are left out."""
    return {
        w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model) if not w.name.startswith("moving_")
    }
