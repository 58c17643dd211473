"""What is tried on a model, and how the result is judged: with runtimes called directly, not through tfopt."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfopt
from benchmarks.zoo.model import ROWS, Entry, Values
from tfopt._base.members import LOOKUPS
from tfopt.data.lookup import from_json
from tfopt.tflite.file import read_metadata

# A float file must give the model's own answers; a quantized one answers that go with them. Of models with random
# weights many outputs lie within a rounding of each other, so correlation over all rows counts, not classes.
_LEAST = {None: 0.9999, "float16": 0.999, "dynamic_int8": 0.95, "int8": 0.9}


class WrongError(AssertionError):
    """A result that was given out as good and is not."""


def _given(model: Any, values: Any, many: type = list) -> Any:
    """What the model is called with: by name, in its order, or the only one."""
    declared = getattr(model, "_inputs_struct", getattr(model, "_nested_inputs", None))
    if isinstance(declared, dict):
        return values
    return many(values.values()) if len(values) > 1 else next(iter(values.values()))


def _called(model: Any, values: Values) -> Values:
    """The model's outputs, by Keras itself."""
    given = _given(model, {name: tf.constant(value) for name, value in values.items()})
    found = model(given, training=False)
    if isinstance(found, dict):
        return {name: np.asarray(value, np.float32) for name, value in found.items()}
    many = found if isinstance(found, list | tuple) else [found]
    return {str(i): np.asarray(value, np.float32) for i, value in enumerate(many)}


def inspect(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    found = tfopt.inspect(model)
    if not found.layers or found.parameters != model.count_params():
        raise WrongError(f"{found.parameters} parameters were counted, the model has {model.count_params()}")


def prune(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    pruned = tfopt.prune(model, 0.5)
    _must_be_finite(_called(pruned, values))


def quantize(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    _quantized(model, values, folder, entry, activations="dynamic")


def quantize_static(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    _quantized(model, values, folder, entry, activations="static")


def _quantized(model: Any, values: Values, folder: Path, entry: Entry, activations: str) -> None:
    aware = tfopt.quantize_aware(model, activations=activations)
    _train(aware, values)
    finished = tfopt.finish(aware)
    path = folder / "m.tflite"
    tfopt.export(
        finished,
        path,
        quantization="trained",
        representative=values,
        lengths=entry.lengths,
        **_signature(model, values),
    )
    _compare(finished, path, values, least=_LEAST["int8" if activations == "static" else "dynamic_int8"])


def _train(model: Any, values: Values) -> None:
    """Two steps towards the model's own answers."""
    found = _called(model, values)
    targets: Any = found if not found.keys() <= {str(i) for i in range(len(found))} else list(found.values())
    losses: Any = dict.fromkeys(targets, "mse") if isinstance(targets, dict) else ["mse"] * len(targets)
    if isinstance(targets, list) and len(targets) == 1:
        targets, losses = targets[0], "mse"
    # KerasHub's tasks have metrics of their own, for labels.
    model.compile(_keras_of(model).optimizers.Adam(1e-4), loss=losses, metrics=[], weighted_metrics=[])
    tensors: Any = {n: tf.constant(v) for n, v in values.items()} if _has_texts(values) else values
    model.fit(_given(model, tensors), targets, batch_size=ROWS // 2, epochs=1, verbose=0)


def _has_texts(values: Values) -> bool:
    return any(value.dtype == object for value in values.values())


def _export(quantization: str | None, suffix: str = ".tflite", jit_compile: bool = False) -> Callable[..., None]:
    def work(model: Any, values: Values, folder: Path, entry: Entry) -> None:
        path = folder / f"m{suffix}"
        lengths = entry.lengths if suffix or jit_compile else None
        tfopt.export(
            model, path, quantization=quantization, jit_compile=jit_compile, representative=values, lengths=lengths,
            **_signature(model, values),
        )  # fmt: skip
        _compare(model, path, values, least=_LEAST[quantization])

    return work


def _signature(model: Any, values: Values) -> dict[str, Any]:
    if getattr(model, "inputs", None):
        return {}
    ((_, value),) = values.items()
    return {"input_signature": tf.TensorSpec((None, *value.shape[1:]), value.dtype)}


def shrink(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    from tfopt.structure.groups import structure_of

    kinds = {group.kind for group in structure_of(model).groups} & {"heads", "neurons", "channels"}
    smaller = tfopt.shrink(model, **dict.fromkeys(sorted(kinds) or ["neurons"], 0.5))
    if not smaller.count_params() < model.count_params():
        raise WrongError("it is not smaller")
    _must_be_finite(_called(smaller, values))


def factorize(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    smaller = tfopt.factorize(model, energy=0.8)
    _must_be_finite(_called(smaller, values))


def cluster(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    _must_be_finite(_called(tfopt.cluster(model, 16), values))


def distill(model: Any, values: Values, folder: Path, entry: Entry) -> None:
    student, _ = entry.build(_keras_of(model))
    distiller = tfopt.Distiller(student, model)
    distiller.compile("adam")
    data = tf.data.Dataset.from_tensor_slices(_given(model, values, tuple)).batch(ROWS // 2)
    distiller.model.fit(distiller.teach(data), epochs=1, verbose=0)
    _must_be_finite(_called(distiller.finish(), values))


def _keras_of(model: Any) -> Any:
    from tfopt._keras import keras_api

    return keras_api.keras_module(keras_api.generation_of(model))


OPERATIONS: Mapping[str, Callable[..., None]] = {
    "inspect": inspect, "prune": prune, "cluster": cluster, "shrink": shrink, "factorize": factorize,
    "distill": distill, "quantize": quantize, "quantize_static": quantize_static,
    "float32": _export(None), "float16": _export("float16"), "dynamic_int8": _export("dynamic_int8"),
    "int8": _export("int8"), "saved_model": _export(None, ""), "xla": _export(None, "", jit_compile=True),
}  # fmt: skip


def _must_be_finite(values: Values) -> None:
    if not all(np.isfinite(v).all() for v in values.values()):
        raise WrongError("it gives NaN or infinity")


def _compare(model: Any, path: Path, values: Values, least: float) -> None:
    """The file twice, forwards and backwards through the rows, against the Keras model."""
    expected = list(_called(model, values).values())
    run = _tflite(path, values) if path.suffix == ".tflite" else _saved(path, values)
    first, second = run(range(ROWS)), run(range(ROWS - 1, -1, -1))
    for once, again in zip(first, second, strict=True):
        if not np.allclose(once, again[::-1], rtol=1e-4, atol=1e-5):
            raise WrongError("the same rows in another order give other answers")
    taken: set[int] = set()
    for want in expected:
        best = max(
            ((_correlation(want, f), i) for i, f in enumerate(first) if f.shape == want.shape and i not in taken),
            default=(float("nan"), -1),
        )
        taken.add(best[1])
        if not best[0] >= least:
            raise WrongError(f"an output correlates with Keras by {best[0]:.4f}, less than {least}")


def _correlation(want: np.ndarray, found: np.ndarray) -> float:
    """Of what differs between rows: what is the same for all of them agrees in a file that ignores its input."""
    ours, theirs = (np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(0) for x in (want, found))
    if np.abs(ours).max() < 1e-6 * max(np.abs(want).max(), 1e-30):  # it gives the same for every row
        return float(np.allclose(want, found, rtol=1e-2, atol=1e-3 * np.abs(want).max()))
    return float((ours * theirs).sum() / np.sqrt((ours**2).sum() * (theirs**2).sum() + 1e-300))


def _tflite(path: Path, values: Values) -> Callable[[Any], list[np.ndarray]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    if "decode" in interpreter.get_signature_list():
        heads = json.loads(read_metadata(path)["tfopt_causal_lm.json"])["num_key_value_heads"]
        runner, (texts,) = interpreter.get_signature_runner("decode"), [v for n, v in values.items() if "ids" in n]
        return lambda rows: [np.stack([_decoded(runner, texts[row], heads) for row in rows])]
    (key, *_) = interpreter.get_signature_list()
    runner = interpreter.get_signature_runner(key)
    # Of a model that is cut behind a vocabulary, the file takes ids or encoded words.
    members = read_metadata(path)
    lookups = from_json(members[LOOKUPS], str(path)) if LOOKUPS in members else []
    values = {**values, **{lookup.target: lookup.values(values[lookup.name]) for lookup in lookups}}
    values = {name: value for name, value in values.items() if name not in {lookup.name for lookup in lookups}}
    details, given = runner.get_input_details(), values
    if set(details) != set(values):  # one input, by whatever name
        given = dict(zip(details, values.values(), strict=True))

    def run(rows: Any) -> list[np.ndarray]:
        parts = []
        for row in rows:
            feed = {name: _stored(given[name][row : row + 1], details[name]) for name in details}
            outputs, places = runner(**feed), runner.get_output_details()
            parts.append({name: _real(v, places[name]) for name, v in outputs.items()})
        return [np.concatenate([p[name] for p in parts]) for name in sorted(parts[0])]

    return run


def _decoded(runner: Any, ids: np.ndarray, heads: int) -> np.ndarray:
    """Logits at every token of a text by a file that generates, one token at a time; its keys are kept here."""
    sizes = {name: int(detail["shape"][0]) for name, detail in runner.get_input_details().items()}
    caches = {name: np.zeros(size, np.float32) for name, size in sizes.items() if name not in ("ids", "start")}
    layers, found = len(caches) // 2, []
    for place, token in enumerate(ids):
        given = {"ids": np.array([token], np.int32), "start": np.array([place], np.int32)}
        outputs = runner(**given, **caches)
        for part in ("key", "value"):
            new = outputs[f"{part}s"].reshape(layers, heads, -1)
            for layer in range(layers):
                caches[f"{part}_{layer}"].reshape(heads, -1, new.shape[-1])[:, place] = new[layer]
        found.append(outputs["logits"].copy())
    return np.stack(found)


def _stored(value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if scale == 0:
        return value.astype(detail["dtype"])
    limits = np.iinfo(detail["dtype"])
    return np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(detail["dtype"])


def _real(value: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    return value.astype(np.float32) if scale == 0 else ((value.astype(np.float32) - zero) * scale)


def _saved(path: Path, values: Values) -> Callable[[Any], list[np.ndarray]]:
    loaded = tf.saved_model.load(str(path))
    key = min(loaded.signatures, key=len) if "serving_default" not in loaded.signatures else "serving_default"
    function = loaded.signatures[key]
    names = list(function.structured_input_signature[1])
    given = values if set(names) == set(values) else dict(zip(names, values.values(), strict=True))

    def run(rows: Any) -> list[np.ndarray]:
        place = np.array(list(rows))
        types = function.structured_input_signature[1]
        feed = {
            name: tf.cast(tf.constant(v[place]), types[name].dtype) if v.dtype != object else tf.constant(v[place])
            for name, v in given.items()
        }
        outputs = function(**feed)
        return [np.asarray(outputs[name], np.float32) for name in sorted(outputs)]

    return run


@functools.cache
def entries() -> dict[str, Entry]:
    """All models by name."""
    from benchmarks.zoo import built_in, imported, written

    return {entry.name: entry for entry in (*written.ENTRIES, *built_in.ENTRIES, *imported.ENTRIES)}
