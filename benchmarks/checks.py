"""What looking costs: checks of files against loading them, checks of inputs against a prediction, and sharing.

python -m benchmarks.checks

Loading is that of `tfopt.models.load` against Keras's own; a prediction is one of about a millisecond, with the
checks of its inputs and without. Two threads share a predictor behind its lock: compared with a predictor of one
core for each.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tf_keras

import tfopt
from benchmarks.common import goal, milliseconds, paired, ratio, save, show
from tfopt.models import BertConfig, bert
from tfopt.runtime.inputs import check_masks, checked

_CALLS = 30  # of each thread in one round
_SMALL = BertConfig(vocab_size=300, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=512, max_position_embeddings=128)  # fmt: skip
_MINILM = BertConfig(vocab_size=30_522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                     intermediate_size=1536, max_position_embeddings=512)  # fmt: skip


def loading(folder: Path) -> dict[str, Any]:
    """Seconds of loading an encoder of 90 MB, and of the checks among them."""
    import tfopt._keras.loading as loading_module
    from tfopt._keras.hdf5 import check_hdf5
    from tfopt._keras.trust import refuse_code

    model = bert(_MINILM, 2)
    path = tfopt.models.save(model, folder / "m.keras")
    with tempfile.TemporaryDirectory() as unpacked:
        import zipfile

        with zipfile.ZipFile(path) as archive:
            weights = Path(archive.extract("model.weights.h5", unpacked))
        config, _ = loading_module._read_config(path)
        seconds = paired({
            "load": lambda: tfopt.models.load(path),
            "checks": lambda: (loading_module._read_config(path), refuse_code(config, path, generation="tf_keras"),
                               check_hdf5(weights, weights.stat().st_size, path)),
            "Keras": lambda: tf_keras.models.load_model(path, compile=False),
        }, rounds=5, warm_up=1)  # fmt: skip
    return {"times_ms": {n: milliseconds(s) for n, s in seconds.items()},
            "checks / load": ratio(seconds["checks"], seconds["load"]),
            "load / Keras": ratio(seconds["load"], seconds["Keras"])}  # fmt: skip


def prediction(path: Path) -> dict[str, Any]:
    """A prediction, and the checks of its inputs."""
    predictor = tfopt.Predictor.load(path, threads=1)
    ids = np.random.default_rng(0).integers(0, 300, (1, 32)).astype(np.int32)
    named = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    types = {name: dtype for name, (_, dtype) in predictor.signatures[0].inputs.items()}

    def check() -> None:
        check_masks({name: checked(name, value, dtype=types[name], limit=300) for name, value in named.items()})

    def cast() -> None:
        for name, value in named.items():
            np.asarray(value).astype(types[name])

    def often(work: Any) -> Any:
        return lambda: [work() for _ in range(200)]

    seconds = paired({"predict": often(lambda: predictor.predict(named)), "checks": often(check),
                      "casts, as before": often(cast)}, rounds=15)  # fmt: skip
    added = seconds["checks"] - seconds["casts, as before"]
    return {"times_us": {n: milliseconds(s / 200 * 1e3) for n, s in seconds.items()},
            "added / prediction of 1 ms": round(float(np.median(added)) / 200 / 1e-3, 4),
            "added / prediction": ratio(added, seconds["predict"])}  # fmt: skip


def sharing(path: Path) -> dict[str, Any]:
    """Two threads at one predictor behind its lock, against one of one core for each."""
    shared, alone = tfopt.Predictor.load(path), [tfopt.Predictor.load(path, threads=1) for _ in range(2)]
    ids = np.random.default_rng(0).integers(0, 300, (1, 128)).astype(np.int32)
    named = {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def together(predictors: list[Any]) -> Any:
        def call(predictor: Any) -> None:
            for _ in range(_CALLS):
                predictor.predict(named)

        def work() -> None:
            threads = [threading.Thread(target=call, args=(p,)) for p in predictors]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        return work

    seconds = paired({"lock": together([shared, shared]),
                      "one for each": together(alone)}, rounds=15)  # fmt: skip
    return {"times_ms": {n: milliseconds(s / (2 * _CALLS)) for n, s in seconds.items()},
            "one for each / lock": ratio(seconds["one for each"], seconds["lock"])}  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    started, found = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["loading"] = loading(folder)
        tfopt.export(bert(_SMALL, 2), folder / "small.tflite", lengths=[32])
        found["prediction"] = prediction(folder / "small.tflite")
        for size, config in {"small": _SMALL, "MiniLM": _MINILM}.items():
            path = folder / f"{size}-shared.tflite"
            tfopt.export(bert(config, 2), path, quantization="dynamic_int8", lengths=[128])
            found[f"sharing, {size}"] = sharing(path)
    for name, values in found.items():
        print(name)
        show({key: value for key, value in values.items() if isinstance(value, dict) and "median" in value})
    goals = [
        goal("checks / loading", found["loading"]["checks / load"]["median"], 0.05, at_most=True),
        goal(
            "checks / a prediction of 1 ms", found["prediction"]["added / prediction of 1 ms"], 0.02, at_most=True
        ),
    ]
    save("checks", {**found, "goals": goals, "seconds": round(time.monotonic() - started)})


if __name__ == "__main__":
    main()
