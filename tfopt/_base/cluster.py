"""Which processes train together: what `TF_CONFIG` says, as TensorFlow reads it, checked before TensorFlow does."""

import dataclasses
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

from tfopt.errors import InputError

VARIABLE = "TF_CONFIG"
_HELP = (
    'it is JSON such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a training, and which of them this process is.

    Attributes:
        workers: addresses as "host:port"; the first is the chief, which alone writes.
        index: of this process in them.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    def for_worker(self, index: int) -> str:
        """The value of `TF_CONFIG` for one of the workers."""
        task = {"type": "worker", "index": index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})


def cluster_of(environment: Mapping[str, str] = os.environ) -> Cluster | None:
    """The cluster that `TF_CONFIG` describes, or None without one or with a single worker.

    Raises:
        InputError: a value that describes no worker of a cluster.
    """
    text = environment.get(VARIABLE, "")
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _wrong(f"is no JSON ({error})") from None
    cluster, task = (_entry(found, name, dict) for name in ("cluster", "task"))
    others = sorted(cluster.keys() - {"chief", "worker"})
    if others:
        raise _wrong(f"has tasks of type {', '.join(others)}; workers train together, with a chief at most")
    chiefs = _addresses(cluster, "chief")
    workers = (*chiefs, *_addresses(cluster, "worker"))
    kind, index = task.get("type"), task.get("index")
    if not isinstance(kind, str) or kind not in cluster or isinstance(index, bool) or not isinstance(index, int):
        raise _wrong(f"has the task {json.dumps(task)}, which is none of its cluster")
    if not 0 <= index < len(cluster[kind]):
        raise _wrong(f"has the task {kind} {index}, but {len(cluster[kind])} of that type")
    if len(set(workers)) < len(workers):
        raise _wrong("has the same address twice")
    if len(workers) < 2:
        return None
    return Cluster(workers, index + (len(chiefs) if kind == "worker" else 0))


def _wrong(what: str) -> InputError:
    return InputError(f"{VARIABLE} {what}; {_HELP}")


def _entry(found: Any, name: str, kind: type) -> Any:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, kind):
        raise _wrong(f"has no {name!r}")
    return value


def _addresses(cluster: dict[str, Any], kind: str) -> list[str]:
    found = cluster.get(kind, [])
    if not isinstance(found, list):
        raise _wrong(f"has no list of addresses of type {kind}")
    for address in found:
        host, _, port = str(address).rpartition(":")
        if not isinstance(address, str) or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise _wrong(f"has the address {address!r}, which is no host:port")
    return found


def check_free(address: str) -> None:
    """Checks that this process can listen there; TensorFlow would end it.

    Raises:
        InputError: another process has the port.
    """
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"port {port} of this worker ({address} in {VARIABLE}) cannot be listened on: {error.strerror}; "
                "end the process that has it, or give the worker another"
            ) from None
