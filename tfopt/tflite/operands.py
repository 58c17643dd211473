"""Operands that a TFLite file leaves out: LiteRT reads a missing one wherever it is, and the process ends."""

from pathlib import Path

import numpy as np

from tfopt.errors import ModelFileError
from tfopt.tflite.file import operator_names

# Operators with a last operand, or several of a recurrent cell, that may be missing.
_WITH_OPTIONAL = frozenset(
    {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "LSTM", "SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM",
     "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "TRANSPOSE_CONV",
     "CONV_3D", "CONV_3D_TRANSPOSE", "STABLEHLO_COMPOSITE"}
)  # fmt: skip


def check_operands(path: Path) -> None:
    """Refuses a file in which an operator lacks an operand that it needs.

    Args:
        path: a TFLite file; it is mapped, and of it only the operators are read.

    Raises:
        ModelFileError: it is damaged.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = operator_names()
    try:
        model = schema.Model.GetRootAs(np.memmap(path, np.uint8, "r"))
        stored = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
        codes = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in stored]
        optional = [names.get(code) in _WITH_OPTIONAL for code in codes]
        for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
            for number in range(graph.OperatorsLength()):
                operator = graph.Operators(number)
                given = operator.InputsAsNumpy()  # 0 where the file has none at all
                if not isinstance(given, int) and (given < 0).any() and not optional[operator.OpcodeIndex()]:
                    raise ModelFileError(f"{path} is damaged: operator {number} lacks an operand that it needs")
    except ModelFileError:
        raise
    except Exception as error:  # a damaged buffer fails anywhere, with whatever its bytes lead to
        raise ModelFileError(f"{path} is damaged: {error}") from error
