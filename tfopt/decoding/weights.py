"""The weights of a Keras causal language model, as a decoder reads them."""

from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.decoding.config import CausalLMConfig
from tfopt.errors import InputError


def is_causal_lm(model: Any) -> bool:
    """Whether `models.causal_lm` built this model, in this process or before it was saved."""
    return extras.CONFIG in extras.of(model)


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
    return CausalLMConfig.from_json(extras.of(model)[extras.CONFIG])


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Values by path, for example "layer_0_up/kernel"; the statistics of norms that have none are left out."""
    return {
        w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model) if not w.name.startswith("moving_")
    }
