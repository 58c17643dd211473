"""What a SavedModel would run, told from its graph before TensorFlow loads it: loading alone runs initializers."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tfopt.errors import ModelFileError
from tfopt.runtime.trusted_operations import TRUSTED_OPERATIONS

_log = logging.getLogger(__name__)
_INITIALIZERS = frozenset({"saved_model_main_op", "legacy_init_op", "saved_model_train_op"})
_RESTORE = frozenset({"RestoreV2"})


def check_operations(path: Path, *, trust: bool = False) -> None:
    """Refuses a SavedModel whose signatures, functions or initializers hold operations that are not on the list.

    What only its saver holds is never run here and is left out.

    Args:
        path: the folder.
        trust: log what it holds instead of refusing it.

    Raises:
        ModelFileError: an operation that may touch files, processes or the network; it is named. Or no SavedModel.
    """
    for found in _untrusted(path):
        if not trust:
            raise ModelFileError(
                f"{path} holds {found}, which can do more than compute: export the model anew without it, or give "
                "trust=True where you trust whoever made it"
            )
        _log.warning("%s is trusted: it holds %s", path, found)


def _untrusted(path: Path) -> Iterator[str]:
    for graph in _read(path).meta_graphs:
        bodies = {function.signature.name: function.node_def for function in graph.graph_def.library.function}
        has_objects = bool(graph.object_graph_def.nodes)
        # A SavedModel without objects is restored by running an operation of its graph.
        restored = [] if has_objects else _main_graph(graph, [graph.saver_def.restore_op_name])
        yield from _beyond(TRUSTED_OPERATIONS | _RESTORE, restored, bodies)
        yield from _beyond(TRUSTED_OPERATIONS, _main_graph(graph, _run_by_signatures(graph)), bodies)
        for name in graph.object_graph_def.concrete_functions:
            yield from _beyond(TRUSTED_OPERATIONS, bodies.get(name, ()), bodies)


def _read(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except DecodeError as error:
        raise ModelFileError(f"{path} is not a SavedModel that loads: {error}") from error


def _run_by_signatures(graph: Any) -> list[str]:
    """Names of the nodes that signatures and initializers ask for."""
    wanted = [t.name for s in graph.signature_def.values() for t in s.outputs.values()]
    for name in _INITIALIZERS.intersection(graph.collection_def):
        wanted += graph.collection_def[name].node_list.value
    return wanted


def _main_graph(graph: Any, wanted: Iterable[str]) -> Iterator[Any]:
    """The nodes that run when those are asked for."""
    nodes = {node.name: node for node in graph.graph_def.node}
    waiting, seen = [_node_name(name) for name in wanted], set[str]()
    while waiting:
        name = waiting.pop()
        if name in nodes and name not in seen:
            seen.add(name)
            yield nodes[name]
            waiting += [_node_name(source) for source in nodes[name].input]


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _beyond(trusted: frozenset[str], nodes: Iterable[Any], bodies: dict[str, Any]) -> Iterator[str]:
    """Operations that are not trusted; calls into functions are followed, each once."""
    waiting, seen = [nodes], set[str]()
    while waiting:
        for node in waiting.pop():
            if node.op not in trusted and node.op not in bodies:
                yield f"the operation {node.op} ({node.name})"
            for name in {node.op, *_functions(node)} & bodies.keys() - seen:
                seen.add(name)
                waiting.append(bodies[name])


def _functions(node: Any) -> Iterator[str]:
    """Names of the functions that a node calls."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)
