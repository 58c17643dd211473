"""Plain sentences about what the figures say, above all where a technique brought nothing."""

from collections.abc import Mapping, Sequence

from tfopt.measure.results import Measurement

_NOTHING = 1.05  # a ratio below this is within what these timings can tell


def findings(artifacts: Sequence[Measurement], pruned_from: Mapping[str, str] | None = None) -> list[str]:
    """Sentences about a set of measurements whose first one is the baseline.

    Args:
        artifacts: the measurements.
        pruned_from: name of a pruned artifact -> name of the same export of the unpruned model.
    """
    by_name = {m.name: m for m in artifacts}
    notes = []
    for name, other in (pruned_from or {}).items():
        if name in by_name and other in by_name:
            notes += _about_pruning(by_name[name], by_name[other])
    for m in artifacts[1:]:
        if m.format == "tflite" and m.weight_bits and 15 < m.weight_bits < 17 and m.speedup:
            full = next((o for o in artifacts if o.format == "tflite" and o.weight_bits == 32), None)
            if full is not None and full.speedup and m.speedup < full.speedup * _NOTHING:
                notes.append(
                    f"{m.name}: float16 halves the bytes and brings no speed on this processor "
                    f"({m.speedup / full.speedup:.2f} times {full.name})."
                )
    noisy = [m.name for m in artifacts if m.latency_spread is not None and m.latency_spread > 0.1]
    if noisy:
        notes.append(f"Timings of {', '.join(noisy)} spread by more than 10 %: the machine was busy.")
    return notes


def _about_pruning(pruned: Measurement, plain: Measurement) -> list[str]:
    notes = []
    if pruned.latency_ms and plain.latency_ms:
        ratio = plain.latency_ms.p50 / pruned.latency_ms.p50
        if ratio < _NOTHING:
            notes.append(
                f"{pruned.name}: unstructured zeros ({pruned.kernel_sparsity or 0:.0%} of the kernels) brought no "
                f"speed ({ratio:.2f} times {plain.name}); no runtime here skips them."
            )
    if pruned.bytes_gzip and plain.bytes_gzip:
        less = 1 - pruned.bytes_gzip / plain.bytes_gzip
        notes.append(
            f"{pruned.name}: the file is as large as {plain.name}; the zeros show after compression, "
            f"{less:.0%} fewer gzip bytes."
        )
    return notes
