"""What measuring gives: frozen values, nothing that was not measured."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds per call with one row: median and tails over all timed calls."""

    p50: float
    p95: float
    p99: float


@dataclasses.dataclass(frozen=True, repr=False)
class Measurement:
    """Figures of one artifact; None stands for "not measured".

    Attributes:
        name: name in the comparison.
        format: "keras", "saved_model" or "tflite".
        path: where the artifact is.
        bytes: of the file or folder.
        bytes_gzip: of the same after gzip -6.
        bytes_packed: of the same as a `.tfopt` archive.
        bytes_entropy: what that archive needs at least; see `tfopt.archive.Packed`.
        sparsity: share of zeros among the elements of all weight matrices, as stored.
        kernel_sparsity: the same without lookup tables, which pruning leaves alone by default.
        weight_bits: mean bits per element of the weight matrices, as stored.
        latency_ms: see `Latency`.
        latency_spread: half the range between quartiles of the timed calls, as a share of the median.
        speedup: median over paired rounds of the baseline's time by this artifact's.
        throughput_per_s: rows per second in batches.
        peak_memory_bytes: largest resident memory of a process that loads and runs it once.
        quality: metric -> value on held-out data, computed from the artifact's own outputs.
        max_abs_error: largest difference from the Keras model it was exported from.
        agreement: share of held-out rows, or tokens, that get the baseline's class.
        shrink: the baseline's bytes by this artifact's.
        generation: for causal language models that generate: "prefill_tokens_per_s", "decode_tokens_per_s",
            "first_token_s", "cache_bytes", "greedy_agreement" (share of the first greedy tokens after held-out
            prompts that are those of the first artifact that generates) and, where they differ, the first place
            "greedy_differs_at", by how much that artifact's best logit was above its second there,
            "greedy_margin_there", and in general, "greedy_margin_median".
        confusion: of classes: "classes", and "counts" with a row for each true one; see `numerics.metrics`.
        changed: some held-out rows that get another answer than from the baseline: "row", "answer", "baseline",
            where it is a class also "true", and "text" where there is one.
        operators: of TFLite files, the kinds of operators with "count", how many are "accelerated", and the
            "milliseconds" of all, each timed alone.
        layers: for files with integer weights, each matrix with its bits, what one scale covers, and the
            reason where it stayed in float.
    """

    name: str
    format: str
    path: str
    bytes: int
    bytes_gzip: int | None = None
    bytes_packed: int | None = None
    bytes_entropy: int | None = None
    sparsity: float | None = None
    kernel_sparsity: float | None = None
    weight_bits: float | None = None
    latency_ms: Latency | None = None
    latency_spread: float | None = None
    speedup: float | None = None
    throughput_per_s: float | None = None
    peak_memory_bytes: int | None = None
    quality: dict[str, float] | None = None
    max_abs_error: float | None = None
    agreement: float | None = None
    shrink: float | None = None
    generation: dict[str, float] | None = None
    layers: list[dict[str, Any]] | None = None
    confusion: dict[str, Any] | None = None
    changed: list[dict[str, Any]] | None = None
    operators: list[dict[str, Any]] | None = None

    def __repr__(self) -> str:
        parts = [repr(self.name), self.format, f"{self.bytes:,} bytes"]
        if self.latency_ms is not None:
            parts.append(f"{self.latency_ms.p50:.4g} ms")
        parts += [f"{name} {value:.4g}" for name, value in (self.quality or {}).items()]
        parts += [f"{name} {value:.4g}" for name, value in (self.generation or {}).items() if "_per_s" in name]
        return f"Measurement({', '.join(parts)})"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measurement":
        """The reverse of `dataclasses.asdict`; absent values were not measured."""
        latency = values.get("latency_ms")
        return cls(**{**values, "latency_ms": Latency(**latency) if latency else None})
