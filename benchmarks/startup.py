"""How long `tfopt --help` takes, and that importing the package loads no TensorFlow.

python -m benchmarks.startup
"""

import subprocess
import sys

from benchmarks.common import goal, milliseconds, paired, save, show


def main() -> None:
    help_command = [sys.executable, "-m", "tfopt", "--help"]
    bare = [sys.executable, "-c", "pass"]
    seconds = paired({
        "tfopt --help": lambda: subprocess.run(help_command, capture_output=True, check=True),
        "python -c pass": lambda: subprocess.run(bare, capture_output=True, check=True),
    }, rounds=21)  # fmt: skip
    check = "import sys, tfopt; sys.exit('tensorflow' in sys.modules)"
    loads_tensorflow = subprocess.run([sys.executable, "-c", check]).returncode != 0
    times = {name: milliseconds(s) for name, s in seconds.items()}
    show(times)
    goals = [
        goal("tfopt --help [s]", times["tfopt --help"]["median"] / 1e3, 0.4, at_most=True),
        goal("import tfopt loads TensorFlow", float(loads_tensorflow), 0, at_most=True),
    ]
    save("startup", {"times_ms": times, "goals": goals})


if __name__ == "__main__":
    main()
