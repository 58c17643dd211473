"""Which weights of a model an operator of its file reads: told by the name scope it was traced in.

A converter renames tensors, merges equal constants and folds factors into them, but the names of what an operator
computes keep the scopes of its layer.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

_NO_SCOPE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclasses.dataclass(frozen=True)
class Owners:
    """Scopes of layers.

    Attributes:
        scopes: path of a layer -> its scope, which no other layer has.
        paths: scope -> paths of the layer's weights.
    """

    scopes: Mapping[str, str]
    paths: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, paths: Iterable[str]) -> "Owners":
        """Scopes for the layers of weights with these paths, such as "encoder/layer_0_up/kernel"."""
        layers: dict[str, list[str]] = {}
        for path in paths:
            layers.setdefault(path.rpartition("/")[0], []).append(path)
        scopes = {layer: f"w{i}.{_NO_SCOPE.sub('_', layer)}" for i, layer in enumerate(layers)}
        return cls(scopes, {scopes[layer]: tuple(found) for layer, found in layers.items()})

    def named_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """Paths of the weights whose layer's scope is part of one of these names of tensors."""
        parts = {part for name in names for part in re.split("[/;]", name)}
        return tuple(path for scope, paths in self.paths.items() if scope in parts for path in paths)
