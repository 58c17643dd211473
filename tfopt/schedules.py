"""Schedules: a training step in, what to do at that step out. Pure functions, no TensorFlow.

Argument names and values follow tensorflow-model-optimization's `PolynomialDecay` and
`ConstantSparsity`, whose own objects are accepted wherever these are: both are called with a step
and return the pair (update the masks now, sparsity).
"""

import dataclasses
import difflib
import math
from typing import Any, Literal, Protocol

from tfopt.errors import InputError

Clipping = Literal["global_norm", "norm", "value"]
Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]
StrategyName = Literal["auto", "none", "mirrored", "multi_worker", "parameter_server", "tpu"]
Tracker = Literal["mlflow", "wandb"]
OptimizerName = Literal["adamw", "adafactor", "sgd", "lion", "lamb", "muon"]
RateSchedule = Literal["cosine", "linear", "polynomial", "exponential", "inverse_sqrt", "constant", "plateau"]


class SparsitySchedule(Protocol):
    """Anything that maps a step to (update masks now, sparsity in [0, 1))."""

    def __call__(self, step: Any) -> tuple[Any, Any]: ...


def check_sparsity(value: float, name: str = "sparsity") -> float:
    """Returns `value` if it is a sparsity in [0, 1), else raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise InputError(f"{name} must be in [0, 1), got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Raises InputError unless `value` is one of the known; the nearest is named."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.0)[0]
        raise InputError(f"{name} must be one of {', '.join(known)}, got {value!r}; did you mean {near!r}?")


def _check_steps(begin_step: int, end_step: int, frequency: int) -> None:
    if begin_step < 0:
        raise InputError(f"begin_step must be 0 or more, got {begin_step}")
    if end_step != -1 and end_step < begin_step:
        raise InputError(f"end_step must not come before begin_step, got begin {begin_step}, end {end_step}")
    if frequency < 1:
        raise InputError(f"frequency must be 1 or more, got {frequency}")


def _is_update(step: int, begin_step: int, end_step: int, frequency: int) -> bool:
    if step < begin_step or (end_step != -1 and step > end_step):
        return False
    # The toolkit skips end_step when it is no multiple of frequency, and then never reaches the
    # final sparsity; here the last step always counts.
    return (step - begin_step) % frequency == 0 or step == end_step


class Follower:
    """What a schedule asks for while a model trains, though nobody may look after every step.

    Steps count from the first training that is followed, and go on in the next: an optimizer may come with a
    count of its own, from a file or from what was trained before.

    Args:
        schedule: step, from 1 on -> (update now, sparsity).
        resume: count what the optimizer has counted before as well, to go on with an earlier training.

    Attributes:
        done: steps taken so far.
        reached: the last sparsity that was asked for, None before there is one.
    """

    def __init__(self, schedule: SparsitySchedule, resume: bool = False) -> None:
        self._schedule, self._resume = schedule, resume
        self._origin: int | None = None  # the optimizer's count at step 0
        self._seen = -1  # the last step that was asked about
        self.done = 0
        self.reached: float | None = None

    @property
    def target(self) -> float | None:
        """The sparsity that the schedule ends at, where it says so."""
        found = getattr(self._schedule, "final_sparsity", getattr(self._schedule, "target_sparsity", None))
        return None if found is None else float(found)

    def begin(self, count: int) -> None:
        """A training begins, the first one or a further one, at this count of the optimizer."""
        if self._origin is None and self._resume:
            self.done = count
            self._seen = count - 1
        self._origin = count - self.done

    def due(self, count: int) -> float | None:
        """The sparsity to reach before the coming step, None where nothing was asked for since the last call."""
        self.done = count - (self._origin or 0)
        steps = [s for s in range(self._seen + 1, self.done + 2) if bool(self._schedule(s)[0])]
        self._seen = self.done + 1
        if not steps:
            return None
        self.reached = float(self._schedule(steps[-1])[1])
        return self.reached

    def why_idle(self, steps: int | None) -> str | None:
        """Why the schedule asks for nothing in a training of so many steps (None: unknown); None if it may."""
        begin, end = getattr(self._schedule, "begin_step", 0), getattr(self._schedule, "end_step", -1)
        if end != -1 and self.done > end and self.reached is None:
            return f"it ends at step {end}, and this training goes on at step {self.done}"
        if steps is not None and begin > self.done + steps:
            return f"it begins at step {begin}, and this training ends at step {self.done + steps}"
        return None


@dataclasses.dataclass(frozen=True)
class PolynomialDecay:
    """Sparsity grows from initial to final along `1 - (1 - progress) ** power`.

    Zhu and Gupta, "To prune, or not to prune", https://arxiv.org/abs/1710.01878.

    Args:
        initial_sparsity: sparsity at `begin_step`, in [0, 1).
        final_sparsity: sparsity from `end_step` on, in [0, 1).
        begin_step: first optimizer step at which masks are computed.
        end_step: last step at which masks are computed, after `begin_step`.
        power: exponent of the polynomial; 3 prunes fast first, slowly near the end.
        frequency: masks are recomputed every that many steps.

    Raises:
        InputError: a value outside its range.

    >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
    >>> [round(schedule(step)[1], 3) for step in (0, 500, 1000)], schedule(500)[0], schedule(550)[0]
    ([0.0, 0.7, 0.8], True, False)
    """

    initial_sparsity: float
    final_sparsity: float
    begin_step: int
    end_step: int
    power: float = 3
    frequency: int = 100

    def __post_init__(self) -> None:
        check_sparsity(self.initial_sparsity, "initial_sparsity")
        check_sparsity(self.final_sparsity, "final_sparsity")
        if self.end_step == -1:
            raise InputError("end_step of PolynomialDecay must be a step, got -1")
        _check_steps(self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> tuple[bool, float]:
        span = max(self.end_step - self.begin_step, 1)
        progress = min(max((step - self.begin_step) / span, 0.0), 1.0)
        if self.end_step == self.begin_step:
            progress = 1.0
        remaining = (1.0 - progress) ** self.power
        sparsity = self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * remaining
        return _is_update(step, self.begin_step, self.end_step, frequency=self.frequency), sparsity


@dataclasses.dataclass(frozen=True)
class ConstantSparsity:
    """The same sparsity from `begin_step` on.

    Args:
        target_sparsity: sparsity in [0, 1).
        begin_step: first optimizer step at which masks are computed.
        end_step: last such step, or -1 for no end.
        frequency: masks are recomputed every that many steps.

    Raises:
        InputError: a value outside its range.

    >>> ConstantSparsity(0.5, begin_step=10, frequency=5)(15)
    (True, 0.5)
    """

    target_sparsity: float
    begin_step: int
    end_step: int = -1
    frequency: int = 100

    def __post_init__(self) -> None:
        check_sparsity(self.target_sparsity, "target_sparsity")
        _check_steps(self.begin_step, self.end_step, self.frequency)

    def __call__(self, step: int) -> tuple[bool, float]:
        return _is_update(step, self.begin_step, self.end_step, frequency=self.frequency), self.target_sparsity


_END = 0.01  # of the peak, where an exponential ends


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate of each step.

    Cosine: Loshchilov and Hutter, https://arxiv.org/abs/1608.03983; inverse square root: Vaswani et al.,
    https://arxiv.org/abs/1706.03762.

    Attributes:
        schedule: "cosine", "linear" and "polynomial" end at 0, "exponential" at a hundredth of the peak;
            "inverse_sqrt" falls with the root of the step, "constant" does not; "plateau" is halved after each pass
            whose validation loss is no lower than that of the best, by the training.
        peak: after the warm-up.
        warmup: steps in which the rate grows to the peak.
        steps: of the whole training.
        power: of "polynomial".

    >>> rate = Rate("linear", peak=1.0, warmup=2, steps=6)
    >>> [rate(step) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    schedule: RateSchedule
    peak: float
    warmup: int
    steps: int
    power: float = 2.0

    def __call__(self, step: int) -> float:
        """The rate of the step after so many."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        left = 1.0 - min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return (
            self.peak
            * {
                "cosine": 0.5 * (1.0 - math.cos(math.pi * left)),
                "linear": left,
                "polynomial": left**self.power,
                "exponential": _END ** (1.0 - left),
                "inverse_sqrt": math.sqrt(max(1, self.warmup) / max(1, step)) if step > self.warmup else 1.0,
                "constant": 1.0,
                "plateau": 1.0,
            }[self.schedule]
        )
