"""Lets parts of a model run twice with the same random numbers and the same state."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

from tfopt._keras import keras_api
from tfopt._keras.layer_calls import swapped

_REPLAY = "_tfopt_replay"


class Replay:
    """What was drawn and read in a first pass, in its order, for a second one."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._place: int | None = None

    def again(self) -> None:
        """From now on `value` gives what it gave before."""
        self._place = 0

    def value(self, make: Callable[[], Any]) -> Any:
        """What `make` returned in the first pass."""
        if self._place is None:
            self._kept.append(make())
            return self._kept[-1]
        self._place += 1
        return self._kept[self._place - 1]


def remembered(layer: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns, or returned in the first of two passes; for state that a call of `layer` changes."""
    current = vars(layer).get(_REPLAY)
    return make() if current is None else _through(current, make)


def _through(current: threading.local, make: Callable[[], Any]) -> Any:
    """What `make` returns in this thread, by its replay if it has one: another may be inside the layers."""
    replay = getattr(current, "replay", None)
    return make() if replay is None else replay.value(make)


class Replayed:
    """Layers that run under a replay.

    Args:
        layers: of either generation, with those inside them.
    """

    def __init__(self, layers: Iterable[Any]) -> None:
        # Replicas are threads that may take turns in the middle of a layer.
        self._current = threading.local()
        self._swaps: list[tuple[Any, dict[str, Any]]] = []
        for layer in layers:
            self._swaps.append((layer, {_REPLAY: self._current}))
            if keras_api.generation_of(layer) == "keras":
                self._swaps += [(g, {"next": self._seed_of(g)}) for g in getattr(layer, "_seed_generators", ())]
            elif hasattr(layer, "_random_generator"):
                self._swaps.append((layer._random_generator, self._stateless()))

    @contextlib.contextmanager
    def under(self, replay: Replay) -> Iterator[None]:
        """While entered, the layers draw and read through this replay."""
        self._current.replay = replay
        try:
            with contextlib.ExitStack() as stack:
                for owner, values in self._swaps:
                    stack.enter_context(swapped(owner, values))
                yield
        finally:
            self._current.replay = None

    def _seed_of(self, generator: Any) -> Callable[..., Any]:
        def seed(ordered: bool = True) -> Any:
            return _through(self._current, lambda: type(generator).next(generator, ordered))

        return seed

    def _stateless(self) -> dict[str, Any]:
        """Attributes of a generator of tf_keras that draws a seed once, and the rest from it."""

        def seed() -> Any:
            return _through(self._current, lambda: tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32))

        return {"_rng_type": "stateless", "make_seed_for_stateless_op": seed, "_maybe_init": lambda: None}
