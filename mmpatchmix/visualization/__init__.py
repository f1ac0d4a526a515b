"""Figures and the report of a run."""

from mmpatchmix.visualization.curves import draw_curves, read_scalars
from mmpatchmix.visualization.mixed_figure import draw_mixed
from mmpatchmix.visualization.run_report_hook import RunReportHook

__all__ = ['RunReportHook', 'draw_curves', 'draw_mixed', 'read_scalars']
