"""Results as JSON, HTML, plots and a terminal table; computes nothing but texts and pictures."""

from tfopt.report.machine import machine_info
from tfopt.report.report import Report, Step

__all__ = ["Report", "Step", "machine_info"]
