"""Our BERT classifier as an ONNX graph, so that other runtimes get the same network with the same weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfopt._keras import keras_api


class Graph:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        names = [i if isinstance(i, str) else self.constant(i) for i in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output


def write_onnx(model: Any, path: Path, heads: int, length: int) -> None:
    """Writes a `bert_classifier` with mean pooling for batch 1 and a fixed length.

    Args:
        model: made by `tfopt.models.bert` with `num_labels`.
        path: the `.onnx` file.
        heads: attention heads.
        length: tokens per row.
    """
    w = {weight.path: keras_api.to_numpy(weight.variable) for weight in keras_api.weights(model)}
    width, layers = w["word_embeddings/embeddings"].shape[1], sum("intermediate/kernel" in n for n in w)
    g = Graph()

    def dense(x: str, name: str) -> str:
        return g.op("Add", g.op("MatMul", x, w[f"{name}/kernel"]), w[f"{name}/bias"])

    def norm(x: str, name: str) -> str:
        return g.op("LayerNormalization", x, w[f"{name}/gamma"], w[f"{name}/beta"], axis=-1, epsilon=1e-12)

    def heads_of(x: str, permutation: list[int]) -> str:
        split = g.op("Reshape", x, np.array([1, length, heads, width // heads]))
        return g.op("Transpose", split, perm=permutation)

    def gelu(x: str) -> str:
        inner = g.op("Add", g.op("Erf", g.op("Div", x, np.float32(math.sqrt(2)))), np.float32(1))
        return g.op("Mul", g.op("Mul", x, inner), np.float32(0.5))

    places = w["position_embeddings/embeddings"][None, :length] + w["token_type_embeddings/embeddings"][0]
    x = g.op("Add", g.op("Gather", w["word_embeddings/embeddings"], "input_ids"), places)
    x = norm(x, "embeddings_norm")
    mask = g.op("Cast", "attention_mask", to=TensorProto.FLOAT)
    bias = g.op("Mul", g.op("Sub", np.float32(1), mask), np.float32(-10_000))
    bias = g.op("Reshape", bias, np.array([1, 1, 1, length]))
    for i in range(layers):
        a = f"layer_{i}_attention"
        query = heads_of(dense(x, f"{a}_query"), [0, 2, 1, 3])
        key = heads_of(dense(x, f"{a}_key"), [0, 2, 3, 1])
        value = heads_of(dense(x, f"{a}_value"), [0, 2, 1, 3])
        scores = g.op("Div", g.op("MatMul", query, key), np.float32(math.sqrt(width // heads)))
        context = g.op("MatMul", g.op("Softmax", g.op("Add", scores, bias), axis=-1), value)
        merged = g.op("Reshape", g.op("Transpose", context, perm=[0, 2, 1, 3]), np.array([1, length, width]))
        x = norm(g.op("Add", x, dense(merged, f"{a}_output")), f"{a}_norm")
        h = dense(gelu(dense(x, f"layer_{i}_intermediate")), f"layer_{i}_output")
        x = norm(g.op("Add", x, h), f"layer_{i}_output_norm")
    keep = g.op("Reshape", mask, np.array([1, length, 1]))
    pooled = g.op(
        "Div", g.op("ReduceSum", g.op("Mul", x, keep), np.array([1]), keepdims=0),
        g.op("ReduceSum", keep, np.array([1]), keepdims=0),
    )  # fmt: skip
    logits = dense(pooled, "logits")
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.INT64, [1, length]) for n in ("input_ids", "attention_mask")
    ]
    result = helper.make_tensor_value_info(logits, TensorProto.FLOAT, [1, w["logits/bias"].size])
    graph = helper.make_graph(g.nodes, "bert", shapes, [result], g.constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    onnx.save(proto, str(path))
