"""Plain sentences about what the figures say, above all where a technique brought nothing."""

from collections.abc import Mapping, Sequence

from tfopt._base.formats import WRITTEN
from tfopt.measure.results import Measurement

_WRITTEN = {format.name for format in WRITTEN}
_QUANTIZED = {format.name for format in WRITTEN if format.quantizations}
_FAITHFUL = 0.95  # share of greedy tokens
_POINTS = 0.02  # a smaller change of an accuracy is not worth a sentence
_NOTHING = 1.05  # a ratio below this is within what these timings can tell


def findings(
    artifacts: Sequence[Measurement],
    pruned_from: Mapping[str, str] | None = None,
    *,
    rows: int | None = None,
    majority: float | None = None,
) -> list[str]:
    """Sentences about a set of measurements whose first one is the baseline.

    Args:
        artifacts: the measurements.
        pruned_from: name of a pruned artifact -> name of the same export of the unpruned model.
        rows: of the held-out data, where accuracy is of classes.
        majority: share of its most frequent class.
    """
    by_name = {m.name: m for m in artifacts}
    notes = []
    for name, other in (pruned_from or {}).items():
        if name in by_name and other in by_name:
            notes += _about_pruning(by_name[name], by_name[other])
    full = next((m for m in artifacts if m.format in _QUANTIZED and m.weight_bits == 32), None)
    for m in artifacts[1:]:
        if full and full.latency_ms and m.latency_ms and m.format in _QUANTIZED and m.weight_bits == 16:
            ratio = full.latency_ms.p50 / m.latency_ms.p50
            if ratio < _NOTHING:
                notes.append(f"{m.name}: float16 saves bytes and brought no speed ({ratio:.2f} times {full.name}).")
        elif m.speedup is not None and m.format in _WRITTEN and m.speedup < _NOTHING:
            notes.append(f"{m.name}: no faster than {artifacts[0].name} here ({m.speedup:.2f} times).")
    notes += [_about_greedy(m) for m in artifacts if (m.generation or {}).get("greedy_agreement", 1.0) < _FAITHFUL]
    notes += _about_accuracy(artifacts, rows, majority)
    noisy = [m.name for m in artifacts if m.latency_spread is not None and m.latency_spread > 0.1]
    if noisy:
        notes.append(f"Timings of {', '.join(noisy)} spread by more than 10 %: the machine was busy.")
    return notes


def _about_accuracy(artifacts: Sequence[Measurement], rows: int | None, majority: float | None) -> list[str]:
    """What is said of accuracies beyond two standard errors of the held-out data, and two points."""
    base = (artifacts[0].quality or {}).get("accuracy")
    if base is None:
        return []
    margin = max(_POINTS, 2 * (base * (1 - base) / rows) ** 0.5 if rows else 0.0)
    notes = []
    if majority is not None and base < majority + margin:
        notes.append(
            f"{artifacts[0].name}: its accuracy of {base:.2%} is about what always naming the most frequent class "
            f"gives ({majority:.2%}): it learned little. Train longer, with a higher rate, or with more data."
        )
    for m in artifacts[1:]:
        change = (m.quality or {}).get("accuracy", base) - base
        if change < -margin:
            notes.append(
                f"{m.name}: {base + change:.2%} accuracy, {-100 * change:.1f} points below {artifacts[0].name}."
            )
        elif change > margin:
            notes.append(
                f"{m.name}: {100 * change:.1f} points above {artifacts[0].name}; what gains is mostly more "
                "training, which the baseline could have had as well."
            )
    return notes


def _about_greedy(m: Measurement) -> str:
    """Why the greedy text is another one."""
    g = m.generation or {}
    return (
        f"{m.name}: {g['greedy_agreement']:.0%} of its greedy tokens are the float model's; at the first other "
        f"one, token {g['greedy_differs_at'] + 1:.0f}, that model's best logit was {g['greedy_margin_there']:.2f} "
        f"above the next (in the median {g['greedy_margin_median']:.2f}), and what follows continues another text."
    )


def _about_pruning(pruned: Measurement, plain: Measurement) -> list[str]:
    notes = []
    zeros = f"{pruned.kernel_sparsity or 0:.0%} zeros in the kernels"
    if pruned.latency_ms and plain.latency_ms:
        ratio = plain.latency_ms.p50 / pruned.latency_ms.p50
        if ratio < _NOTHING:
            notes.append(f"{pruned.name}: {zeros} brought no speed ({ratio:.2f} times {plain.name}).")
    saved = [
        f"{1 - getattr(pruned, key) / getattr(plain, key):.0%} {what}"
        for key, what in (("bytes", "as it is"), ("bytes_gzip", "after gzip"), ("bytes_packed", "packed"))
        if getattr(pruned, key) and getattr(plain, key)
    ]
    notes.append(f"{pruned.name}: {zeros} saved of the bytes of {plain.name} {', '.join(saved)}.")
    return notes
