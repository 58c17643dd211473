"""`python -m tfopt.measure FOLDER`: the child's side of `tfopt.measure.child`."""

import sys
from pathlib import Path

from tfopt.measure.child import serve

if __name__ == "__main__":
    serve(Path(sys.argv[1]))
