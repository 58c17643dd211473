"""Makes lookups in narrow tables widen only the rows that they return.

The converter puts DEQUANTIZE before GATHER for float16 tables (and for int8 ones in some graphs): the
runtime then holds, or even makes on every call, a float copy of the whole table. GATHER works on the
narrow types as well, so the two change places.
"""

import copy
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils


def widen_after_lookup(content: bytes) -> bytes:
    """Rewrites DEQUANTIZE(constant) -> GATHER into GATHER -> DEQUANTIZE in every signature of a file."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    if not sum(_rewrite(model, graph) for graph in model.subgraphs):
        return content
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _rewrite(model: Any, graph: Any) -> int:
    gather, dequantize = schema.BuiltinOperator.GATHER, schema.BuiltinOperator.DEQUANTIZE
    maker = {int(op.outputs[0]): op for op in graph.operators if _code(model, op) == dequantize}
    operators, changed = [], 0
    for op in graph.operators:
        operators.append(op)
        widening = maker.get(int(op.inputs[0])) if _code(model, op) == gather else None
        if widening is None or not _is_constant(model, graph.tensors[int(widening.inputs[0])]):
            continue
        table, result = int(widening.inputs[0]), int(op.outputs[0])
        rows = copy.deepcopy(graph.tensors[result])
        rows.type, rows.quantization = graph.tensors[table].type, graph.tensors[table].quantization
        rows.name = _suffixed(rows.name)
        graph.tensors.append(rows)
        narrow = len(graph.tensors) - 1
        widen_rows = copy.deepcopy(widening)
        widen_rows.inputs, widen_rows.outputs = [narrow], [result]
        op.inputs, op.outputs = [table, *map(int, op.inputs[1:])], [narrow]
        operators.append(widen_rows)
        changed += 1
    used = {int(i) for op in operators for i in op.inputs} | {int(i) for i in graph.outputs}
    graph.operators = [op for op in operators if _code(model, op) != dequantize or int(op.outputs[0]) in used]
    return changed


def _code(model: Any, op: Any) -> int:
    code = model.operatorCodes[op.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _is_constant(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def _suffixed(name: Any) -> Any:
    return name + (b"/rows" if isinstance(name, bytes) else "/rows")
