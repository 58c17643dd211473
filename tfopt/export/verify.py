"""Checks a written artifact against the float model it came from.

The artifact runs in a child process, on the samples in both orders, and in a second runtime where one takes it. Its
answers are compared with those of the Keras model in float: a file that only does what a simulation of it does may
be wrong together with the simulation. Every check has a name and a stated limit. What is inside a file is checked
by the module that writes it.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tfopt._base.children import ChildFailedError
from tfopt.errors import InputError, VerificationError
from tfopt.export.artifact import Check
from tfopt.numerics.agreement import (
    ACCEPTABLE,
    class_agreement,
    correlation,
    divergence,
    next_tokens,
    perplexities,
    rank_agreement,
    signal_to_noise,
    varies,
)
from tfopt.quantization.config import QuantizeConfig
from tfopt.runtime.child import try_in_child

_log = logging.getLogger(__name__)
Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How close a kind of file must come to the float model.

    Attributes:
        error: largest difference of an output from what the file should compute, as a share of the largest value.
        correlation: least, of what differs between rows.
        decibels: least ratio of that to the error.
        agreement: least share of given samples that keep their class.
        rank: least agreement of the order of given samples, by outputs of one value.
        next_tokens: of texts, least share of tokens at which the same one is the likeliest next.
        divergence: of texts, largest mean divergence of what comes next, in nats.
        perplexity: of texts, largest perplexity, as a multiple of the float model's.
    """

    error: float
    correlation: float
    decibels: float
    agreement: float
    rank: float
    next_tokens: float
    divergence: float
    perplexity: float


# Random weights and inputs give the least: the classes and ranks of such models are decided by single roundings.
_FLOAT32 = Limits(error=1e-3, correlation=0.999, decibels=30, agreement=1.0, rank=0.99,
                  next_tokens=0.99, divergence=1e-3, perplexity=1.001)  # fmt: skip
_FLOAT16 = Limits(error=2e-2, correlation=0.995, decibels=20, agreement=0.99, rank=0.98,
                  next_tokens=0.96, divergence=0.01, perplexity=1.01)  # fmt: skip
_INT8 = Limits(error=0.25, correlation=0.95, decibels=9, agreement=0.9, rank=0.9,
               next_tokens=0.7, divergence=0.2, perplexity=1.15)  # fmt: skip
_STATIC = Limits(error=0.25, correlation=0.9, decibels=3, agreement=0.85, rank=0.85,
                 next_tokens=0.6, divergence=0.3, perplexity=1.3)  # fmt: skip
FEW_BITS = Limits(error=0.25, correlation=0.8, decibels=3, agreement=0.7, rank=0.8,
                  next_tokens=0.4, divergence=0.8, perplexity=2.0)  # fmt: skip


def limits_for(name: str | None, config: QuantizeConfig | None = None) -> Limits:
    """Limits of a kind of file: by its name, and for integers by what its weights and activations are."""
    if name is None:
        return _FLOAT32
    if name == "float16":
        return _FLOAT16
    if config is None:
        return _INT8
    bits = min([config.weight_bits or 8, *(bits or 8 for bits in config.bits.values())])
    if bits >= 8 or name == "trained":
        return _STATIC if config.is_static else _INT8
    # Of integer activations the error is a mean, in which rows that are lost would not show.
    return dataclasses.replace(FEW_BITS, correlation=0.85) if config.is_static else FEW_BITS


@dataclasses.dataclass(frozen=True)
class Verified:
    """What the comparison found.

    Attributes:
        outputs: of the artifact.
        checks: that it passed, or that were accepted.
        agreement: share of the rows that keep their class; None where that means nothing.
    """

    outputs: Values
    checks: tuple[Check, ...]
    agreement: float | None


def check_accepted(accept: Sequence[str]) -> None:
    """Raises InputError for what cannot be accepted: a file that does not load or repeat itself is no use."""
    if isinstance(accept, str) or not set(accept) <= set(ACCEPTABLE):
        raise InputError(f"accept must be a list out of {', '.join(ACCEPTABLE)}, got {accept!r}")


def check_outputs(
    path: Path,
    samples: Values,
    *,
    reference: Values,
    limits: Limits,
    given: bool,
    expected: Values | None = None,
    accept: Sequence[str] = (),
    static: bool = False,
    limit: float | None = None,
    text: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    labels_tokens: bool = False,
) -> Verified:
    """Runs the artifact on the samples in a child process and compares.

    Args:
        path: the artifact.
        samples: inputs by name.
        reference: what the float model gives on them.
        limits: that its kind has to keep.
        given: whether the samples are somebody's data; of random ones, classes and ranks say nothing.
        expected: what the file should compute, with its roundings; by default `reference`.
        accept: names of checks that may fail; they are then marked as accepted.
        static: the artifact has integer activations, where a rounding that falls the other way may change single
            samples a lot; the error is then the root of the mean square instead of the largest.
        limit: largest error that is accepted, instead of the one of `limits`.
        text: of a causal language model, the token ids; single logits of an integer file may then differ more,
            since what comes next is compared itself.
        mask: 0 where the samples hold padding, of shape (rows, tokens); None where nothing tells it.
        labels_tokens: each token has classes of its own. Of other outputs of more than two axes, only those that
            are probabilities are taken for classes: features have a largest one as well.

    Raises:
        VerificationError: named "loads", "outputs", "finite", "repeats", or as in `numerics.agreement.MEASURES`.
    """
    try:
        run = try_in_child(path, samples, again=True)
    except ChildFailedError as error:
        raise VerificationError("loads", str(error)) from error
    expected = reference if expected is None else expected
    if set(run.outputs) != set(expected):
        raise VerificationError(
            "outputs", f"the artifact gives {sorted(run.outputs)}, the model {sorted(expected)}"
        )
    judge = _Judge(accept, several=len(expected) > 1)
    judge.checks.append(Check("loads", "in a child process", ""))
    for name, want in expected.items():
        _check_shape(name, run.outputs[name], want)
        assert run.again is not None
        _check_repeats(name, run.outputs[name], run.again[name])
        # Of a float file every logit counts; of integers, what comes next is compared itself.
        rms = static or (text is not None and limits.error > _FLOAT16.error)
        judge.error(name, run.outputs[name], want, limits=limits, rms=rms, most=limit)
        judge.signal(name, run.outputs[name], reference[name], limits=limits)
        if text is not None:
            judge.text(name, run.outputs[name], reference[name], limits=limits, ids=text)
    judge.checks.append(Check("repeats", "the same in another order", "the same"))
    agreement = None
    for name, want in reference.items() if given else ():
        found, wanted = _as_rows(run.outputs[name], want, mask, labels_tokens=labels_tokens)
        agreement = judge.answers(name, found, wanted, limits=limits) if agreement is None else agreement
    if run.second is None:
        judge.checks.append(Check("second runtime", run.second_name, "where one takes it"))
    else:
        for name in set(run.second) & set(reference):
            values = run.second[name]
            # One text alone says little of what rounding costs: there the runtimes are compared with each other.
            wanted = reference[name] if len(values) > 1 else run.outputs[name]
            judge.signal(name, values, wanted[: len(values)], limits=limits, runtime=run.second_name)
    return Verified(run.outputs, tuple(judge.checks), agreement)


class _Judge:
    """Holds what was found to its limits, and keeps a list of it."""

    def __init__(self, accept: Sequence[str], several: bool) -> None:
        self._accept, self._several = accept, several
        self.checks: list[Check] = []

    def error(
        self, name: str, found: np.ndarray, want: np.ndarray, limits: Limits, rms: bool, most: float | None
    ) -> None:
        """The difference from what the file should compute."""
        kind = "rms_error" if rms else "max_abs_error"
        allowed = most if most is not None else limits.error * max(float(np.abs(want).max()), 1e-6)
        difference = found.astype(np.float64) - want
        error = float(np.sqrt((difference**2).mean()) if rms else np.abs(difference).max())
        self._hold(kind, name, error, allowed, error <= allowed, "differs by {:.4g}, allowed are {:.4g}")

    def signal(self, name: str, found: np.ndarray, want: np.ndarray, limits: Limits, runtime: str = "") -> None:
        """Correlation and signal-to-noise ratio with the float model."""
        where = f" in {runtime}" if runtime else ""
        if not varies(want):
            # A float file is held to its error, which is small; of integers, nothing is known.
            fine = limits.error <= _FLOAT16.error
            words = "of the model is the same for every sample, which shows nothing: pass representative data"
            self._hold("informative", name, "the same for every sample", "differs", fine, words)
            return
        value = correlation(found, want)
        words = f"correlates with the float model by {{:.4f}}{where}, {{:.4g}} or more are needed"
        self._hold("correlation", name, value, limits.correlation, value >= limits.correlation, words, where)
        value = signal_to_noise(found, want)
        words = f"is {{:.1f}} dB above its error{where} against the float model, {{:.4g}} or more are needed"
        self._hold("signal_to_noise", name, value, limits.decibels, value >= limits.decibels, words, where)

    def text(self, name: str, found: np.ndarray, want: np.ndarray, limits: Limits, ids: np.ndarray) -> None:
        """What comes next in a text."""
        value = next_tokens(found, want)
        words = "keeps {:.1%} of the likeliest next tokens, {:.0%} or more are needed"
        self._hold("next_tokens", name, value, limits.next_tokens, value >= limits.next_tokens, words)
        value = divergence(found, want)
        words = "diverges from the float model by {:.4g} nats a token, {:.4g} are allowed"
        self._hold("divergence", name, value, limits.divergence, value <= limits.divergence, words)
        if ids.shape[1] < 2:
            return  # nothing comes next
        value, ours = perplexities(found, want, ids)
        words = "has perplexity {:.4g} on the text, {:.4g} are allowed"
        self._hold("perplexity", name, value, limits.perplexity * ours, value <= limits.perplexity * ours, words)

    def answers(self, name: str, found: np.ndarray, want: np.ndarray, limits: Limits) -> float | None:
        """Classes, or the order of the rows where an output has one value; returns the first."""
        if want.ndim != 2 or not varies(want):
            return None
        if want.shape[1] == 1:
            value = rank_agreement(found, want)
            fine = value >= limits.rank or len(want) < 8
            self._hold("rank", name, value, limits.rank, fine, "orders the samples otherwise ({:.3f}, not {:.4g})")
            return None
        value = class_agreement(found, want)
        # Of a few samples, one may fall either way.
        fine = round((1 - value) * len(want)) <= max(1, (1 - limits.agreement) * len(want))
        self._hold("agreement", name, value, limits.agreement, fine, "keeps {:.1%} of the classes, not {:.0%}")
        return value

    def _hold(
        self, kind: str, name: str, found: float | str, limit: float | str, fine: bool, words: str, where: str = ""
    ) -> None:
        title = f"{kind} of {name}{where}" if self._several else f"{kind}{where}"
        if not fine:
            what = f"output {name!r} {words.format(found, limit)}"
            if kind not in self._accept:
                raise VerificationError(kind, what)
            _log.warning("accepted, though check %r failed: %s", kind, what)
        self.checks.append(Check(title, found, limit, accepted=not fine))


def _as_rows(
    found: np.ndarray, want: np.ndarray, mask: np.ndarray | None, labels_tokens: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Answers of shape (rows, classes), where each token or place has its own, without those of padding."""
    if want.ndim < 3 or not (labels_tokens or _are_probabilities(want)):
        return found, want
    counts = np.ones(want.shape[:-1], bool)
    if mask is not None and mask.shape == want.shape[:2]:
        counts &= mask.reshape(*mask.shape, *[1] * (want.ndim - 3)) != 0
    return found[counts], want[counts]


def _are_probabilities(values: np.ndarray) -> bool:
    return values.shape[-1] > 1 and values.min() >= 0 and bool(np.abs(values.sum(-1) - 1).max() < 1e-3)


def largest_error(found: Values, expected: Values) -> float:
    """Largest absolute difference over all outputs."""
    return max(float(np.abs(found[name] - value).max()) for name, value in expected.items())


def _check_shape(name: str, found: np.ndarray, want: np.ndarray) -> None:
    if not np.isfinite(want).all():
        raise VerificationError("finite", f"the model itself gives NaN or infinity in output {name!r}")
    if found.shape != want.shape:
        raise VerificationError("outputs", f"{name!r} has shape {found.shape}, not {want.shape}")
    if not np.isfinite(found).all():
        raise VerificationError("finite", f"output {name!r} holds NaN or infinity")


def _check_repeats(name: str, found: np.ndarray, again: np.ndarray) -> None:
    """The same rows in another order give the same answers; a sum in another order changes last bits."""
    off = float(np.abs(found - again).max())
    if not off <= 1e-4 * max(float(np.abs(found).max()), 1e-6):
        raise VerificationError(
            "repeats", f"output {name!r} of the same samples in another order differs by {off:.4g}"
        )
