"""Every figure of one artifact, or of several timed in turns."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tfopt import archive
from tfopt._base.files import size_of
from tfopt._base.remaining import told_one_by_one
from tfopt._base.spread import Workers
from tfopt.errors import InputError
from tfopt.measure import latency, quality, size
from tfopt.measure.results import Measurement
from tfopt.measure.text import add_text_figures
from tfopt.numerics.metrics import Scored, agreement, confusion
from tfopt.runtime import Predictor
from tfopt.runtime.child import try_in_child
from tfopt.runtime.operators import operator_times
from tfopt.runtime.shared import SharedPredictor
from tfopt.runtime.tflite import TFLitePredictor

Log = Callable[[str], None]
_SHOWN = 20  # rows with another answer


def measure(
    target: str | Path | Predictor,
    data: Iterable[Any] | None = None,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    name: str | None = None,
    threads: int | None = None,
    rounds: int = 50,
    seconds: float = 1.0,
    memory: bool = True,
    workers: Workers | int = 1,
) -> Measurement:
    """Measures one artifact.

    Args:
        target: an artifact's path, or a loaded Predictor.
        data: held-out batches of (inputs, labels); no quality without it.
        inputs: one row for timing, several rows for throughput; no timing without it.
        name: name in the result; by default the file's.
        threads: threads of the runtime.
        rounds: timed calls.
        seconds: for which the throughput is counted.
        memory: whether the peak memory of a process of its own is measured, which takes seconds.
        workers: who answers the held-out data; a number is one of processes.
    """
    label = name or Path(target.path if isinstance(target, Predictor) else target).stem
    found = compare_artifacts(
        {label: target}, data=data, inputs=inputs, threads=threads, rounds=rounds, seconds=seconds, memory=memory,
        workers=workers,
    )  # fmt: skip
    return dataclasses.replace(found[0], speedup=None, shrink=None, agreement=None)


def compare_artifacts(
    targets: Mapping[str, str | Path | Predictor],
    *,
    data: Iterable[Any] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    threads: int | None = None,
    rounds: int = 50,
    seconds: float = 1.0,
    memory: bool = True,
    errors: Mapping[str, float] | None = None,
    log: Log = lambda line: None,
    text: np.ndarray | None = None,
    window: int | None = None,
    score: Callable[[Any], Scored] | None = None,
    workers: Workers | int = 1,
) -> list[Measurement]:
    """Measures several artifacts; the first target is the baseline of the rest.

    Args:
        targets: name -> artifact.
        data, inputs, threads, rounds, seconds, memory, workers: as for `measure`.
        errors: name -> largest difference from the Keras model, as export found it.
        log: told what is being measured.
        text: token ids (length,) of held-out text, for causal language models: perplexity and generation.
        window: with it, how many tokens a model sees at once.
        score: what an artifact's answers are worth, where accuracy on `data` does not tell it; it takes what has
            the methods `predict` and `answered` of a Predictor.

    Raises:
        InputError: a text without a window.
    """
    if (text is None) != (window is None):
        raise InputError(f"text and window go together, got window={window}")
    predictors = {
        name: target if isinstance(target, Predictor) else Predictor.load(target, threads=threads)
        for name, target in targets.items()
    }
    log("sizes, plain and packed")
    found = {name: _stored(name, predictor) for name, predictor in predictors.items()}
    if inputs is not None:
        log(f"timing {len(predictors)} artifacts in turns")
        one = {name: value[:1] for name, value in inputs.items()}
        _add_timing(found, predictors, one, inputs=inputs, rounds=rounds, seconds=seconds, log=log)
        for name, predictor in predictors.items():
            if isinstance(predictor, TFLitePredictor):
                found[name] = dataclasses.replace(found[name], operators=_operators(predictor, one, threads))
        if memory:
            _add_memory(found, predictors, one, threads=threads, log=log)
    if data is not None:
        score = functools.partial(quality.accuracy_on, list(data))
    if score is not None:
        who = Workers.of(workers)
        asked = {n: SharedPredictor(p, who) for n, p in predictors.items()} if who.elsewhere else predictors
        _add_quality(found, asked, score, log=log)
    if text is not None and window is not None:
        log("perplexity and generation of all in turns")
        found = add_text_figures(found, predictors, text, window=window, rounds=rounds)
    baseline = next(iter(found.values()))
    return [
        dataclasses.replace(m, shrink=baseline.bytes / m.bytes, max_abs_error=(errors or {}).get(m.name))
        for m in found.values()
    ]


def _stored(name: str, predictor: Predictor) -> Measurement:
    weights, packed = predictor.weights(), archive.sizes(predictor.path)
    return Measurement(
        name, predictor.format, str(predictor.path), bytes=size_of(predictor.path),
        bytes_gzip=size.gzip_bytes(predictor.path), bytes_packed=packed.packed_bytes,
        bytes_entropy=packed.entropy_bytes, sparsity=size.sparsity(weights),
        kernel_sparsity=size.sparsity([w for w in weights if w.is_kernel]),
        weight_bits=size.weight_bits(weights),
    )  # fmt: skip


def _add_timing(
    found: dict[str, Measurement],
    predictors: Mapping[str, Predictor],
    one: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    rounds: int,
    seconds: float,
    log: Log,
) -> None:
    timings = latency.interleaved(list(predictors.values()), one, rounds, log=log)
    names = told_one_by_one("throughput of {}", list(predictors), log)
    for name, timing in zip(names, timings, strict=True):
        found[name] = dataclasses.replace(
            found[name],
            latency_ms=timing.latency,
            latency_spread=timing.spread,
            speedup=latency.speedup(timings[0], timing),
            throughput_per_s=latency.throughput(predictors[name], inputs, seconds),
        )


def _operators(predictor: Predictor, one: dict[str, np.ndarray], threads: int | None) -> list[dict[str, Any]]:
    """Of a file that has just been run: times by kind of operator."""
    return [dataclasses.asdict(t) for t in operator_times(predictor.path, one, threads)]


def _add_memory(
    found: dict[str, Measurement],
    predictors: Mapping[str, Predictor],
    one: dict[str, np.ndarray],
    threads: int | None,
    log: Log,
) -> None:
    """Two processes at a time: most of their time they load a runtime on one core."""
    with ThreadPoolExecutor(2) as pool:
        runs = pool.map(
            lambda p: try_in_child(p.path, one, threads, alone=True, trust=p.trust, imports=p.imports),
            predictors.values(),
        )
        names = told_one_by_one("memory of {} in a process of its own", list(predictors), log)
        for name, run in zip(names, runs, strict=True):
            found[name] = dataclasses.replace(found[name], peak_memory_bytes=run.peak_memory_bytes)


def _add_quality(
    found: dict[str, Measurement],
    predictors: Mapping[str, Predictor | SharedPredictor],
    score: Callable[[Any], Scored],
    log: Log,
) -> None:
    reference: list[Any] | None = None
    for name in told_one_by_one("quality of {} on held-out data", list(predictors), log):
        scored = score(predictors[name])
        changed = None if reference is None else _changed(scored, reference)
        reference = scored.answers if reference is None else reference
        found[name] = dataclasses.replace(
            found[name], quality=scored.metrics, agreement=agreement(scored.answers, reference), changed=changed,
            confusion=None if scored.true is None else confusion(scored.answers, scored.true),
        )  # fmt: skip


def _changed(scored: Scored, reference: Sequence[Any]) -> list[dict[str, Any]]:
    """The first rows whose answers differ."""
    rows = (i for i, (a, b) in enumerate(zip(scored.answers, reference, strict=True)) if a != b)
    return [
        {"row": i, "answer": scored.answers[i], "baseline": reference[i],
         **({} if scored.true is None else {"true": scored.true[i]})}
        for i in itertools.islice(rows, _SHOWN)
    ]  # fmt: skip
