"""What an export needs to know about shapes: the sizes that it writes, and samples in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfopt._keras.input_facts import size_to_try
from tfopt._keras.keras_io import Inputs, takes_length
from tfopt._keras.sizes import Size, filled, label, open_axes, order, size_of, told
from tfopt.errors import InputError
from tfopt.export.samples import cut

DEFAULT_LENGTHS = (32, 64, 128)


def check_lengths(
    model: Any, inputs: Inputs, lengths: Sequence[Any] | None, masks: Mapping[str, Any]
) -> tuple[Size, ...]:
    """The sizes to export: those given, a default for models with a mask, none without an open axis.

    Raises:
        InputError: sizes for a model without such an axis, none for one that cannot be padded, or one that it does
            not take.
    """
    axes = open_axes(inputs.specs)
    if not axes:
        if lengths:
            raise InputError(f"the model has no open axis: leave out lengths={list(lengths)}, which mean nothing")
        return ()
    if lengths is None:
        return _default_lengths(model, inputs, masks)
    chosen = given_sizes(inputs, lengths)
    if not chosen:
        raise InputError(f"lengths must be positive, got {list(lengths)}")
    for size in chosen:
        if not takes_length(model, inputs, size):
            what = "sequences of length" if _are_sequences(axes) else f"{told(axes)} of size"
            raise InputError(f"the model does not take {what} {label(size)}")
    return chosen


def given_sizes(inputs: Inputs, lengths: Sequence[Any]) -> tuple[Size, ...]:
    """Sizes that a caller names, each once, small ones first.

    Raises:
        InputError: what is no size of these inputs.
    """
    return tuple(sorted({size_of(size, inputs.specs) for size in lengths}, key=order))


def tried_size(model: Any, inputs: Inputs, lengths: Sequence[Any] | None) -> Size:
    """A size that the model takes, the smallest that was named or the first of a few, to try things out with."""
    named = lengths if inputs.has_length else None
    return given_sizes(inputs, named)[0] if named else size_to_try(model, inputs)


def _default_lengths(model: Any, inputs: Inputs, masks: Mapping[str, Any]) -> tuple[Size, ...]:
    axes = open_axes(inputs.specs)
    padded = {name for mask, covered in masks.items() for name in (mask, *covered)}
    if not _are_sequences(axes) or not set(axes) <= padded:
        first = next(iter(axes))
        several = len(axes) > 1 or len(axes[first]) > 1
        example = f"{{{first!r}: {(224,) * len(axes[first]) if len(axes[first]) > 1 else 64}, ...}}"
        raise InputError(
            f"the model takes any size along {told(axes)}, and nothing says which of it is padding: pass "
            f"lengths=[...] with every size that you need{f', such as {example}' if several else ''}"
        )
    usable = tuple(n for n in DEFAULT_LENGTHS if takes_length(model, inputs, n))
    if not usable:
        raise InputError(f"the model takes none of the lengths {DEFAULT_LENGTHS}: pass lengths=[...]")
    return usable


def _are_sequences(axes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(numbers == (1,) for numbers in axes.values())


def pad_to(value: np.ndarray, spec: Any, size: Size | None) -> np.ndarray:
    """Rows cut and padded with zeros along axes of unknown size."""
    if size is None:
        return value
    value, shape = cut(value, spec, size), tuple(spec.shape)[1:]
    missing = [(most or 0) - n for most, n in zip(filled(spec.name, shape, size), value.shape[1:], strict=True)]
    return np.pad(value, [(0, 0), *((0, n) for n in missing)])
