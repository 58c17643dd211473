"""TFLite files of decoders straight from a checkpoint, a weight at a time.

No Keras model is built, and the converter never sees a weight: it converts a graph whose matrices are inputs.
Afterwards these inputs become constants, whose bytes are read, rounded and appended to the file one by one. What is
held at any time is one weight, and the graph. Files of more than 2 GB are no different: weights lie behind the tree
of objects, where the format has 64 bits to say where.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt.decoding.config import CausalLMConfig
from tfopt.decoding.signatures import DecoderSignature, plan_signatures
from tfopt.decoding.step import Products, capped, forward
from tfopt.errors import InputError
from tfopt.export.convert import convert_saved_model
from tfopt.export.decoder import PREFILL, VERIFY, sliced_function
from tfopt.models.streamed import StreamedWeights
from tfopt.numerics.grids import WeightSpec
from tfopt.tflite import flatbuffer as fb
from tfopt.tflite.appended import Appended, append_weights, declare
from tfopt.tflite.grids import widen
from tfopt.tflite.lookups import look_up_rows
from tfopt.tflite.weights import PRODUCTS

TABLE = "token_embeddings/embeddings"
_INPUT = "matrix_"


class Kind(NamedTuple):
    """How weights are stored.

    Attributes:
        bits: of matrices.
        block: inputs that share a scale; None for one scale for each output.
        table_bits: of the token table, one scale for each row.
        widened: weights are widened before the product, activations stay in float.
    """

    bits: int
    block: int | None = None
    table_bits: int = 8
    widened: bool = False


# The names of `quantization.NAMED`, rounded to nearest.
KINDS: Mapping[str, Kind] = {
    "dynamic_int8": Kind(8), "weight_only_int8": Kind(8, widened=True), "dynamic_int4": Kind(4, 32),
    "dynamic_int4_block32": Kind(4, 32), "dynamic_int4_block64": Kind(4, 64), "dynamic_int4_block128": Kind(4, 128),
}  # fmt: skip


def write_streamed(weights: StreamedWeights, path: Path, kind: Kind, slots: tuple[int, ...]) -> None:
    """Writes a file that generates.

    Args:
        weights: of a decoder.
        path: the file.
        kind: how weights are stored.
        slots: lengths of the caches.

    Raises:
        InputError: rows that blocks do not divide.
        WorkFailedError: the converter gave up.
    """
    items = [_item(name, shape, kind) for name, shape in weights.shapes.items() if len(shape) == 2]
    model = fb.read(_skeleton(weights, items, slots))
    _make_constant(model, items, kind)
    for name, content in weights.members.items():
        fb.add_metadata(model, name, content)
    append_weights(model, path, items, read=lambda name: _outputs_first(name, weights[name]))


def reference(weights: StreamedWeights, ids: np.ndarray) -> np.ndarray:
    """Logits of texts by the weights in float, read one after the other: (texts, tokens, vocab_size) float32.

    Args:
        weights: of a decoder.
        ids: (texts, tokens) int32.
    """
    config = weights.config

    def product(x: tf.Tensor, path: str) -> tf.Tensor:
        return tf.constant(np.asarray(x) @ _inputs_first(path, weights[path]))  # by NumPy, which copies no weight

    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        y = product(x, f"{name}/kernel")
        return y + weights[f"{name}/bias"] if f"{name}/bias" in weights else y

    def lookup(ids: tf.Tensor, name: str) -> tf.Tensor:
        return tf.constant(weights[f"{name}/embeddings"][np.asarray(ids)])

    def logits(x: tf.Tensor) -> tf.Tensor:
        return capped(product(x, TABLE if config.tie_word_embeddings else "logits/kernel"), config.logit_softcap)

    products = Products(linear, lookup, logits, vector=lambda name: tf.constant(weights[name]))
    hidden, _ = forward(config, products, tf.constant(ids), start=tf.constant(0), pads=None, caches=[])
    return np.asarray(products.logits(hidden))


def _item(name: str, shape: tuple[int, ...], kind: Kind) -> Appended:
    rows, columns = shape if name.endswith("/embeddings") else shape[::-1]
    if name.endswith("/embeddings"):
        return Appended(name, (rows, columns), WeightSpec(8))
    if kind.block is not None and columns % kind.block:
        raise InputError(f"weight {name!r} has {columns} inputs, which blocks of {kind.block} do not divide")
    return Appended(name, (rows, columns), WeightSpec(kind.bits, kind.block or "channel"))


def _outputs_first(name: str, value: np.ndarray) -> np.ndarray:
    return value.T if name.endswith("/kernel") else value


def _inputs_first(name: str, value: np.ndarray) -> np.ndarray:
    return value if name.endswith("/kernel") else value.T


def _skeleton(weights: StreamedWeights, items: Sequence[Appended], slots: tuple[int, ...]) -> bytes:
    """The graph, with matrices as inputs; the small weights are constants of it."""
    small = {name: weights[name] for name, shape in weights.shapes.items() if len(shape) == 1}
    module = tf.Module()
    signatures = {
        s.key: _function(weights.config, s, small, items=items) for s in plan_signatures(slots, PREFILL, VERIFY)
    }
    with tempfile.TemporaryDirectory(prefix="tfopt-") as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        return convert_saved_model(folder, list(signatures))


def _function(
    config: CausalLMConfig, signature: DecoderSignature, small: Mapping[str, np.ndarray], items: Sequence[Appended]
) -> Any:
    names = {item.path: _INPUT + str(number) for number, item in enumerate(items)}

    def products(given: Mapping[str, tf.Tensor]) -> Products:
        return _products(config, small, {path: given[name] for path, name in names.items()})

    specs = {names[item.path]: tf.TensorSpec(item.shape, tf.float32, names[item.path]) for item in items}
    return sliced_function(config, products, signature, narrow=False, more=specs)


def _products(
    config: CausalLMConfig, small: Mapping[str, np.ndarray], matrices: Mapping[str, tf.Tensor]
) -> Products:
    """Products with matrices of (outputs, inputs)."""

    def product(x: tf.Tensor, path: str) -> tf.Tensor:
        flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), matrices[path], transpose_b=True)
        return tf.reshape(flat, [x.shape[0], x.shape[1], flat.shape[-1]])

    def linear(x: tf.Tensor, name: str) -> tf.Tensor:
        y = product(x, f"{name}/kernel")
        return y + small[f"{name}/bias"] if f"{name}/bias" in small else y

    def logits(hidden: tf.Tensor) -> tf.Tensor:
        found = product(hidden, TABLE if config.tie_word_embeddings else "logits/kernel")
        return capped(found, config.logit_softcap)

    def lookup(ids: tf.Tensor, name: str) -> tf.Tensor:
        return tf.gather(matrices[f"{name}/embeddings"], ids)

    return Products(linear, lookup, logits, vector=lambda name: tf.constant(small[name]))


def _make_constant(model: Any, items: Sequence[Appended], kind: Kind) -> None:
    """Inputs of every signature that are matrices become constants."""
    tensors: dict[int, list[tuple[Any, Any]]] = {number: [] for number in range(len(items))}
    for signature in model.signatureDefs:
        graph, kept = model.subgraphs[signature.subgraphIndex], []
        for entry in signature.inputs:
            hit = re.fullmatch(rf"{_INPUT}(\d+)", fb.text(entry.name))
            if hit is None:
                kept.append(entry)
            else:
                tensors[int(hit[1])].append((graph, graph.tensors[int(entry.tensorIndex)]))
        inside = {int(entry.tensorIndex) for entry in kept}
        signature.inputs, graph.inputs = kept, [int(i) for i in graph.inputs if int(i) in inside]
    for number, item in enumerate(items):
        declare(model, item, tensors[number])
    look_up_rows(model)
    buffers = {item.buffer for item in items}
    for graph in model.subgraphs:
        if kind.widened:
            widen(model, graph, buffers)
        for op in graph.operators:
            place, _, version = PRODUCTS.get(fb.code(model, op), (None, 0, 0))
            if place is not None and graph.tensors[int(op.inputs[place])].type in (fb.INT8, fb.INT4):
                fb.opcode(model, fb.code(model, op), version)
                if hasattr(op.builtinOptions, "asymmetricQuantizeInputs"):
                    op.builtinOptions.asymmetricQuantizeInputs = True
