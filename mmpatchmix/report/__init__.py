"""Figures, and the report of runs."""

from mmpatchmix.report.detection_figure import draw_class_precision, draw_detections
from mmpatchmix.report.feature_figures import (
    draw_attention,
    draw_map,
    draw_neighbours,
    draw_similar,
    draw_similarity,
    draw_similarity_matrix,
)
from mmpatchmix.report.report import write_report
from mmpatchmix.report.run_record import read_run, read_scalars
from mmpatchmix.report.run_report_hook import RunReportHook
from mmpatchmix.report.sheets import draw_mixed, draw_views

__all__ = [
    'RunReportHook',
    'draw_attention',
    'draw_class_precision',
    'draw_detections',
    'draw_map',
    'draw_mixed',
    'draw_neighbours',
    'draw_similar',
    'draw_similarity',
    'draw_similarity_matrix',
    'draw_views',
    'read_run',
    'read_scalars',
    'write_report',
]
