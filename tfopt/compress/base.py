"""What every technique shares: the contract.

A technique is a module with two functions:

    prepare(model, config) -> (model, callbacks)     # before fit: what to train and what to pass to it
    finish(model) -> model                           # after fit: a plain Keras model, no wrapper, no custom class
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tfopt.selection import Skipped


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` returns; unpacks as the pair (model, callbacks).

    Attributes:
        model: the model to train, often the one that was passed in.
        callbacks: callbacks to pass to `fit`.
        skipped: what the technique leaves alone, with the reason.
    """

    model: Any
    callbacks: list[Any]
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.callbacks))
