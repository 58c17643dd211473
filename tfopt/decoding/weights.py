"""The weights of a Keras causal language model, as a decoder reads them."""

from typing import Any

import numpy as np

from tfopt import keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.signatures import CONFIG_MEMBER as MEMBER
from tfopt.errors import InputError


def is_causal_lm(model: Any) -> bool:
    """Whether `models.causal_lm` built this model, in this process or before it was saved."""
    return MEMBER in getattr(model, keras_api.EXTRA, {})


def config_of(model: Any) -> CausalLMConfig:
    """The shape of a causal language model.

    Raises:
        InputError: the model is something else.
    """
    if not is_causal_lm(model):
        raise InputError(
            f"model {model.name!r} is no causal language model of tfopt: build it with models.causal_lm or "
            "models.from_pretrained, and save it with models.save"
        )
    return CausalLMConfig.from_json(getattr(model, keras_api.EXTRA)[MEMBER])


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Values by path, for example "layer_0_up/kernel"; the statistics of norms that have none are left out."""
    return {
        w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model) if not w.name.startswith("moving_")
    }


def keep_tokenizer(model: Any, member: str, content: bytes) -> None:
    """Lets a tokenizer's file travel with the model, into what is saved and exported from it."""
    members = getattr(model, keras_api.EXTRA, {})
    object.__setattr__(model, keras_api.EXTRA, {**members, member: content})
