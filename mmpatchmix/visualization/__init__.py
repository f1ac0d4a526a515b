"""Figures and the report of a run."""

from mmpatchmix.visualization.curves import draw_curves, read_scalars
from mmpatchmix.visualization.mixed_figure import draw_mixed
from mmpatchmix.visualization.run_report_hook import RunReportHook
from mmpatchmix.visualization.similarity_figure import draw_similarity

__all__ = ['RunReportHook', 'draw_curves', 'draw_mixed', 'draw_similarity', 'read_scalars']
