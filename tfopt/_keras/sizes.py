"""Sizes of the open axes of a model's inputs: one number for all of them, or some for each input."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfopt.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes by input, of its open axes from left to right."""

    named: tuple[tuple[str, tuple[int, ...]], ...]

    def as_dict(self) -> dict[str, tuple[int, ...]]:
        return dict(self.named)


Size = int | Sizes


def open_axes(specs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input -> its axes of unknown size, the batch left out; inputs without any are left out."""
    found = {n: tuple(i for i, s in enumerate(spec.shape) if i and s is None) for n, spec in specs.items()}
    return {name: axes for name, axes in found.items() if axes}


def size_of(given: Any, specs: Mapping[str, Any]) -> Size:
    """What a caller names as one size: a number, or a mapping from inputs to numbers or tuples of them.

    Raises:
        InputError: another type, inputs that are missing or have no open axis, or numbers that do not fit or are
            below 1.
    """
    if not isinstance(given, Mapping):
        if isinstance(given, bool) or (not isinstance(given, int) and not hasattr(given, "__index__")):
            raise InputError(f"lengths must hold numbers, or mappings from inputs to sizes, got {given!r}")
        if int(given) < 1:
            raise InputError(f"lengths must be positive, got {int(given)}")
        return int(given)
    wanted = open_axes(specs)
    if set(given) != set(wanted):
        raise InputError(f"sizes must be given for {told(wanted)}, got {', '.join(map(str, given)) or 'none'}")
    named = []
    for name, axes in wanted.items():
        value = given[name]
        sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
        fits = all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in sizes)
        if not fits or len(sizes) != len(axes):
            raise InputError(f"sizes of {told({name: axes})} must be as many numbers above 0, got {value!r}")
        named.append((name, sizes))
    return Sizes(tuple(named))


def told(axes: Mapping[str, tuple[int, ...]]) -> str:
    """Open axes in words.

    >>> told({"image": (1, 2), "text": (1,)})
    "axes 1 and 2 of input 'image', axis 1 of input 'text'"
    """
    words = []
    for name, numbers in axes.items():
        several = "axes" if len(numbers) > 1 else "axis"
        words.append(f"{several} {' and '.join(map(str, numbers))} of input {name!r}")
    return ", ".join(words)


def filled(name: str, shape: tuple[int | None, ...], size: Size | None) -> list[int | None]:
    """A shape, without its batch axis, with its open axes fixed."""
    if size is None or isinstance(size, int):
        return [size if s is None else s for s in shape]
    sizes = iter(size.as_dict().get(name, ()))
    return [next(sizes) if s is None else s for s in shape]


def order(size: Size) -> int:
    """Sorts sizes from small to large."""
    return size if isinstance(size, int) else math.prod(n for _, sizes in size.named for n in sizes)


def label(size: Size) -> str:
    """Names a size, in signatures and messages.

    >>> label(64), label(Sizes((("image", (224, 160)), ("text", (64,)))))
    ('64', '224x160_64')
    """
    return str(size) if isinstance(size, int) else "_".join("x".join(map(str, sizes)) for _, sizes in size.named)
