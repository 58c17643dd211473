"""Low-rank adapters that were trained, as files, and one base model that changes between several of them.

An adapter in use is part of the matrices, so that it costs nothing while the model computes; changing it takes as
long as these products of thin factors. Hu et al., "LoRA", section 3, https://arxiv.org/abs/2106.09685.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from tfopt._base.files import existing, write_bytes
from tfopt._keras import keras_api
from tfopt.errors import InputError, ModelFileError

_KIND, _SCALE = "tfopt.adapter", "scale"
_LOW, _UP, _WHOLE = ".low", ".up", ".whole"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What LoRA learned beside a frozen model.

    Attributes:
        factors: path of a matrix -> thin factors, float32 of shapes (inputs, rank) and (rank, outputs).
        scale: the product of both counts so many times.
        whole: path -> values of weights that were trained as they are.

    Raises:
        InputError: a number that is not finite.
    """

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    scale: float
    whole: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not np.isfinite(self.scale):
            raise InputError(f"the scale of an adapter must be a finite number, got {self.scale}")
        for path, (low, up) in self.factors.items():
            if not all(np.isfinite(values).all() for values in (low, up, self.scale * (low @ up))):
                raise InputError(f"the adapter of {path!r} became NaN or infinite; train with a lower rate")
        for path, value in self.whole.items():
            if not np.isfinite(value).all():
                raise InputError(f"weight {path!r} became NaN or infinite; train with a lower rate")

    def save(self, path: str | Path) -> Path:
        """Writes it as a safetensors file."""
        return write_bytes(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of its file."""
        tensors = {f"{name}{_WHOLE}": np.ascontiguousarray(value) for name, value in self.whole.items()}
        for name, (low, up) in self.factors.items():
            tensors |= {f"{name}{_LOW}": np.ascontiguousarray(low), f"{name}{_UP}": np.ascontiguousarray(up)}
        return safetensors.numpy.save(tensors, {"format": _KIND, _SCALE: json.dumps(self.scale)})

    @staticmethod
    def load(path: str | Path) -> "Adapter":
        """Reads what `save` wrote.

        Raises:
            MissingFileError: no such file.
            ModelFileError: it is no adapter, or damaged.
        """
        path = existing(path, "adapter")
        try:
            with safetensors.safe_open(str(path), "np") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (safetensors.SafetensorError, OSError) as error:
            raise ModelFileError(f"not an adapter, or a damaged one: {path} ({error})") from error
        if facts.get("format") != _KIND:
            raise ModelFileError(f"{path} is no adapter that tfopt wrote; Adapter.save writes them")
        try:
            names = [name.removesuffix(_LOW) for name in tensors if name.endswith(_LOW)]
            factors = {name: (tensors.pop(f"{name}{_LOW}"), tensors.pop(f"{name}{_UP}")) for name in names}
            scale = float(json.loads(facts[_SCALE]))
            return Adapter(factors, scale, {name.removesuffix(_WHOLE): value for name, value in tensors.items()})
        except (KeyError, ValueError, TypeError, InputError) as error:
            raise ModelFileError(f"a damaged adapter: {path} ({error!r})") from error


class Adapters:
    """A base model, and adapters of which it uses one at a time, or none.

    >>> import tf_keras, tfopt
    >>> model = tf_keras.Sequential([tf_keras.layers.Input((8,)), tf_keras.layers.Dense(4, name="out")])
    >>> thin = tfopt.compress.adapters.Adapter({"out/kernel": (np.ones((8, 1)), np.ones((1, 4)))}, scale=0.5)
    >>> adapters = tfopt.compress.adapters.Adapters(model, {"half": thin})
    >>> before = model(np.ones((1, 8))).numpy()
    >>> sorted(adapters.use("half")), (model(np.ones((1, 8))).numpy() - before).round(3).tolist()
    (['out/kernel'], [[4.0, 4.0, 4.0, 4.0]])
    >>> _ = adapters.use(None)
    >>> bool((model(np.ones((1, 8))).numpy() == before).all())
    True

    Args:
        model: of either generation; its weights are those of the base.
        adapters: name -> an adapter, or its file.

    Raises:
        InputError: an adapter of another model.
    """

    def __init__(self, model: object, adapters: Mapping[str, Adapter | str | Path] | None = None) -> None:
        self.active: str | None = None
        self._weights = {w.path: w.variable for w in keras_api.weights(keras_api.check_model(model))}
        self._base: dict[str, np.ndarray] = {}
        self._adapters: dict[str, Adapter] = {}
        for name, adapter in (adapters or {}).items():
            self.add(name, adapter)

    @property
    def names(self) -> list[str]:
        return list(self._adapters)

    def add(self, name: str, adapter: Adapter | str | Path) -> None:
        """Adds one, or takes the place of one that is not in use.

        Raises:
            InputError: it is of another model, or the one of this name is in use.
        """
        if name == self.active:
            raise InputError(f"adapter {name!r} is in use; use another, or None, first")
        adapter = adapter if isinstance(adapter, Adapter) else Adapter.load(adapter)
        for path in (*adapter.factors, *adapter.whole):
            self._check(name, adapter, path)
        for path in {*adapter.factors, *adapter.whole} - self._base.keys():
            self._base[path] = keras_api.to_numpy(self._weights[path])  # no adapter in use has changed it
        self._adapters[name] = adapter

    def _check(self, name: str, adapter: Adapter, path: str) -> None:
        if path not in self._weights:
            raise InputError(f"adapter {name!r} is of another model: this one has no weight {path!r}")
        shape = tuple(self._weights[path].shape)
        if path in adapter.whole:
            fits = adapter.whole[path].shape == shape
        else:
            low, up = adapter.factors[path]
            fits = low.ndim == up.ndim == 2 and low.shape[1] == up.shape[0]
            fits = fits and any(
                low.shape[0] == np.prod(shape[:i]) and up.shape[1] == np.prod(shape[i:])
                for i in range(1, len(shape))
            )
        if not fits:
            raise InputError(f"adapter {name!r} is of another model: weight {path!r} has the shape {shape} here")

    def use(self, name: str | None) -> dict[str, np.ndarray]:
        """Changes the model to this adapter, or to the base alone.

        Returns:
            The weights that changed, by path, for `Generator.swap`.

        Raises:
            InputError: an unknown name.
        """
        if name is not None and name not in self._adapters:
            raise InputError(f"no adapter {name!r}; there are {', '.join(self._adapters) or 'none'}")
        before = set() if self.active is None else self._paths(self.active)
        after = set() if name is None else self._paths(name)
        values = {path: self._base[path].copy() for path in before - after}
        values |= {path: self._value(str(name), path) for path in after}
        for path, value in values.items():
            self._weights[path].assign(value)
        self.active = name
        return values

    def _paths(self, name: str) -> set[str]:
        return {*self._adapters[name].factors, *self._adapters[name].whole}

    def _value(self, name: str, path: str) -> np.ndarray:
        adapter, base = self._adapters[name], self._base[path]
        if path in adapter.whole:
            return np.array(adapter.whole[path], base.dtype)
        low, up = adapter.factors[path]
        return base + (adapter.scale * (low @ up)).reshape(base.shape).astype(base.dtype)
