"""What lies inside a TFLite file, alone or in a container, compared with what was asked for."""

from pathlib import Path

from tfopt.errors import VerificationError
from tfopt.export.artifact import Check
from tfopt.tflite.file import read_tflite

# The converter leaves smaller tensors in float: nothing is gained by narrowing them.
_SMALLEST_NARROW = 1024
_FLOATS = {None: "float32", "float16": "float16"}


def check_stored(path: Path, name: str | None) -> list[Check]:
    """That weights have the asked-for types, no table is widened as a whole, and nothing survives a call.

    Args:
        path: a TFLite file.
        name: of its quantization.

    Raises:
        VerificationError: named "dtypes", "table_lookup" or "state".
    """
    file = read_tflite(path)
    checks = []
    if name in _FLOATS:  # the weights of others are checked one by one against their grids
        expected = _FLOATS[name]
        weights = [c for c in file.constants if c.is_matrix and c.size >= _SMALLEST_NARROW]
        wrong = [c for c in weights if c.dtype != expected and (c.is_kernel or c.is_lookup)]
        if wrong:
            raise VerificationError("dtypes", f"weight {wrong[0].name!r} is {wrong[0].dtype}, not {expected}")
        checks.append(Check("dtypes", expected, expected))
    if file.dequantized_tables:
        table = file.dequantized_tables[0]
        raise VerificationError("table_lookup", f"table {table!r} is widened as a whole on every call")
    if file.variables:
        raise VerificationError(
            "state", f"{file.variables[0]!r} keeps its value from call to call, so answers depend on earlier ones"
        )
    return [*checks, Check("table_lookup", "rows only", "rows only"), Check("state", "none", "none")]
