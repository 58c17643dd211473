"""Memory of this process, and what is left of the machine's."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_GROUPS = (  # limit, use and its parts of the containers that Linux runs processes in, of both of its kinds
    tuple(Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current", "memory.stat")),
    tuple(
        Path("/sys/fs/cgroup/memory") / name
        for name in ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
    ),
)


def peak_memory_bytes() -> int | None:
    """Largest resident memory so far in bytes, or None where the system does not tell.

    On Linux from /proc: `getrusage` there starts a new program with the peak of the one that started it.
    """
    if _STATUS.exists():
        return _line_of(_STATUS, "VmHWM")
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes() -> int | None:
    """Resident memory now in bytes, or None where the system does not tell."""
    return _line_of(_STATUS, "VmRSS") if _STATUS.exists() else None


def free_memory_bytes() -> int | None:
    """Bytes that this process could still take without swapping, or None where the system does not tell."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return None
    found = [_line_of(facts, "MemAvailable")]
    for limit, use, parts in _GROUPS:
        if limit.exists() and use.exists() and limit.read_text().strip().isdigit():
            found.append(int(limit.read_text()) - int(use.read_text()) + _cached(parts))
    return min((value for value in found if value is not None), default=None)


def _cached(parts: Path) -> int:
    """Bytes of files in a container's memory that are given up when somebody needs them."""
    lines = parts.read_text().splitlines() if parts.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def _line_of(path: Path, name: str) -> int | None:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
