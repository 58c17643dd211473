"""One encoder on every runtime: Keras, SavedModel, XLA, LiteRT, onnxruntime, OpenVINO, in one process.

A 6-layer, 384-wide encoder (the shape of MiniLM-L6), batch 1, length 128. Every runtime gets the same network
with the same weights and the same number of threads; each turn runs one of them for 50 ms untimed, so that the
threads that still spin for the one before have come to rest, and then times a few calls in a row.

    make bench-env && .venv-bench/bin/python -m benchmarks.runtimes --threads 2
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, milliseconds, paired, ratio, save, show

LENGTH, HEADS, CALLS, SETTLE_S = 128, 12, 8, 0.05


def onnx_runtime(path: Path, feed: dict[str, np.ndarray], threads: int) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)[0]


def onnx_int8(path: Path, target: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(target), weight_type=QuantType.QInt8, per_channel=True)
    return target


def openvino(model: Any, feed: dict[str, np.ndarray], threads: int) -> Callable[[], np.ndarray]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda: np.array(next(iter(request.infer(feed).values())))


def openvino_int8(path: Path, samples: list[dict[str, np.ndarray]]) -> Any:
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    return nncf.quantize(
        model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples)
    )


def contestants(folder: Path, threads: int) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """Every runtime as a call, and how far its logits are from those of the Keras model."""
    import openvino as ov

    from benchmarks.onnx_bert import write_onnx
    from tfopt import Predictor, export
    from tfopt._keras import keras_api
    from tfopt.models import BertConfig, bert
    from tfopt.runtime.saved_model import set_threads

    set_threads(threads)
    keras_api.keras_module("tf_keras").utils.set_random_seed(0)
    model = bert(BertConfig(30522), 2)
    keras_api.save_model(model, folder / "model.keras")
    export(model, folder / "saved_model")
    export(model, folder / "xla", jit_compile=True, lengths=[LENGTH])
    export(model, folder / "float.tflite", format="tflite", lengths=[LENGTH])
    export(model, folder / "int8.tflite", format="tflite", quantization="dynamic_int8", lengths=[LENGTH])
    rng = np.random.default_rng(0)

    def sample() -> dict[str, np.ndarray]:
        return {"input_ids": rng.integers(0, 30522, (1, LENGTH)), "attention_mask": np.ones((1, LENGTH), np.int64)}

    feed = sample()
    runs: dict[str, Callable[[], Any]] = {}
    files = {
        "Keras model.predict": "model.keras", "SavedModel": "saved_model", "SavedModel XLA": "xla",
        "LiteRT float": "float.tflite", "LiteRT dynamic int8": "int8.tflite",
    }  # fmt: skip
    for name, file in files.items():
        predictor = Predictor.load(folder / file, threads=threads)
        runs[name] = lambda p=predictor: p.predict(feed)["logits"]
    write_onnx(model, folder / "model.onnx", HEADS, LENGTH)
    runs["onnxruntime float"] = onnx_runtime(folder / "model.onnx", feed, threads)
    runs["onnxruntime dynamic int8"] = onnx_runtime(
        onnx_int8(folder / "model.onnx", folder / "q.onnx"), feed, threads
    )
    runs["OpenVINO float"] = openvino(ov.Core().read_model(folder / "model.onnx"), feed, threads)
    quantized = openvino_int8(folder / "model.onnx", [sample() for _ in range(64)])
    runs["OpenVINO int8 (NNCF)"] = openvino(quantized, feed, threads)
    reference = runs["Keras model.predict"]()
    errors = {name: float(np.abs(np.asarray(run()) - reference).max()) for name, run in runs.items()}
    for name, error in errors.items():
        limit = (0.3 if "int8" in name else 1e-2) * float(np.abs(reference).max())
        assert error < limit, f"{name} computes something else: {error}"
    return runs, errors


def in_turn(run: Callable[[], Any]) -> Callable[[], float]:
    """A turn of several calls after enough untimed ones; returns the mean seconds of one."""

    def turn() -> float:
        settled = time.perf_counter() + SETTLE_S
        while time.perf_counter() < settled:
            run()
        started = time.perf_counter()
        for _ in range(CALLS):
            run()
        return (time.perf_counter() - started) / CALLS

    return turn


def in_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Mean seconds of a call in every turn of each contestant."""
    turns, recorded = {key: in_turn(run) for key, run in runs.items()}, {key: list[float]() for key in runs}
    paired({k: lambda k=k: recorded[k].append(turns[k]()) for k in turns}, rounds, warm_up=3)
    return {key: np.array(values[3:]) for key, values in recorded.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs, errors = contestants(Path(name), arguments.threads)
        seconds = in_turns(runs, arguments.rounds)
    ours = seconds["LiteRT dynamic int8"]
    latency = {key: milliseconds(s) for key, s in seconds.items()}
    ratios = {f"{key} / LiteRT dynamic int8": ratio(s, ours) for key, s in seconds.items()}
    show({f"{k} [ms]": v for k, v in latency.items()} | ratios)

    def against(key: str) -> float:
        return ratios[f"{key} / LiteRT dynamic int8"]["median"]

    goals = [
        goal("float SavedModel / our int8", against("SavedModel"), 4.5),
        goal("model.predict / our int8", against("Keras model.predict"), 15),
        goal("onnxruntime dynamic int8 / our int8", against("onnxruntime dynamic int8"), 1.6),
        goal("OpenVINO int8 (NNCF) / our int8", against("OpenVINO int8 (NNCF)"), 1.0),
    ]
    save(f"runtimes_{arguments.threads}_threads", {
        "threads": arguments.threads, "latency_ms": latency, "ratios": ratios, "max_abs_error": errors,
        "goals": goals, "rounds": arguments.rounds,
    })  # fmt: skip


if __name__ == "__main__":
    main()
