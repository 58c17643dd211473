"""Students of a model, each smaller than the one before, and what is done to make them.

The steps are those of Sanh et al., "DistilBERT", https://arxiv.org/abs/1910.01108 (every second layer stays), and
Jiao et al., "TinyBERT", https://arxiv.org/abs/1909.10351 (hidden states are learned as well), with a last layer
that computes one token, a table of low rank, and 4 bits learned in training.
"""

import contextlib
import dataclasses
from typing import Any

import numpy as np

from tfopt._keras import keras_api
from tfopt.compress.shrink import shrink
from tfopt.errors import InputError, TfoptError
from tfopt.search.options import matrices_of
from tfopt.search.plan import Candidate, costs
from tfopt.structure.blocks import blocks_of
from tfopt.structure.features import features_of
from tfopt.structure.groups import structure_of

_UNITS = ("heads", "neurons", "channels")
_SOME, _MORE = {"heads": 1 / 3, "neurons": 0.25, "channels": 0.25}, dict.fromkeys(_UNITS, 0.5)
_LARGE = 0.2  # share of all weights from which a table is worth splitting
_RATE, _WIDTH = 1.5e-4, 384  # a good rate at this width; it goes down as the width goes up
_BITS = {"weight_bits": 4, "weight_scale": "mse", "table_bits": 8}


@dataclasses.dataclass(frozen=True)
class Rung:
    """A student.

    Attributes:
        name: of the variant of a recipe.
        start: the student that it begins as, or "baseline".
        sections: of the variant, without its training.
        epochs: of training that it deserves.
        rate: peak of its learning rate.
        share: multiplications by weights for each token, as a share of the original's.
        weights: elements of all its weights.
        says: what is done, in words.
    """

    name: str
    start: str
    sections: dict[str, Any]
    epochs: int
    rate: float
    share: float
    weights: int
    says: str

    @property
    def bits(self) -> bool:
        """Whether its bits are learned."""
        return "quantize" in self.sections

    def variant(self, epochs: int, cache: bool, minutes: float | None) -> dict[str, Any]:
        """The variant of a recipe."""
        train = {"epochs": epochs, "learning_rate": self.rate, **({} if minutes is None else {"minutes": minutes})}
        distill = {**self.sections["distill"], "cache": cache}
        return {"name": self.name, "start": self.start, "train": train, **self.sections, "distill": distill}


def full_ladder(model: Any) -> list[Rung]:
    """The students of a classifier, each cut from the one before.

    Args:
        model: built and functional, of either generation.

    Raises:
        InputError: nothing can be taken out of it.
    """
    full = _Maker(model)
    units = {"neurons": 0.5} if full.has_layers else _MORE
    half = full.cut("half", "baseline", model, shares=units)
    if half is None:
        raise InputError(f"nothing can be taken out of model {model.name!r}, so no student of it is smaller")
    pooled = full.cut("pooled", "half", half, shares=_SOME, every=1, pool=True)
    full.narrow("pooled" if pooled else "half", pooled or half)
    small = full.cut("small", "half", half, shares=_MORE, pool=True)
    if small is not None:
        full.narrow("small", small)
    return full.rungs


def short_ladder(model: Any) -> list[Rung]:
    """The smallest students only, cut from the classifier at once; arguments and errors as for `full_ladder`."""
    short = _Maker(model)
    at_once = short.cut("small", "baseline", model, shares=_MORE, every=4, pool=True)
    if at_once is None:
        raise InputError(f"nothing can be taken out of model {model.name!r}, so no student of it is smaller")
    short.narrow("small", at_once)
    return short.rungs


class _Maker:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._whole = _products(model)
        self._rate = _RATE * _WIDTH / width_of(model)
        self.rungs: list[Rung] = []

    @property
    def has_layers(self) -> bool:
        return len(blocks_of(self._model, structure_of(self._model))) > 1

    def cut(
        self, name: str, start: str, model: Any, *, shares: dict[str, float], every: int = 2, pool: bool = False
    ) -> Any:
        """Adds a student: of its layers every second (fourth ...) stays, the last among them, and of units a share.

        Returns:
            Its model, untrained; None if nothing can go.
        """
        structure = structure_of(model)
        blocks = blocks_of(model, structure)
        gone = [i for i in range(len(blocks)) if (len(blocks) - 1 - i) % every]
        whole: dict[str, Any] = {"layers": gone} if gone else {}
        for kind, share in shares.items():
            places = sorted(group.name for group in structure.groups if group.kind == kind)
            if kind == "neurons" and pool and blocks and not gone:
                # A last layer that computes one token costs next to nothing, so its neurons stay.
                places = [place for place in places if place.partition("/")[0] not in blocks[-1].names]
                whole |= {kind: dict.fromkeys(places, share)} if places else {}
            elif places:
                whole[kind] = share
        smaller, found = _shrunk(model, {**whole, "pool_early": True} if pool else whole)
        if smaller is None:
            return None
        self._add(name, start, {"shrink": {**found, "importance": "first_order"}}, smaller, epochs=8 if pool else 5,
                  says=_in_words(found))  # fmt: skip
        return smaller

    def narrow(self, start: str, model: Any) -> None:
        """Adds the student whose tables are split and whose bits are learned."""
        found: dict[str, Any] = {}
        words = "4 bits"
        tables = [w for w in keras_api.weights(model) if w.name == "embeddings"]
        total = _weights(model)
        large = [w for w in tables if np.prod(w.variable.shape) > _LARGE * total]
        rank = max(8, round(width_of(model) / 3 / 8) * 8)
        if large and rank < 0.6 * min(int(w.variable.shape[1]) for w in large):
            names = [w.path.rpartition("/")[0] for w in large]
            found["factorize"], words = {"rank": rank, "include": names}, f"tables of rank {rank}; 4 bits"
            total -= sum(int(np.prod(w.variable.shape)) - rank * sum(map(int, w.variable.shape)) for w in large)
        self._add(
            f"{start}-narrow", start, {**found, "quantize": _BITS}, model, epochs=6, says=words, weights=total
        )

    def _add(
        self, name: str, start: str, sections: dict[str, Any], model: Any, *, epochs: int, says: str,
        weights: int | None = None,
    ) -> None:  # fmt: skip
        lessons = {"temperature": 2.0, "hidden": 1.0 if self._has_states(model) else 0.0}
        before = next((rung.says for rung in self.rungs if rung.name == start), "")
        self.rungs.append(Rung(
            name, start, {**sections, "distill": lessons}, epochs=epochs, rate=self._rate,
            share=_products(model) / self._whole, weights=_weights(model) if weights is None else weights,
            says="; ".join(filter(None, (before, says))),
        ))  # fmt: skip

    def _has_states(self, model: Any) -> bool:
        """Whether there are layers whose states can be learned."""
        try:
            return bool(features_of(self._model) and features_of(model))
        except InputError:
            return False


def _shrunk(model: Any, wanted: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The smaller model with as much of what is wanted as can go, and what that is; or None and nothing."""
    without_pooling = {key: value for key, value in wanted.items() if key != "pool_early"}
    alone = {key: value for key, value in wanted.items() if key == "layers"}
    for tried in (wanted, without_pooling, alone):
        with contextlib.suppress(TfoptError):  # no tokens are pooled, or a layer needs all of them, or its units
            if tried:
                return shrink(model, **tried), tried
    return None, {}


def _products(model: Any) -> float:
    return costs(matrices_of(model), Candidate())["latency"]


def _weights(model: Any) -> int:
    return int(sum(np.prod(w.variable.shape) for w in keras_api.weights(model)))


def width_of(model: Any) -> int:
    """Of the largest table, else of the largest matrix's output."""
    tables = [w for w in keras_api.weights(model) if w.name == "embeddings"]
    all_of_them = tables or [w for w in keras_api.weights(model) if len(w.variable.shape) > 1]
    largest = max(all_of_them, key=lambda w: int(np.prod(w.variable.shape)))
    return int(largest.variable.shape[-1])


def _in_words(found: dict[str, Any]) -> str:
    parts = [f"without layers {', '.join(map(str, found['layers']))}"] if "layers" in found else []
    parts += ["pooled early"] if "pool_early" in found else []
    for kind in _UNITS:
        share = found.get(kind)
        if share is not None:
            value = next(iter(share.values())) if isinstance(share, dict) else share
            parts.append(f"{value:.0%} fewer {kind}")
    return "; ".join(parts)
