"""Ranges of the tensors of a float TFLite file, seen while it runs.

litert-quantizer looks on through a delegate, which keeps no tensor that it fuses with another: every recurrent
model was refused for that. The plain kernels keep all of them.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from tfopt.errors import WorkFailedError

Samples = Mapping[str, Iterable[dict[str, np.ndarray]]]


def observe(content: bytes, names: set[str], samples: Samples) -> dict[str, tuple[float, float]]:
    """Least and largest values of tensors.

    Args:
        content: a float TFLite file.
        names: of tensors of its signatures.
        samples: inputs by signature.

    Returns:
        Name -> range, of the tensors of signatures that were run.

    Raises:
        WorkFailedError: the file does not run.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content, experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )  # fmt: skip
    found: dict[str, tuple[float, float]] = {}
    for key, rows in samples.items():
        runner = interpreter.get_signature_runner(key)
        part = runner._subgraph_index
        tensors = {d["name"]: d["index"] for d in interpreter.get_tensor_details(part) if d["name"] in names}
        for inputs in rows:
            try:
                runner(**inputs)
            except (ValueError, RuntimeError) as error:
                raise WorkFailedError(
                    f"signature {key!r} does not run on the representative data: {error}"
                ) from error
            for name, index in tensors.items():
                value = interpreter.get_tensor(index, part)
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(value.min(initial=low))), max(high, float(value.max(initial=high)))
    return {name: limits for name, limits in found.items() if np.isfinite(limits).all()}
