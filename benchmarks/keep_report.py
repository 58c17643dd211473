"""Keeps the report and a plot of a long run as small result files, with the names of files instead of paths.

python -m benchmarks.keep_report saved_models/minilm-sst2 minilm_sst2
"""

import argparse
import json
from pathlib import Path

from benchmarks.common import RESULTS
from tfopt._base.files import write_bytes, write_json
from tfopt.report import Report
from tfopt.report.plots import plots


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    arguments = parser.parse_args()
    report = json.loads((arguments.run / "report.json").read_text("utf-8"))
    for section, key in (("model", "folder"), ("data", "train"), ("data", "validation")):
        path = report["recipe"].get(section, {}).get(key)
        if path:
            report["recipe"][section][key] = Path(path).name
    path = write_json(RESULTS / f"{arguments.name}.json", report)
    print(path, write_bytes(path.with_suffix(".png"), plots(Report.load(path))["latency_accuracy"]))


if __name__ == "__main__":
    main()
