"""Layers that look up texts or numbers in a vocabulary, and the model behind them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from tfopt._base.members import LOOKUPS
from tfopt._keras import extras, keras_api
from tfopt._keras.input_facts import draw, facts_of, size_to_try
from tfopt._keras.keras_io import call, inputs_of, sources_of
from tfopt._keras.lookups import lookups as layers_of
from tfopt.data.lookup import Encoding, Lookup, Split, Standardize, to_json
from tfopt.errors import InputError, VerificationError
from tfopt.export.artifact import Check
from tfopt.structure.nodes import functional, is_functional, nodes

_ROWS, _TOLERANCE = 16, 1e-5
# Settings that have a form outside of TensorFlow.
_KNOWN: dict[str, tuple[Any, ...]] = {
    "output_mode": ("int", *get_args(Encoding)), "invert": (False, None), "ragged": (False, None),
    "sparse": (False, None), "num_oov_indices": (0, 1, None), "split": (*get_args(Split), None),
    "standardize": (*get_args(Standardize), None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cut:
    """A model without its lookups.

    Attributes:
        model: takes ids; it has the layers of the other.
        lookups: what makes them.
    """

    model: Any
    lookups: list[Lookup]


def without_lookups(model: Any) -> Cut | None:
    """The model cut behind the lookups of its inputs; None where it has none.

    Args:
        model: built, of either generation; it is not changed.

    Raises:
        InputError: a lookup that is not the only reader of an input, or one with settings beyond words and ids.
    """
    layers = layers_of(model)
    if not layers:
        return None
    if not is_functional(model):
        raise InputError(
            f"{_kind(layers[0])} {layers[0].name!r}: the format has no tables of texts, and a model that is not "
            "functional cannot be cut behind it; export a SavedModel"
        )
    root, inputs = functional(model), inputs_of(model)
    tensors, lookups, cut = {}, [], []
    for name, source in sources_of(root, inputs).items():
        readers = keras_api.consumers(source)
        if not any(reader in layers for reader in readers):
            tensors[name] = source.output
            continue
        if len(readers) != 1:
            raise InputError(f"input {name!r} is read by {len(readers)} layers; it can be cut behind one only")
        (layer,) = readers
        lookup, output = _lookup(layer, name), _output(root, layer, source)
        if lookup.words and lookup.encoding and len(output.shape) != 2:
            raise InputError(
                f"{_kind(layer)} {layer.name!r} says it gives {tuple(output.shape)} and gives (rows, "
                f"{lookup.depth}): declare the input {name!r} with the shape ()"
            )
        tensors[lookup.target] = output
        cut.append(layer)
        lookups.append(lookup)
    left = [layer for layer in layers if layer not in cut]
    if left:
        raise InputError(
            f"{_kind(left[0])} {left[0].name!r} reads no input but what is computed; export a SavedModel"
        )
    keras = keras_api.keras_module(keras_api.generation_of(model))
    encoded = {lookup.target: lookup.depth for lookup in lookups if lookup.encoding}
    fresh = {name: _input(keras, name, tensor, depth=encoded.get(name)) for name, tensor in tensors.items()}
    behind = keras.Model(list(tensors.values()), root.outputs)
    outputs = behind(list(fresh.values()))
    named = dict(zip(root.output_names, outputs if isinstance(outputs, list) else [outputs], strict=True))
    made = keras.Model(fresh, {n: _named(keras, n, value) for n, value in named.items()}, name=model.name)
    extras.put(made, {**extras.of(model), LOOKUPS: to_json(lookups)})
    return Cut(made, lookups)


def ids_for(cut: Cut, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Inputs of the model that is left, from those of the whole one; None where none are given."""
    if values is None:
        return None
    found = dict(values)
    for lookup in cut.lookups:
        if lookup.name in found:
            found[lookup.target] = lookup.values(found.pop(lookup.name))
    return found


def check_cut(model: Any, cut: Cut) -> Check:
    """That lookups outside and the model behind them compute what the whole model does, on words that are known.

    Raises:
        VerificationError: named "lookup".
    """
    inputs = inputs_of(model)
    size = size_to_try(model, inputs)
    values = draw(inputs, facts_of(model, inputs, size), _ROWS, size=size)
    whole = {name: value.numpy() for name, value in call(model, inputs, values).items()}
    behind = call(cut.model, inputs_of(cut.model), ids_for(cut, values) or {})
    for name, value in behind.items():
        error = float(np.abs(value.numpy() - whole[name]).max())
        if not error <= _TOLERANCE * max(1.0, float(np.abs(whole[name]).max())):
            raise VerificationError("lookup", f"output {name!r} differs by {error:.3g} without TensorFlow's tables")
    return Check("lookup", "equal", "equal")


def _output(model: Any, layer: Any, source: Any) -> Any:
    """What a layer, which other inputs may go to as well, makes of one input."""
    read = id(source.output)
    return next(n.symbolic[0] for n in nodes(model) if n.operation is layer and read in n.inputs)


def _input(keras: Any, name: str, tensor: Any, depth: int | None) -> Any:
    if depth is not None:  # Keras 3 makes integers of them, which nothing needs
        return keras.Input((*tuple(tensor.shape)[1:-1], depth), dtype="float32", name=name)
    dtype = str(getattr(tensor.dtype, "name", tensor.dtype))
    return keras.Input(tuple(tensor.shape)[1:], dtype="int32" if "int" in dtype else dtype, name=name)


def _named(keras: Any, name: str, value: Any) -> Any:
    return keras.layers.Activation("linear", name=name)(value)


def _lookup(layer: Any, name: str) -> Lookup:
    config, kind = layer.get_config(), _kind(layer)
    for key, known in _KNOWN.items():
        if config.get(key) not in known:
            raise InputError(
                f"{kind} {layer.name!r} with {key}={config[key]!r} cannot be cut off; export a SavedModel"
            )
    words = kind == "TextVectorization"
    if words and config["split"] is None:
        raise InputError(f"{kind} {layer.name!r} with split=None cannot be cut off; export a SavedModel")
    listed = [str(word) for word in layer.get_vocabulary()]
    unknown = 1 if words else None
    if not words and config["num_oov_indices"]:
        unknown = 0 if config.get("mask_token") is None else 1
    encoding = config["output_mode"] if config["output_mode"] != "int" else None
    if encoding:
        unknown = None if unknown is None else 0  # nothing is masked there
    ngrams = config.get("ngrams")
    table = getattr(layer, "_lookup_layer", layer)
    depth = config["max_tokens"] if config.get("pad_to_max_tokens") else layer.vocabulary_size()
    return Lookup(
        name, f"{name}_encoded" if encoding else f"{name}_ids",
        {word: number for number, word in enumerate(listed) if number != unknown},
        unknown=unknown, words=words, standardize=config.get("standardize"), split=config.get("split"),
        length=config.get("output_sequence_length"), integers=kind == "IntegerLookup",
        ngrams=tuple(range(1, ngrams + 1)) if isinstance(ngrams, int) else ngrams and tuple(ngrams),
        encoding=encoding, depth=depth if encoding else 0,
        weights=tuple(table.idf_weights.numpy().tolist()) if encoding == "tf_idf" else None,
    )  # fmt: skip


def _kind(layer: Any) -> str:
    return type(layer).__name__
