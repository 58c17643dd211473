"""Makes lookups in narrow tables widen only the rows that they return.

The converter puts DEQUANTIZE before GATHER for float16 tables: the runtime then holds, or even makes on every
call, a float copy of the whole table. GATHER works on float16 as well, so the two change places. For integer
tables EMBEDDING_LOOKUP takes the place of GATHER: it widens rows itself, each with a scale of its own.
"""

import copy
from typing import Any

import numpy as np

from tfopt.tflite import flatbuffer as fb


def widen_after_lookup(content: bytes) -> bytes:
    """Rewrites DEQUANTIZE(constant) -> GATHER into GATHER -> DEQUANTIZE in every signature of a file."""
    model = fb.read(content)
    if not sum(_rewrite(model, graph) for graph in model.subgraphs):
        return content
    return fb.write(model)


def _rewrite(model: Any, graph: Any) -> int:
    gather, dequantize = fb.Op.GATHER, fb.Op.DEQUANTIZE
    maker = {int(op.outputs[0]): op for op in graph.operators if fb.code(model, op) == dequantize}
    operators, changed = [], 0
    for op in graph.operators:
        operators.append(op)
        widening = maker.get(int(op.inputs[0])) if fb.code(model, op) == gather else None
        if widening is None or fb.data(model, graph.tensors[int(widening.inputs[0])]) is None:
            continue
        table, result = int(widening.inputs[0]), int(op.outputs[0])
        rows = graph.tensors[result]
        narrow = fb.add_tensor(graph, f"{fb.name(rows)}/rows", rows.shape, dtype=graph.tensors[table].type)
        widen_rows = copy.deepcopy(widening)
        widen_rows.inputs, widen_rows.outputs = [narrow], [result]
        op.inputs, op.outputs = [table, *map(int, op.inputs[1:])], [narrow]
        operators.append(widen_rows)
        changed += 1
    used = {int(i) for op in operators for i in op.inputs} | {int(i) for i in graph.outputs}
    graph.operators = [op for op in operators if fb.code(model, op) != dequantize or int(op.outputs[0]) in used]
    return changed


def look_up_rows(model: Any) -> None:
    """Rewrites GATHER along the first axis of a constant float table into EMBEDDING_LOOKUP, in place."""
    for graph in model.subgraphs:
        operators = []
        for op in graph.operators:
            if not _is_row_lookup(model, graph, op):
                operators.append(op)
                continue
            table, ids, result = int(op.inputs[0]), int(op.inputs[1]), int(op.outputs[0])
            count, width = int(np.prod(graph.tensors[ids].shape)), int(graph.tensors[table].shape[1])
            title = fb.name(graph.tensors[result])
            if graph.tensors[ids].type == fb.INT64:  # the operator takes no others than int32
                narrow = fb.add_tensor(graph, f"{title}/int32", graph.tensors[ids].shape, dtype=fb.INT32)
                operators.append(fb.cast(model, graph, ids, target=narrow))
                ids = narrow
            flat = fb.add_tensor(graph, f"{title}/ids", [count], dtype=fb.INT32)
            rows = fb.add_tensor(graph, f"{title}/rows", [count, width], dtype=fb.FLOAT32)
            operators += [
                fb.reshape(model, graph, ids, target=flat, shape=[count]),
                fb.operator(model, fb.Op.EMBEDDING_LOOKUP, 4, inputs=[flat, table], outputs=[rows]),
                fb.reshape(model, graph, rows, target=result, shape=[int(d) for d in graph.tensors[result].shape]),
            ]
        graph.operators = operators


def _is_row_lookup(model: Any, graph: Any, op: Any) -> bool:
    if fb.code(model, op) != fb.Op.GATHER or op.builtinOptions.axis or op.builtinOptions.batchDims:
        return False
    table, ids = (graph.tensors[int(i)] for i in op.inputs[:2])
    wide = graph.tensors[int(op.outputs[0])].type == fb.FLOAT32 and table.type in (fb.FLOAT32, fb.INT8)
    is_constant = wide and fb.is_constant(model, table)
    return len(table.shape) == 2 and ids.type in (fb.INT32, fb.INT64) and is_constant
