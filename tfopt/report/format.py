"""Figures as people read them, the same in the terminal and in HTML."""

from collections.abc import Sequence

from tfopt.measure.results import Measurement

_BEFORE = (
    "artifact", "size", "gzip", "packed", "entropy bound", "smaller", "bits", "zeros", "latency p50", "p95",
    "faster", "rows/s", "memory",
)  # fmt: skip
_AFTER = (
    "agreement", "max error", "prefill tokens/s", "decode tokens/s", "first token", "cache", "same greedy text",
)  # fmt: skip
_AS_IT_IS = {"perplexity": "{:.2f}", "divergence": "{:.4f}"}  # metrics that are no shares


def megabytes(count: int | None) -> str:
    """Bytes as MB with three significant digits, or nothing."""
    return "" if count is None else f"{count / 1e6:.3g} MB"


def table(artifacts: Sequence[Measurement]) -> tuple[list[str], list[list[str]]]:
    """Column names and rows of a table of artifacts; columns without any figure are left out."""
    metrics = list(dict.fromkeys(name for m in artifacts for name in m.quality or ()))
    columns = [*_BEFORE, *(name.replace("_", " ") for name in metrics), *_AFTER]
    rows = [row(m, metrics) for m in artifacts]
    used = [i for i in range(len(columns)) if any(r[i] for r in rows)]
    return [columns[i] for i in used], [[r[i] for i in used] for r in rows]


def row(m: Measurement, metrics: Sequence[str]) -> list[str]:
    """One table row; empty where nothing was measured."""

    def shown(value: float | None, pattern: str) -> str:
        return "" if value is None else pattern.format(value)

    quality, answers = m.quality or {}, m.generation or {}
    first, cache = answers.get("first_token_s"), answers.get("cache_bytes")
    p50, p95 = (m.latency_ms.p50, m.latency_ms.p95) if m.latency_ms else (None, None)
    return [
        m.name, megabytes(m.bytes), megabytes(m.bytes_gzip), megabytes(m.bytes_packed),
        megabytes(m.bytes_entropy), shown(m.shrink, "{:.2f}x"),
        shown(m.weight_bits, "{:.1f}"), shown(m.kernel_sparsity, "{:.0%}"),
        shown(p50, "{:.2f} ms"), shown(p95, "{:.2f} ms"),
        shown(m.speedup, "{:.2f}x"), shown(m.throughput_per_s, "{:,.0f}"), megabytes(m.peak_memory_bytes),
        *(shown(quality.get(name), _AS_IT_IS.get(name, "{:.2%}")) for name in metrics),
        shown(m.agreement, "{:.1%}"), shown(m.max_abs_error, "{:.2g}"),
        shown(answers.get("prefill_tokens_per_s"), "{:,.0f}"),
        shown(answers.get("decode_tokens_per_s"), "{:,.0f}"), shown(first and first * 1e3, "{:.1f} ms"),
        megabytes(None if cache is None else int(cache)), shown(answers.get("greedy_agreement"), "{:.0%}"),
    ]  # fmt: skip
