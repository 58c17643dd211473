"""Static 8-bit training of a convolutional and a dense model, ours beside tensorflow-model-optimization's.

    python -m benchmarks.quantization_toolkit

The same data (scikit-learn's handwritten digits), float model, optimizer and epochs for both; accuracy on held-out
digits over several seeds.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from sklearn.datasets import load_digits

import tfopt
from benchmarks.common import goal, save, show

SEEDS, EPOCHS = 24, 5


def dense() -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential([
        layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64, activation="relu"),
        layers.Dense(32, activation="relu"), layers.Dense(10),
    ])  # fmt: skip


def conv() -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(16, 3, padding="same", use_bias=False), layers.BatchNormalization(),
        layers.ReLU(), layers.DepthwiseConv2D(3, padding="same", activation="relu"), layers.MaxPooling2D(),
        layers.Conv2D(32, 3, activation="relu"), layers.Flatten(), layers.Dense(10),
    ])  # fmt: skip


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    rows: dict[str, Any] = {}
    goals = []
    for build in (dense, conv):
        found = [_one(build, seed, images, labels=labels) for seed in range(SEEDS)]
        figures = {name: [run[name] for run in found] for name in found[0]}
        rows[build.__name__] = {
            name: {"mean": round(float(np.mean(v)), 3), "deviation": round(float(np.std(v)), 3)}
            for name, v in figures.items()
        }
        ahead = float(np.mean(np.array(figures["ours, file"]) - np.array(figures["toolkit"])))
        goals.append(goal(f"{build.__name__}: our file ahead of quantize_model, points", ahead, 0.0))
    show(rows)
    save("quantization_toolkit", {"seeds": SEEDS, "epochs": EPOCHS, "accuracy": rows, "goals": goals})


def _one(build: Any, seed: int, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy in percent on a third of the digits that was held out with this seed."""
    order = np.random.default_rng(seed).permutation(len(images))
    test, train = order[: len(order) // 3], order[len(order) // 3 :]
    x, y = images[train], labels[train]
    tf_keras.utils.set_random_seed(seed)
    model = _fit(build(), x, y, epochs=15, rate=1e-3)
    found = {"float": _percent(model.predict(images[test], verbose=0), labels[test])}
    weights = model.get_weights()

    tf_keras.utils.set_random_seed(seed)
    theirs = _fit(tfmot.quantization.keras.quantize_model(model), x, y, epochs=EPOCHS, rate=3e-4)
    found["toolkit"] = _percent(theirs.predict(images[test], verbose=0), labels[test])

    model.set_weights(weights)
    tf_keras.utils.set_random_seed(seed)
    ours = _fit(tfopt.quantize_aware(model, activations="static"), x, y, epochs=EPOCHS, rate=3e-4)
    found["ours"] = _percent(ours.predict(images[test], verbose=0), labels[test])
    with tempfile.TemporaryDirectory() as folder:
        artifact = tfopt.export(
            tfopt.finish(ours), Path(folder, "digits.tflite"), format="tflite", quantization="trained"
        )
        outputs = tfopt.Predictor.load(artifact.path).predict(images[test])
    found["ours, file"] = _percent(next(iter(outputs.values())), labels[test])
    return found


def _fit(model: Any, x: np.ndarray, y: np.ndarray, epochs: int, rate: float) -> Any:
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def _percent(outputs: np.ndarray, labels: np.ndarray) -> float:
    return 100 * float((outputs.argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
