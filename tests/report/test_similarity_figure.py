"""The picture shows the figures it was given."""

import pytest
from matplotlib.colors import to_rgba

from mmpatchmix.report.feature_figures import draw_similarity

CURVE = [(0.1, 0.2, 0.05, 10), (0.6, 0.5, 0.1, 20)]
AGREEMENT = {'auroc': 0.7, 'precision_at_1': 0.5, 'precision_at_10': 0.4}


def test_curves_and_bars():
    figure = draw_similarity({2: dict(curve=CURVE), 3: dict(curve=CURVE)}, AGREEMENT)
    curves, bars = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in curves.get_lines()}
    assert lines['mixes of 2 images'] == [[0.1, 0.2], [0.6, 0.5]]
    assert lines['as the shares say'] == [[0, 0], [1, 1]]
    assert len({to_rgba(line.get_color()) for line in curves.get_lines()}) == 3
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([50, 40])
    assert '0.700' in bars.get_title()


@pytest.mark.parametrize(
    ('calibrations', 'agreement'), [({}, AGREEMENT), ({2: dict(curve=CURVE)}, None)]
)
def test_one_of_the_two(calibrations, agreement):
    assert len(draw_similarity(calibrations, agreement).axes) == 1
