"""Figures, and the report of runs."""

from mmpatchmix.report.report import write_report
from mmpatchmix.report.run_report_hook import RunReportHook
from mmpatchmix.report.sheets import draw_mixed
