"""A model without some of its units and layers."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._keras import extras, keras_api
from tfopt.errors import InputError
from tfopt.structure.axes import leaves
from tfopt.structure.blocks import Block, blocks_of, chosen_blocks, chosen_layers
from tfopt.structure.groups import Structure, structure_of
from tfopt.structure.nodes import flat, free_name, functional, nodes, struct_of
from tfopt.structure.one_token import EarlyPooling
from tfopt.structure.own_class import in_sizes, own_config
from tfopt.structure.own_layers import around_part, stack_of, without_own_layers
from tfopt.structure.rebuild import Changes, rebuild

_NUMBERED = re.compile(r"layer_(\d+)_")


@dataclasses.dataclass(frozen=True)
class Kept:
    """What stays.

    Attributes:
        units: name of a group -> its units that stay, ascending; groups that are not named stay whole.
        removed: layers that do not.
    """

    units: Mapping[str, np.ndarray]
    removed: tuple[Block, ...] = ()


def cut(model: Any, structure: Structure, kept: Kept) -> Any:
    """A new model of built-in layers; the old one is not changed.

    Raises:
        InputError: units that do not exist, no unit left, or sizes that a layer or a generating model cannot have.
    """
    groups = {g.name: g for g in structure.groups}
    values = {w.path: keras_api.to_numpy(w.variable) for w in keras_api.weights(model)}
    masks: dict[tuple[str, int], np.ndarray] = {}  # of the old axes: several groups may lie on one
    sizes: dict[int, int] = {}
    for name, units in kept.units.items():
        group = groups.get(name)
        if group is None:
            raise InputError(f"the model has no units {name!r}; it has {', '.join(groups)}")
        if not len(units) or units[0] < 0 or units[-1] >= group.units or (np.diff(units) <= 0).any():
            raise InputError(
                f"units of {name!r} must ascend in [0, {group.units}), one or more, got {units.tolist()}"
            )
        sizes[id(group.factor.root)] = len(units)
        for place in group.slices:
            size = place.outer * group.units * place.inner
            stays = np.isin(np.arange(size) // place.inner % group.units, units)
            masks[place.path, place.axis] = masks.get((place.path, place.axis), True) & stays
    changed: dict[str, np.ndarray] = {}
    for (path, index), stays in masks.items():
        changed[path] = np.compress(stays, changed.get(path, values[path]), index)
    made = _of_own_class(model, structure, kept, values={**values, **changed})
    if made is not None:
        return made
    changes = Changes(
        changed, _targets(model, structure, sizes), {b.end: b.start for b in kept.removed},
        rename=renaming(model, kept.removed),
    )  # fmt: skip
    made = _rebuilt(model, changes)
    _keep_members(model, made, _renumbering(model, kept.removed))
    return made


def without_layers(model: Any, layers: int | Sequence[int]) -> Any:
    """A new model without so many layers, evenly spread, or without those of the given numbers.

    Where the model's own class, or that of a part such as a backbone, has a number of layers, the class stays.

    Raises:
        InputError: no such layers.
    """
    stack = stack_of(model)
    if stack is not None:
        made = without_own_layers(model, stack, chosen_layers(layers, stack.count))
    else:
        made = around_part(model, lambda count: chosen_layers(layers, count))
    if made is None:
        structure = structure_of(model)
        return cut(model, structure, Kept({}, tuple(chosen_blocks(model, structure, layers))))
    _keep_members(model, made)
    return made


def _of_own_class(model: Any, structure: Structure, kept: Kept, values: dict[str, np.ndarray]) -> Any | None:
    """The model by the configuration of its own class; None where that has none for what is to stay.

    Raises:
        InputError: units that cannot go any other way.
    """
    if own_config(model) is None:
        return None
    made = None
    if not kept.removed:
        made = in_sizes(model, values)
    elif not kept.units:
        blocks, stack = blocks_of(model, structure), stack_of(model)
        if stack is not None and stack.count == len(blocks):
            made = without_own_layers(model, stack, [blocks.index(block) for block in kept.removed])
    stuck = [g.name for g in structure.groups if g.name in kept.units and not g.alone]
    if made is None and stuck:
        raise InputError(
            f"class {type(model).__name__} cannot be made without these units of {', '.join(stuck)}: it has one "
            "number for all its layers, so take the same share from all that are alike; and where heads of one "
            "size make up the width, the same share of heads and width, and of neurons where it is theirs as well"
        )
    if made is not None:
        _keep_members(model, made)
    return made


def pooled_early(model: Any, found: EarlyPooling) -> Any:
    """A new model whose last layer computes the pooled token alone.

    Raises:
        InputError: a layer refuses one token.
    """
    last = next(node.operation for node in nodes(model) if found.pooled in node.outputs)
    is_output = found.pooled in map(id, flat(struct_of(functional(model), "outputs")))
    is_layer = hasattr(last, "_flatten_layers") and getattr(last, "symbol", None) is None
    renamed = {last.name: free_name(model, f"{last.name}_early")} if is_output and is_layer else {}
    made = _rebuilt(model, Changes(rename=lambda name: renamed.get(name, name), pooled=found))
    _keep_members(model, made)
    shape = extras.of(made).get(extras.ENCODER)
    if shape is not None:
        config = {**json.loads(shape), "cut": "its last layer computes one token"}
        extras.keep(made, extras.ENCODER, json.dumps(config).encode())
    return made


def _rebuilt(model: Any, changes: Changes) -> Any:
    try:
        return rebuild(model, changes)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model {model.name!r} cannot be made anew that way, a layer refuses: {error}") from error


def _targets(model: Any, structure: Structure, sizes: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
    """New target shapes of Reshape layers."""
    found = {}
    for node in nodes(model):
        layer = node.operation
        if (
            type(layer).__name__ == "Reshape"
            and hasattr(layer, "target_shape")
            and hasattr(layer, "_flatten_layers")
        ):
            axes = structure.axes[structure.trace.tensors[node.outputs[0]].name][1:]
            new = [
                -1 if old == -1 else int(np.prod([sizes.get(id(leaf), leaf.size) for leaf in leaves(one)]))
                for old, one in zip(layer.target_shape, axes, strict=True)
            ]
            found[layer.name] = tuple(new)
    return found


def renaming(model: Any, removed: tuple[Block, ...]) -> Callable[[str], str]:
    """Old name of a layer, or path of its weights -> the name without the removed layers."""
    numbers = _renumbering(model, removed)
    return lambda name: _NUMBERED.sub(lambda m: f"layer_{numbers.get(int(m[1]), int(m[1]))}_", name)


def _renumbering(model: Any, removed: tuple[Block, ...]) -> dict[int, int]:
    """Old number of a layer of our builders -> new one, without gaps."""
    if not removed:
        return {}
    gone = {int(m[1]) for block in removed for name in block.names if (m := _NUMBERED.match(name))}
    numbers = {int(m[1]) for path, _ in keras_api.walk(model) if (m := _NUMBERED.match(path))}
    return {old: new for new, old in enumerate(sorted(numbers - gone))}


def _keep_members(model: Any, made: Any, numbers: Mapping[int, int] | None = None) -> None:
    """What travels with a model: tokenizer, task and labels, and its shape, brought up to date.

    Args:
        model: as it was.
        made: what became of it.
        numbers: old number of a layer -> new one, where some are gone.
    """
    members = extras.of(model)
    kept = {name: content for name, content in members.items() if name in extras.FOR_TEXTS}
    if extras.CONFIG in members:
        kept[extras.CONFIG] = _generating(json.loads(members[extras.CONFIG]), made, numbers or {})
    if extras.ENCODER in members:
        kept[extras.ENCODER] = _encoder(json.loads(members[extras.ENCODER]), made, numbers or {})
    if extras.SEQ2SEQ in members:
        kept[extras.SEQ2SEQ] = _translating(json.loads(members[extras.SEQ2SEQ]), made)
    if kept:
        extras.put(made, kept)


def _encoder(config: dict[str, Any], made: Any, renumbered: Mapping[int, int]) -> bytes:
    """The shape of an encoder from its weights, or why it has none that public layouts know."""
    shapes = {w.path: tuple(int(d) for d in w.variable.shape) for w in keras_api.weights(made)}
    if "network" in config:
        try:
            config["network"] = json.loads(_generating(config["network"], made, renumbered))
        except InputError:  # an encoder may have layers of different sizes; what it was is known no more
            config["cut"] = "its layers are not alike"
        config["first_norm"] = "layer_0_attention_norm/gamma" in shapes
        dense = [f"embedding_dense_{i}/kernel" for i in range(len(config["embedding_widths"]))]
        config["embedding_widths"] = [shapes[path][1] for path in dense if path in shapes]
        return json.dumps(config).encode()
    queries = {shape for path, shape in shapes.items() if path.endswith("_attention_query/kernel")}
    neurons = {shape[1] for path, shape in shapes.items() if path.endswith("_intermediate/kernel")}
    config["num_hidden_layers"] = len({int(m[1]) for path in shapes if (m := _NUMBERED.match(path))})
    head_size = config["hidden_size"] // config["num_attention_heads"]
    config["hidden_size"] = shapes["word_embeddings/embeddings"][1]
    config["num_attention_heads"] = config["hidden_size"] // head_size
    if any(rows != columns for rows, columns in queries):
        config["cut"] = "its heads no longer make up its width"
    elif len(neurons) > 1:
        config["cut"] = f"its layers have {sorted(neurons)} neurons"
    else:
        config["intermediate_size"] = max(neurons, default=config["intermediate_size"])
    return json.dumps(config).encode()


def _translating(config: dict[str, Any], made: Any) -> bytes:
    """The shape of an encoder-decoder from its weights."""
    shapes = {w.path: tuple(int(d) for d in w.variable.shape) for w in keras_api.weights(made)}
    config["vocab_size"], config["hidden_size"] = shapes["token_embeddings/embeddings"]
    for side in ("encoder", "decoder"):
        numbers = {int(m[1]) for path in shapes if (m := re.match(rf"{side}_(\d+)_", path))}
        if numbers != set(range(len(numbers))) or not numbers:
            raise InputError(
                f"layers of an encoder-decoder cannot be taken out, {side} would keep {sorted(numbers)}"
            )
        config[f"{side}_layers"] = len(numbers)
    sizes = {
        "intermediate_size": {shape[1] for path, shape in shapes.items() if path.endswith("_up/kernel")},
        "num_attention_heads": {
            shape[1] // config["head_dim"] for path, shape in shapes.items() if path.endswith("_query/kernel")
        },
    }
    for name, found in sizes.items():
        if len(found) != 1:
            raise InputError(
                f"layers of a model that generates must stay alike, {name} would be {sorted(found)}; take the same "
                "share from all"
            )
        config[name] = found.pop()
    return json.dumps(config).encode()


def _generating(config: dict[str, Any], made: Any, renumbered: Mapping[int, int]) -> bytes:
    """The shape of a causal language model from its weights."""
    for name in ("full_layers", "unrotated_layers") if renumbered else ():
        config[name] = [renumbered[layer] for layer in config.get(name, ()) if layer in renumbered]
    shapes = {w.path: tuple(int(d) for d in w.variable.shape) for w in keras_api.weights(made)}
    numbers = {int(m[1]) for path in shapes if (m := _NUMBERED.match(path))}

    def size(name: str, axis: int) -> int:
        found = {shape[axis] for path, shape in shapes.items() if path.endswith(name)}
        if len(found) != 1:
            raise InputError(
                f"layers of a model that generates must stay alike, {name} would have sizes {sorted(found)}; take "
                "the same share from all"
            )
        return found.pop()

    config["vocab_size"], config["hidden_size"] = shapes["token_embeddings/embeddings"]
    config["num_hidden_layers"] = len(numbers)
    config["intermediate_size"] = size("_up/kernel", 1)
    config["num_attention_heads"] = size("_attention_query/kernel", 1) // config["head_dim"]
    config["num_key_value_heads"] = size("_attention_key/kernel", 1) // config["head_dim"]
    return json.dumps(config).encode()
