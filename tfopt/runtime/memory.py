"""Peak memory of this process."""

import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """Largest resident memory so far in bytes, or None where the system does not tell.

    On Linux from /proc: `getrusage` there starts a new program with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
