"""Options put together: the order in which they are taken, what a plan costs, and the recipe's variant for it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tfopt.compress.base import Option
from tfopt.compress.shrink import KINDS as UNITS
from tfopt.search.options import FEW_BITS, MANY_BITS, Matrix

Measure = Literal["bytes", "packed", "latency", "both"]
_ENTROPY = {MANY_BITS: 7.2, FEW_BITS: 3.2}  # bits of a trained weight that is not zero, on a grid of so many


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Options that go together, the strongest of each place, with the loss that their sum predicts."""

    options: tuple[Option, ...] = ()
    loss: float = 0.0

    def of_kind(self, *kinds: str) -> list[Option]:
        return [option for option in self.options if option.kind in kinds]


def costs(matrices: Mapping[str, Matrix], plan: Candidate) -> dict[str, float]:
    """Estimates for an integer file: "bytes", "packed" bytes, and "latency" as products per token."""
    left = dict.fromkeys(matrices, 1.0)
    for option in plan.options:
        for path, share in option.shares.items():
            if path in left:
                left[path] *= share
    idle = {path for option in plan.options if not option.computes for path in option.shares}
    bits = {o.place: int(o.value) for o in plan.of_kind("bits")}
    zeros = {o.place: o.value for o in plan.of_kind("zeros")}
    total = {"bytes": 0.0, "packed": 0.0, "latency": 0.0}
    for path, matrix in matrices.items():
        size, each = matrix.size * left[path], bits.get(path, MANY_BITS)
        total["bytes"] += size * each / 8
        total["packed"] += size * _packed_bits(each, zeros.get(path, 0.0)) / 8
        total["latency"] += size * (matrix.multiplies and path not in idle)
    return total


def _packed_bits(bits: int, zeros: float) -> float:
    if not zeros:
        return _ENTROPY[bits]
    return -zeros * math.log2(zeros) - (1 - zeros) * math.log2(1 - zeros) + (1 - zeros) * _ENTROPY[bits]


def path_of(
    matrices: Mapping[str, Matrix], options: Sequence[Option], losses: Mapping[str, float], measure: Measure
) -> list[Candidate]:
    """Plans from nothing to everything; each step takes what loses least for what it saves."""
    whole = costs(matrices, Candidate())

    steps: list[tuple[float, int, Option]] = []
    places: dict[tuple[str, str], list[Option]] = {}
    for option in options:
        places.setdefault((option.kind, option.place), []).append(option)
    for own in places.values():
        worst = before = gained = 0.0
        for option in own:  # mild to strong; a strong one is not taken before a mild one
            gain = _saved(whole, costs(matrices, Candidate((option,))), measure)
            if gain > gained:
                worst = max(worst, (losses[option.key] - before) / (gain - gained))
                steps.append((worst, len(steps), option))
                before, gained = losses[option.key], gain
    plans = [Candidate()]
    layers = sum(1 for kind, _ in places if kind == "layer")
    for _, _, option in sorted(steps, key=lambda step: step[:2]):
        taken = _with(plans[-1], option, losses, layers=layers)
        if taken is not None and _saved(whole, costs(matrices, taken), measure) > _saved(
            whole, costs(matrices, plans[-1]), measure
        ):  # beside the others it may save nothing
            plans.append(taken)
    return plans


def _saved(whole: Mapping[str, float], found: Mapping[str, float], measure: Measure) -> float:
    """Share of the whole that is gone."""
    share = {key: 1 - found[key] / max(whole[key], 1.0) for key in found}
    return (share["packed"] + share["latency"]) / 2 if measure == "both" else share[measure]


def _with(plan: Candidate, option: Option, losses: Mapping[str, float], layers: int) -> Candidate | None:
    """The plan with one option more, or None where it does not go with what is there."""
    gone = {path for other in plan.of_kind("layer") for path in other.shares}
    if option.kind == "layer":
        if len(plan.of_kind("layer")) + 1 >= layers:
            return None  # one stays
        kept = [o for o in plan.options if o.kind == "width" or not o.paths & option.paths]
    else:
        if option.kind != "width" and option.paths & gone:
            return None
        kept = [o for o in plan.options if (o.kind, o.place) != (option.kind, option.place)]
    # A matrix is either cut or split: the best rank of the one is not that of the other.
    against = ("rank",) if option.kind in UNITS else tuple(UNITS) if option.kind == "rank" else ()
    if any(other.paths & option.paths for other in kept if other.kind in against):
        return None
    chosen = (*kept, option)
    return Candidate(chosen, sum(losses[o.key] for o in chosen))


def variant(
    plan: Candidate, name: str, split: Mapping[str, tuple[str, str]], epochs: int, named: Callable[[str], str]
) -> dict[str, Any]:
    """The recipe's variant.

    Args:
        plan: what is done.
        name: of the variant.
        split: path of a matrix -> paths of its two factors.
        epochs: of healing with the answers of the baseline.
        named: name of a layer or weight -> its name once the plan's layers are gone.
    """
    found: dict[str, Any] = {"name": name, "train": {"epochs": epochs}}
    cuts: dict[str, Any] = {
        kind: {named(o.place): o.value for o in plan.of_kind(kind)} for kind in UNITS if plan.of_kind(kind)
    }
    if plan.of_kind("layer"):
        cuts["layers"] = sorted(int(o.place) for o in plan.of_kind("layer"))
    if plan.of_kind("pooling"):
        cuts["pool_early"] = True
    if cuts:
        found["shrink"] = {**cuts, "importance": "first_order"}
    if plan.of_kind("rank"):
        found["factorize"] = {"rank": {named(o.place): int(o.value) for o in plan.of_kind("rank")}}
    by_share: dict[float, list[str]] = {}
    for option in plan.of_kind("zeros"):
        by_share.setdefault(option.value, []).extend(map(named, _parts(plan, option.place, split)))
    if by_share:
        found["prune"] = [{"sparsity": share, "include": paths} for share, paths in sorted(by_share.items())]
    if epochs:
        found["distill"] = {"temperature": 2.0}
    return found


def bits(plan: Candidate, split: Mapping[str, tuple[str, str]], named: Callable[[str], str]) -> dict[str, int]:
    """Bits by weight for the export; arguments as for `variant`."""
    return {named(p): int(o.value) for o in plan.of_kind("bits") for p in _parts(plan, o.place, split)}


def _parts(plan: Candidate, path: str, split: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    return split[path] if any(o.place == path for o in plan.of_kind("rank")) else (path,)
