"""Figures, and the report of runs."""

from mmpatchmix.visualization.detection_figure import draw_class_precision, draw_detections
from mmpatchmix.visualization.feature_figures import (
    draw_attention,
    draw_map,
    draw_neighbours,
    draw_similar,
    draw_similarity_matrix,
)
from mmpatchmix.visualization.mixed_figure import draw_mixed
from mmpatchmix.visualization.report import write_report
from mmpatchmix.visualization.run_record import read_run, read_scalars
from mmpatchmix.visualization.run_report_hook import RunReportHook
from mmpatchmix.visualization.similarity_figure import draw_similarity
from mmpatchmix.visualization.views_sheet import draw_views

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
