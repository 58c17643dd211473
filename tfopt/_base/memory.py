"""Memory of this process, and what is left of the machine's."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_GROUPS = (  # limit and use of the containers that Linux runs processes in, of both of its kinds
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
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
    for limit, use in _GROUPS:
        if Path(limit).exists() and Path(use).exists():
            most = Path(limit).read_text().strip()
            found.append(int(most) - int(Path(use).read_text()) if most.isdigit() else None)
    return min((value for value in found if value is not None), default=None)


def _line_of(path: Path, name: str) -> int | None:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
