"""Exports a decoder of more than a billion random weights straight from its checkpoint, and watches the memory.

    python -m benchmarks.streamed_export [--layers 16] [--kinds dynamic_int8 ...]

The checkpoint is written a tensor at a time, as bfloat16 in shards. While `tfopt export --streamed` runs, the
memory of its processes is looked at every 50 ms: what is their own, and what is resident with the pages of mapped
files, which the system may take back. The goal: their own at most 1.5 times the weights of the file and 1 GB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import goal, save
from tfopt.decoding.shapes import weight_shapes
from tfopt.models.checkpoints import INDEX
from tfopt.models.families import FAMILIES
from tfopt.models.families.fields import check_fields

_CONFIG = {
    "model_type": "llama", "vocab_size": 32768, "hidden_size": 2048, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "eos_token_id": 2,
}  # fmt: skip
_GB = 1e9


def write_checkpoint(folder: Path, layers: int) -> int:
    """A Hugging Face folder with random weights, spread as trained ones are; returns their number."""
    import ml_dtypes
    from safetensors.numpy import save_file

    raw = {**_CONFIG, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(raw))
    family, rng = FAMILIES["llama"], np.random.default_rng(0)
    config = family.config(check_fields(raw, "config"))
    shapes, places, count = weight_shapes(config), {}, 0
    for number, entry in enumerate(family.entries(config)):
        shape, file = entry.shape(shapes), f"model-{number:05}.safetensors"
        spread = 0.02 if len(shape) > 1 else 0.1
        value = np.float32(spread) * rng.standard_normal(shape, np.float32) + np.float32(len(shape) == 1)
        save_file({entry.theirs: value.astype(ml_dtypes.bfloat16)}, folder / file)
        places[entry.theirs], count = file, count + value.size
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return count


class Watch(threading.Thread):
    """The most memory that a process and its children have at one time."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self.own, self.resident, self.going = pid, 0, 0, True

    def run(self) -> None:
        while self.going:
            sizes = [memory_of(pid) for pid in _family(self._pid)]
            self.own = max(self.own, sum(own for own, _ in sizes))
            self.resident = max(self.resident, sum(resident for _, resident in sizes))
            time.sleep(0.05)


def _family(pid: int) -> list[int]:
    """A process and all that came of it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        found.append(left.pop())
        left += parents.get(found[-1], [])
    return found


def memory_of(pid: int) -> tuple[int, int]:
    """Bytes that are its own and in memory, and all that are; what processes share is divided among them.

    Of memory without a file, such as that of packed weights, all counts: it is there before it is looked at.
    """
    try:
        rows = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()[1:]
        lines = dict(line.split(":", 1) for line in rows)
        own, shared, whole = (int(lines[name].split()[0]) * 1024 for name in ("Pss_Anon", "Pss_Shmem", "Pss"))
        places = [line.split() for line in Path("/proc", str(pid), "maps").read_text().splitlines()]
    except (OSError, KeyError, ValueError):
        return 0, 0  # it has ended
    ranges = [place[0].split("-") for place in places if place[5:] and place[5].startswith("/memfd:")]
    unseen = max(sum(int(end, 16) - int(start, 16) for start, end in ranges) - shared, 0)
    return own + shared + unseen, whole + unseen


def export(folder: Path, file: Path, kind: str) -> dict[str, Any]:
    """One export in a process of its own."""
    command = [sys.executable, "-m", "tfopt", "export", str(folder), "-o", str(file), "--streamed", "--json"]
    command += ["--quantization", kind, "--length", "128", *_accepted(kind)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    watch = Watch(process.pid)
    watch.start()
    output = process.communicate()[0]
    watch.going = False
    watch.join()
    assert process.returncode == 0, f"the export of {kind} failed: {output[-2000:]!r}"
    checks = {check["name"]: check["found"] for check in json.loads(output)["checks"]}
    return {
        "bytes": file.stat().st_size, "seconds": round(time.perf_counter() - started), "own_bytes": watch.own,
        "resident_bytes": watch.resident, "checks": checks,
    }  # fmt: skip


def _accepted(kind: str) -> list[str]:
    """What random weights do not keep in 4 bits."""
    names = ("rms_error", "correlation", "signal_to_noise", "next_tokens", "divergence", "perplexity")
    return [part for name in names for part in ("--accept", name)] if "int4" in kind else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--kinds", nargs="+", default=["dynamic_int8", "dynamic_int4"])
    given = parser.parse_args()
    goals, rows = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "checkpoint")
        folder.mkdir()
        count = write_checkpoint(folder, given.layers)
        for kind in given.kinds:
            found = rows[kind] = export(folder, Path(name, "m.tflite"), kind)
            billions = count / 1e9
            found["own_gb_per_billion"] = round(found["own_bytes"] / _GB / billions, 2)
            found["limit_bytes"] = round(1.5 * found["bytes"] + _GB)
            print(f"{kind}: {found}", flush=True)
            goals.append(
                goal(f"{kind}: own memory, GB", found["own_bytes"] / _GB, found["limit_bytes"] / _GB, at_most=True)
            )
    name = "streamed_export" if given.layers == 16 else f"streamed_export_{given.layers}_layers"
    save(name, {"parameters": count, "exports": rows, "goals": goals})


if __name__ == "__main__":
    main()
