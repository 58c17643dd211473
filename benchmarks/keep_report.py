"""Keeps the report and a plot of a long run as small result files, with the names of files instead of paths.

python -m benchmarks.keep_report saved_models/minilm-sst2 minilm_sst2
python -m benchmarks.keep_report out optimize_sst2    # after tfopt optimize ... -o out
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from tfopt._base.files import write_bytes, write_json
from tfopt.report import Report
from tfopt.report.plots import plots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    report = _with_names(json.loads((arguments.run / "report.json").read_text("utf-8")))
    path = write_json(RESULTS / f"{arguments.name}.json", report)
    print(path, write_bytes(path.with_suffix(".png"), plots(Report.load(path))["latency_accuracy"]))


def _with_names(value: Any) -> Any:
    """A report in which files have names instead of paths."""
    if isinstance(value, dict):
        return {key: _with_names(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_names(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") and "\n" not in value else value


if __name__ == "__main__":
    main()
