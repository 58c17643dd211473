"""A functional model made anew with other sizes, or without some of its nodes."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt._keras.adapted import carry_adapted
from tfopt.errors import InputError
from tfopt.structure.nodes import (
    Node,
    filled,
    flat,
    free_name,
    functional,
    given_by_input,
    is_functional,
    nodes,
    struct_of,
)
from tfopt.structure.one_token import ATTENTION, EarlyPooling, one_token_target, without_length
from tfopt.structure.resize import resized_config

# Weight -> its axis that a layer's configuration names, and the name there.
_SIZES: dict[str, tuple[tuple[str, int, str], ...]] = {
    "Dense": (("kernel", -1, "units"),),
    "Conv1D": (("kernel", -1, "filters"),),
    "Conv2D": (("kernel", -1, "filters"),),
    "Conv3D": (("kernel", -1, "filters"),),
    "SeparableConv1D": (("pointwise_kernel", -1, "filters"),),
    "SeparableConv2D": (("pointwise_kernel", -1, "filters"),),
    "Conv1DTranspose": (("kernel", -2, "filters"),),
    "Conv2DTranspose": (("kernel", -2, "filters"),),
    "Embedding": (("embeddings", 0, "input_dim"), ("embeddings", 1, "output_dim")),
    "MultiHeadAttention": (
        ("query/kernel", 1, "num_heads"), ("query/kernel", 2, "key_dim"), ("value/kernel", 2, "value_dim"),
    ),
    "GroupedQueryAttention": (
        ("query/kernel", 1, "num_query_heads"), ("key/kernel", 1, "num_key_value_heads"),
        ("query/kernel", 2, "head_dim"),
    ),
}  # fmt: skip
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Changes:
    """What is different in the new model.

    Attributes:
        values: path of a weight -> its new value; all weights that change shape.
        targets: name of a Reshape layer -> its new target shape.
        skipped: identity of a symbolic tensor -> that of the one that takes its place.
        rename: name of a layer -> its new name.
        replaced: name of a layer -> makes what is called in its place.
        pooled: where the pooling goes to, for a model whose last layer computes one token.
    """

    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    targets: Mapping[str, Shape] = dataclasses.field(default_factory=dict)
    skipped: Mapping[int, int] = dataclasses.field(default_factory=dict)
    rename: Callable[[str], str] = lambda name: name
    replaced: Mapping[str, Callable[[], Callable[[Any], Any]]] = dataclasses.field(default_factory=dict)
    pooled: EarlyPooling | None = None


def rebuild(model: Any, changes: Changes) -> Any:
    """A new model of the same class of layers; the old one is not changed.

    Raises:
        InputError: a layer that cannot be made anew from its configuration; it is named.
    """
    values = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    paths = {id(w.variable): w.path for w in keras_api.weights(model)}
    values |= changes.values
    maker = _Maker(model, changes, values)
    made = maker.make()
    filled: set[int] = set()
    for path, old, new in maker.pairs:
        olds, news = _variables(old), _variables(new)
        wanted = [values[paths[id(variable)]] for variable in olds]
        shapes = [tuple(variable.shape) for variable in news]
        if shapes != [value.shape for value in wanted]:
            raise InputError(
                f"layer {path!r} of class {type(old).__name__}, made anew from its get_config(), has weights of "
                f"shapes {shapes} instead of {[v.shape for v in wanted]}: let it give every argument of __init__"
            )
        for variable, value in zip(news, wanted, strict=True):
            variable.assign(value)
        carry_adapted(old, new)
        filled.update(map(id, news))
    for weight in keras_api.weights(made):  # of layers that take the place of others
        if id(weight.variable) not in filled:
            weight.variable.assign(values[weight.path])
    return made


def _variables(layer: Any) -> list[Any]:
    """Those of a layer and of the layers that it holds, in the order in which they were made.

    Names do not tell them apart: Keras numbers sublayers without a name anew in every layer that is made.
    """
    return [w.variable for w in keras_api.weights(layer)]


class _Maker:
    """Runs the nodes of a model with new layers on new symbolic tensors."""

    def __init__(
        self, model: Any, changes: Changes, values: Mapping[str, np.ndarray], around: "_Maker | None" = None
    ) -> None:
        self._model, self._root, self._changes = model, functional(model), changes
        self._values, self._is_inner = values, around is not None
        self._keras = keras_api.keras_module(keras_api.generation_of(model))
        # Layers may be shared between a model and those inside it.
        self._layers: dict[int, Any] = {} if around is None else around._layers
        self._by_variable: dict[int, str] = (
            {id(w.variable): w.path for w in keras_api.weights(model)} if around is None else around._by_variable
        )
        self._paths: dict[int, str] = (
            {id(layer): path for path, layer in keras_api.walk(model)} if around is None else around._paths
        )
        # Path of a layer, the layer, and the one that was made from its configuration.
        self.pairs: list[tuple[str, Any, Any]] = []

    def make(self, shapes: Sequence[tuple[int | None, ...]] | None = None) -> Any:
        """The new model, of an inner one for what it is called with."""
        tensors: dict[int, Any] = {}
        struct = struct_of(self._root, "inputs")
        olds = flat(struct)
        sizes = [tuple(old.shape) for old in olds] if shapes is None or len(shapes) != len(olds) else shapes
        inputs = {id(old): self._input(old, shape) for old, shape in zip(olds, sizes, strict=True)}
        tensors |= inputs
        needed = self._needed()
        for node in nodes(self._root):
            if node.operation is None or not needed & set(node.outputs):
                continue
            if self._changes.pooled is not None and self._changes.pooled.pooled in node.outputs:
                tensors[self._changes.pooled.pooled] = self._pooled_early(self._changes.pooled, node, tensors)
                continue
            arguments, keywords = node.fill(_Resolved(tensors, self._changes.skipped))
            given = arguments[0] if arguments else keywords.get("inputs")
            result = flat(self._new(node.operation, node, given)(*arguments, **keywords))
            tensors.update(zip(node.outputs, result, strict=True))
        outputs = filled(struct_of(self._root, "outputs"), _Resolved(tensors, self._changes.skipped))
        name = self._changes.rename(self._model.name) if self._is_inner else self._model.name
        return self._keras.Model(filled(struct, inputs), outputs, name=name)

    def _pooled_early(self, change: EarlyPooling, last: Any, tensors: Mapping[int, Any]) -> Any:
        """The pooled output of a last layer that computes one token."""
        reshape, width = self._keras.layers.Reshape, tensors[change.start].shape[-1]
        name = self._changes.rename(last.operation.name)
        # A layer that had another name until now gives it to what takes its place among the outputs.
        final = free_name(self._model, "pooled") if name == last.operation.name else last.operation.name
        token = reshape((1, width), name=free_name(self._model, "pooled_token"))(change.pool(tensors, self._new))
        rows = change.one_token(token, tensors, self._for_one)
        return reshape((width,), name=final)(rows[change.last])

    def _for_one(self, operation: Any) -> Any:
        """A layer, where it has the length in its configuration one for a single token."""
        target = one_token_target(operation)
        if target is None:
            return self._new(operation)
        return type(operation)(target, name=free_name(self._model, f"{operation.name}_of_one"))

    def _input(self, old: Any, shape: tuple[int | None, ...]) -> Any:
        name = str(old.name).partition(":")[0]
        return self._keras.layers.Input(shape[1:], shape[0], dtype=_dtype(old), name=name)

    def _needed(self) -> set[int]:
        """Tensors that the outputs still depend on."""
        skipped, wanted = self._changes.skipped, set[int]()
        waiting = [id(t) for t in flat(struct_of(self._root, "outputs"))]
        makers = {out: node for node in nodes(self._root) for out in node.outputs}
        while waiting:
            one = waiting.pop()
            while one in skipped:
                one = skipped[one]
            if one not in wanted:
                wanted.add(one)
                early = self._changes.pooled
                waiting += early.needs if early is not None and one == early.pooled else makers[one].inputs
        return wanted

    def _new(self, operation: Any, node: Node | None = None, given: Any = None) -> Any:
        if id(operation) not in self._layers:
            self._layers[id(operation)] = self._made(operation, node, given)
        return self._layers[id(operation)]

    def _made(self, old: Any, node: Node | None, given: Any) -> Any:
        path = self._paths.get(id(old), old.name)  # operations of Keras 3 are no layers
        if path in self._changes.replaced:
            return self._changes.replaced[path]()
        if keras_api.is_model(old) and keras_api.sublayers(old) and getattr(old, "get_config", None):
            inner = _Maker(old, self._changes, self._values, around=self)
            # Units between models are an axis of an input of the inner one; what is open there stays so.
            declared = [tuple(t.shape) for t in flat(struct_of(functional(old), "inputs"))]
            called = [tuple(t.shape) for t in given_by_input(old, given) if hasattr(t, "shape")]
            made = inner.make(_sizes(declared, called))
            self.pairs += inner.pairs
            return made
        new = self._from_config(old, path, node)
        if hasattr(old, "_flatten_layers"):  # else an operation, which has no weights
            self.pairs.append((path, old, new))
        return new

    def _from_config(self, old: Any, path: str, node: Node | None) -> Any:
        with _told_as_input(old, path):
            config = self._resized(old, path, node) or old.get_config()
        if "name" in config:
            config["name"] = self._changes.rename(config["name"])
        self._resize(old, path, config)
        with _told_as_input(old, path):
            return type(old).from_config(config)

    def _resized(self, old: Any, path: str, node: Node | None) -> dict[str, Any] | None:
        """The configuration of a layer of somebody's own, some of whose inner weights have other shapes."""
        if node is None or not hasattr(old, "_flatten_layers") or not keras_api.sublayers(old):
            return None
        if type(old).__name__ in ATTENTION or not any(p.startswith(f"{path}/") for p in self._changes.values):
            return None
        wanted = [self._values[self._by_variable[id(variable)]].shape for variable in _variables(old)]
        config = resized_config(node, wanted)
        if config is None:
            raise InputError(
                f"layer {path!r} of class {type(old).__name__} cannot be made with weights of shapes {wanted}: no "
                "arguments of its get_config() give just these"
            )
        return config

    def _resize(self, old: Any, path: str, config: dict[str, Any]) -> None:
        """Writes new sizes into a layer's configuration."""
        name = type(old).__name__
        pooled = self._changes.pooled
        if name == "EinsumDense" and pooled is not None and any(old is node.operation for node in pooled.rows):
            config["output_shape"] = without_length(config["output_shape"])
        if name == "Reshape" and old.name in self._changes.targets:
            config["target_shape"] = self._changes.targets[old.name]
        if not any(p.startswith(f"{path}/") for p in self._changes.values):
            return
        if name == "EinsumDense":
            config["output_shape"] = _einsum_shape(config, self._values[f"{path}/kernel"].shape)
        for weight, axis, key in _SIZES.get(name, ()):
            value = self._values.get(f"{path}/{weight}")
            if value is not None:
                config[key] = int(value.shape[axis])
        if name == "MultiHeadAttention":
            config["output_shape"] = self._values[f"{path}/attention_output/kernel"].shape[2:]


_SIZELESS = {"LayerNormalization", "BatchNormalization", "DepthwiseConv2D", "DepthwiseConv1D", "PReLU",
             "RMSNormalization"}  # fmt: skip


def why_fixed(layers: Mapping[str, Any], weight: keras_api.Weight) -> str | None:
    """Why a weight cannot have other sizes in a model of these layers (by path) made anew; None if it can.

    Of what lies in a layer of somebody's own, only trying tells (`structure.resize`).
    """
    parts = weight.layer_path.split("/")
    for depth in range(1, len(parts)):
        around = layers.get("/".join(parts[:depth]))
        if around is None:
            return f"it lies inside {parts[depth - 1]!r}, which cannot be made with other sizes"
        if not (keras_api.is_model(around) and is_functional(around)):
            return None
    name = type(weight.layer).__name__
    if name in _SIZES or name in _SIZELESS or name == "EinsumDense":
        return None
    return f"a layer of class {name} cannot be made with other sizes"


def _sizes(declared: list[Shape], called: list[Shape]) -> list[Shape] | None:
    """The sizes of the call where a model declares any; None where it is called with something else."""
    if [len(shape) for shape in declared] != [len(shape) for shape in called]:
        return None
    return [
        tuple(None if a is None else a if b is None else b for a, b in zip(old, new, strict=True))
        for old, new in zip(declared, called, strict=True)
    ]


class _Resolved(dict[int, Any]):
    """Values by identity, those of skipped tensors taken from what stands for them."""

    def __init__(self, values: Mapping[int, Any], skipped: Mapping[int, int]) -> None:
        super().__init__(values)
        for old in skipped:
            new = old
            while new in skipped:
                new = skipped[new]
            if new in values:
                self[old] = values[new]


def _dtype(tensor: Any) -> str:
    return tensor.dtype if isinstance(tensor.dtype, str) else tensor.dtype.name


def _einsum_shape(config: dict[str, Any], kernel: Shape) -> tuple[int | None, ...]:
    """The output shape of an EinsumDense whose kernel has new sizes."""
    operands, _, result = config["equation"].replace(" ", "").partition("->")
    sizes = dict(zip(operands.split(",")[1], kernel, strict=True))
    given = config["output_shape"]
    old = [given] if isinstance(given, int) or given is None else list(given)
    letters = result.replace("...", "")[-len(old) :]
    return tuple(sizes.get(letter, size) for letter, size in zip(letters, old, strict=True))


@contextlib.contextmanager
def _told_as_input(layer: Any, path: str) -> Iterator[None]:
    """What a layer of somebody's own raises for its configuration, which is not enough to make it anew."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # KerasHub's LLaMA layer lacks an attribute, Keras 3 refuses a Lambda by ValueError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"layer {path!r} of class {type(layer).__name__} cannot be made anew from its get_config(): {reason}"
        ) from error
