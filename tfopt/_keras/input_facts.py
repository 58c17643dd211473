"""What a model's inputs are, as it treats them: ids of a table, masks of padding, values of a range.

Names say little: a mask may be called anything. What changes nothing where an input is 0 is masked by it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._base.masks import MASK, masked_by_name
from tfopt._keras import keras_api
from tfopt._keras.keras_io import Inputs, call, sources_of, takes_length
from tfopt._keras.lookups import LOOKUPS, words_of
from tfopt._keras.sizes import Size

_ROWS = 2
_WORDS = 8  # of a text
_ROWS_OF = {"Embedding": "input_dim", "CategoryEncoding": "num_tokens"}
_TRIED = (8, 32, 67, 257)


@dataclasses.dataclass(frozen=True)
class InputFacts:
    """Facts of a model's inputs.

    Attributes:
        rows: input -> rows of the table in which its ids are looked up, where that is known.
        masks: mask -> the inputs whose padding it tells from content.
        spans: input -> least and largest of its values, where a layer that rescales them tells.
        words: input of texts, or of numbers that stand for something -> words that the layer which reads it knows,
            and how many a text has.
    """

    rows: dict[str, int]
    masks: dict[str, tuple[str, ...]]
    spans: dict[str, tuple[np.ndarray, np.ndarray]]
    words: dict[str, tuple[tuple[str, ...], int]] = dataclasses.field(default_factory=dict)


def facts_of(model: Any, inputs: Inputs, size: Size) -> InputFacts:
    """What a model's inputs are.

    Args:
        model: of either generation.
        inputs: of it.
        size: of open axes, where something is tried out.
    """
    rows = id_limits(model, inputs, size)
    masks = masks_of(model, inputs, size, rows=rows)
    return InputFacts(rows, masks, spans_of(model, inputs), words=_known_words(model, inputs))


def size_to_try(model: Any, inputs: Inputs) -> int:
    """The first of a few sizes that a model takes."""
    return next((n for n in _TRIED if not inputs.has_length or takes_length(model, inputs, n)), _TRIED[0])


def draw(inputs: Inputs, facts: InputFacts, rows: int, size: Size, padded: bool = True) -> dict[str, np.ndarray]:
    """Inputs at random, out of what each takes: ids of the whole table, known ranges, masks of several lengths.

    Without `padded`, masks are of ones.
    """
    rng = np.random.default_rng(0)
    return {
        name: _drawn(rng, name, spec, facts=facts, padded=padded).astype(spec.dtype.as_numpy_dtype)
        for name, spec in inputs.with_sizes(rows, size).items()
    }


def _drawn(rng: np.random.Generator, name: str, spec: Any, facts: InputFacts, padded: bool) -> np.ndarray:
    shape = tuple(spec.shape)
    if spec.dtype == tf.string:
        words, count = facts.words.get(name, (("text",), 1))
        texts = [" ".join(rng.choice(words, rng.integers(1, count + 1))) for _ in range(int(np.prod(shape)))]
        return np.array(texts, object).reshape(shape)
    if name in facts.words:
        return rng.choice([int(word) for word in facts.words[name][0]], shape)
    if name in facts.masks:  # full rows and shorter ones
        kept = shape[1] - np.arange(shape[0]) % (4 if padded else 1) * shape[1] // 8
        return np.arange(shape[1]) < kept[:, None]
    if name in facts.rows:  # also where ids come in floats
        return rng.integers(0, facts.rows[name], shape)
    if name in facts.spans:
        low, high = facts.spans[name]
        return rng.uniform(low, high, shape)
    if spec.dtype.is_integer:
        return rng.integers(0, 256 if spec.dtype.size == 1 else 2, shape)
    return rng.standard_normal(shape) if spec.dtype.is_floating else rng.integers(0, 2, shape)


def id_limits(model: Any, inputs: Inputs, size: Size) -> dict[str, int]:
    """Input -> rows, as the graph shows them; else found by trying the first id beyond each table of the model.

    Nothing is said of an input that is looked up nowhere, nor on devices that refuse no id (GPUs give zeros).
    """
    tables = sorted({int(w.variable.shape[0]) for w in keras_api.weights(model) if w.name == "embeddings"})
    shapes = inputs.with_sizes(1, size)
    found = {name: rows for name, source in sources_of(model, inputs).items() if (rows := _rows_read(source))}
    rest = [n for n, s in shapes.items() if n != MASK and s.dtype.is_integer and n not in found]
    usual = {n: tf.zeros(s.shape, s.dtype) if n != MASK and s.dtype.is_integer else tf.ones(s.shape, s.dtype)
             for n, s in shapes.items() if s.dtype != tf.string}  # fmt: skip
    for name in rest if rest and tables and _answers(model, inputs, usual) is not None else ():
        for rows in tables:
            beyond = tf.fill(shapes[name].shape, tf.cast(rows, shapes[name].dtype))
            if rows <= shapes[name].dtype.max and _answers(model, inputs, {**usual, name: beyond}) is None:
                found[name] = rows
                break
    return found


def masks_of(model: Any, inputs: Inputs, size: Size, rows: dict[str, int]) -> dict[str, tuple[str, ...]]:
    """Mask -> what it masks: where it is 0, these may be anything without a change elsewhere; where it is 1, not.

    An input called "attention_mask" is taken for one at its word.
    """
    shapes = inputs.with_sizes(_ROWS, size)
    found = {}
    for name, spec in shapes.items():
        shape = tuple(spec.shape)
        others = [
            n for n, s in shapes.items() if n != name and tuple(s.shape)[:2] == shape and s.dtype != tf.string
        ]
        if len(shape) != 2 or shape[1] < 2 or name in rows or spec.dtype == tf.string or not others:
            continue
        trial = _Trial(model, inputs, shapes, rows=rows)
        covered = tuple(other for other in others if trial.is_masked(other, by=name))
        if covered or name == MASK:
            found[name] = covered or masked_by_name(others)
    return found


class _Trial:
    """Looks for changes of the outputs under changes of the inputs."""

    def __init__(self, model: Any, inputs: Inputs, shapes: dict[str, Any], rows: dict[str, int]) -> None:
        rng, facts = np.random.default_rng(0), InputFacts(rows, {}, {})
        self._model, self._inputs, self._shapes = model, inputs, shapes
        self._usual, self._other = (
            {
                n: _drawn(rng, n, spec, facts=facts, padded=False).astype(spec.dtype.as_numpy_dtype)
                for n, spec in shapes.items()
            }
            for _ in range(2)
        )

    def is_masked(self, name: str, by: str) -> bool:
        """Whether content where the mask is 0 leaves the rest as it is, though it counts where the mask is 1."""
        length = int(self._shapes[by].shape[1])
        early = np.arange(length) < length // 2
        for content in (early, ~early):  # a causal model shows nothing of what comes later
            kept = self._change(name, by, np.ones(length, bool), content)
            masked = self._change(name, by, content, content)
            if kept is not None and masked is not None and kept > 2e-5:  # in fresh models tokens change little
                return masked < min(1e-5, kept / 10)
        return False

    def _change(self, name: str, by: str, mask: np.ndarray, content: np.ndarray) -> float | None:
        """Largest change at `content`, as a share of the outputs, when the rest of an input becomes another."""
        usual = {**self._usual, by: tf.cast(np.tile(mask, (_ROWS, 1)), self._shapes[by].dtype)}
        keep = content.reshape(1, -1, *[1] * (len(self._shapes[name].shape) - 2))
        other = {**usual, name: np.where(keep, self._usual[name], self._other[name])}
        answers = [_answers(self._model, self._inputs, named) for named in (usual, other)]
        if answers[0] is None or answers[1] is None:
            return None
        changes = []
        for one, two in zip(answers[0].values(), answers[1].values(), strict=True):
            if one.ndim > 1 and one.shape[1] == len(content):  # elsewhere it may be any number
                one, two = one[:, content], two[:, content]
            largest = float(np.abs(one).max(initial=0))
            if np.isfinite(largest) and largest:
                changes.append(float(np.abs(one - two).max()) / largest)
        return max(changes, default=None)


def spans_of(model: Any, inputs: Inputs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Input -> the values that its first layer brings to -1 to 1, or to a normal distribution."""
    found = {}
    for name, source in sources_of(model, inputs).items():
        for layer in _readers(source):
            kind = type(layer).__name__
            if kind == "Rescaling" and np.all(layer.scale):
                scale, offset = np.asarray(layer.scale, float), np.asarray(layer.offset, float)
                low, high = (np.where(offset < 0, -1.0, 0.0) - offset) / scale, (1 - offset) / scale
                found[name] = np.minimum(low, high), np.maximum(low, high)
            elif kind == "Normalization" and getattr(layer, "mean", None) is not None:
                mean, deviation = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
                found[name] = mean - 2 * deviation, mean + 2 * deviation
    return found


def _known_words(model: Any, inputs: Inputs) -> dict[str, tuple[tuple[str, ...], int]]:
    found = {}
    for name, source in sources_of(model, inputs).items():
        for layer in _readers(source):
            if type(layer).__name__ in LOOKUPS and words_of(layer):
                found[name] = words_of(layer), _WORDS if type(layer).__name__ == "TextVectorization" else 1
    return found


def rows_of_tables(model: Any, inputs: Inputs) -> dict[str, int]:
    """Input -> how many ids there are: rows of a table, or places of an encoding, where the graph shows that."""
    return {name: rows for name, source in sources_of(model, inputs).items() if (rows := _rows_read(source))}


def _rows_read(source: Any) -> int:
    rows = (int(getattr(layer, _ROWS_OF.get(type(layer).__name__, ""), 0)) for layer in _readers(source))
    return min((count for count in rows if count), default=0)


def _readers(source: Any) -> Iterator[Any]:
    """The layers that read an input, also inside models that take it as their only one."""
    for layer in keras_api.consumers(source):
        yield layer
        tensors = getattr(layer, "inputs", None) if keras_api.is_model(layer) else None
        if isinstance(tensors, list) and len(tensors) == 1:
            inner = getattr(tensors[0], "_keras_history", (None,))[0]
            # The model may have been built on this very input.
            yield from _readers(inner) if inner not in (None, source) else ()


def _answers(model: Any, inputs: Inputs, values: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """The model's outputs in float, None where it refuses the inputs."""
    try:
        # Keras takes arrays or tensors, but not both at once.
        found = call(model, inputs, {name: tf.convert_to_tensor(value) for name, value in values.items()})
    except (tf.errors.InvalidArgumentError, ValueError, KeyError):
        return None
    return {name: tf.cast(value, tf.float64).numpy() for name, value in found.items() if value.dtype != tf.string}
