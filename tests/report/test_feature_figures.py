"""Pixels, bars and points of figures equal the features they are drawn from."""

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation.similarity import calibrate
from mmpatchmix.models.vit import PatchMixViT
from mmpatchmix.report import feature_figures as figures
from mmpatchmix.report.pictures import Sample, attend_class_token, choose_images, draw_similar_by
from mmpatchmix.report.sheets import to_array
from tests.calls import SERVER


@pytest.fixture(scope='module')
def clusters():
    """Twelve plain images in three classes, and features that lie around three directions."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(12) % 3
    noise = 0.05 * torch.randn(12, 5, generator=generator)
    features = F.normalize(torch.eye(5)[groups] + noise, dim=1)
    colours = torch.linspace(0.1, 0.9, 12)
    pictures = colours[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return pictures, features, groups


def cell(sheet, row, column):
    """Return the colour of the middle and of the frame of a cell."""
    step = 64 + 2 * 4 + 2 * 8
    top, left = row * step + 16, column * step + 8
    return sheet[top + 36, left + 36].tolist(), sheet[top + 1, left + 36].tolist()


def test_neighbours_are_the_nearest_others_framed_by_their_class(clusters):
    pictures, features, groups = clusters
    figure = figures.draw_neighbours(pictures, features, groups, queries=[4, 2], num_neighbours=5)
    (axis,) = figure.axes
    sheet = axis.images[0].get_array()
    texts = [text.get_text() for text in axis.texts]
    for row, query in enumerate((4, 2)):
        # By numpy, one pair at a time.
        cosines = [float(np.dot(features[query], features[n])) for n in range(12)]
        order = sorted(set(range(12)) - {query}, key=lambda n: -cosines[n])[:5]
        assert cell(sheet, row, 0)[0] == pytest.approx(pictures[query, :, 0, 0].tolist())
        for column, other in enumerate(order, 1):
            middle, frame = cell(sheet, row, column)
            assert middle == pytest.approx(pictures[other, :, 0, 0].tolist())
            same = groups[other] == groups[query]
            assert frame == pytest.approx(figures.SAME if same else figures.OTHER)
            assert texts[6 * row + column] == f'{cosines[other]:.2f}'
        assert [bool(groups[n] == groups[query]) for n in order] == [True] * 3 + [False] * 2


def test_similar_has_a_bar_of_every_checkpoint_beside_every_image(clusters):
    pictures, features, _ = clusters
    values = {'early': features[1:4] @ features[0], 'late': torch.tensor([0.5, -0.25, 1.0])}
    figure = figures.draw_similar(pictures[0], pictures[1:4], values, ['one', 'two', 'three'])
    _, middle, right = figure.axes
    for row in range(3):
        shown = cell(middle.images[0].get_array(), row, 0)[0]
        assert shown == pytest.approx(pictures[row + 1, :, 0, 0].tolist())
    for bars, wanted in zip(right.containers, values.values(), strict=True):
        assert [bar.get_width() for bar in bars] == pytest.approx(wanted.tolist())
        for row, bar in enumerate(bars):  # beside its image, which is 1 high
            assert row < bar.get_y() < bar.get_y() + bar.get_height() < row + 1
    assert [label.get_text() for label in right.get_yticklabels()] == ['one', 'two', 'three']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['early', 'late']


def test_the_map_separates_classes(clusters):
    _, features, groups = clusters
    (axis,) = (figure := figures.draw_map(features, groups, 'abc')).axes
    points = np.stack([part.get_offsets() for part in axis.collections])  # (classes, images, 2)
    middles = points.mean(1)
    assert np.linalg.norm(middles - np.roll(middles, 1, 0), axis=1).min() > 2 * points.std(1).max()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b', 'c']


def test_the_matrix_is_ordered_by_class(clusters):
    _, features, groups = clusters
    axis = figures.draw_similarity_matrix(features, groups, 'abc').axes[0]
    shown = axis.images[0].get_array()
    order = [n for group in range(3) for n in range(12) if groups[n] == group]
    for (row, column), value in np.ndenumerate(shown):
        wanted = float(np.dot(features[order[row]], features[order[column]]))
        assert value == pytest.approx(wanted, abs=1e-5)
        assert (value > 0.8) == (row // 4 == column // 4)
    assert [text.get_text() for text in axis.get_yticklabels()] == ['a', 'b', 'c']
    assert axis.get_yticks() == pytest.approx([1.5, 5.5, 9.5])


def test_attention_is_brightest_where_it_is_most(clusters):
    pictures = clusters[0][:2]
    attention = torch.full((2, 3, 2, 2), 0.1)
    attention[0, :, 1, 0], attention[1, 0, 0, 1] = 0.6, 0.7
    (axis,) = figures.draw_attention(pictures, attention).axes
    sheet = axis.images[0].get_array()
    for column, (y, x) in enumerate([(1, 0), (0, 1)]):
        top, left = 88 + 16 + 4, column * 88 + 8 + 4
        heat = sheet[top : top + 64, left : left + 64].sum(-1)
        parts = heat.reshape(2, 32, 2, 32)[:, 8:24, :, 8:24].mean((1, 3))
        assert np.unravel_index(parts.argmax(), (2, 2)) == (y, x)
    assert [text.get_text() for text in axis.texts[2:]] == ['max 60 %', 'max 30 %']


def test_attention_of_the_class_token_equals_torchs_own():
    torch.manual_seed(0)
    arch = dict(embed_dims=12, num_layers=3, num_heads=2, feedforward_channels=24)
    vit = PatchMixViT(arch=arch, img_size=(8, 16), patch_size=4)
    vit.init_weights()
    images = torch.randn(3, 3, 8, 16)
    seen = []
    vit.layers[2].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vit.out_type = 'raw'  # all blocks compute all tokens
    vit.eval()
    vit(images)
    tokens = vit.layers[2].ln1(seen[0]).transpose(0, 1)  # (T, N, D)
    attn = vit.layers[2].attn
    _, weights = F.multi_head_attention_forward(
        tokens, tokens, tokens, 12, 2, attn.qkv.weight, attn.qkv.bias, None, None, False, 0.0,
        attn.proj.weight, attn.proj.bias, training=False, average_attn_weights=False,
    )  # fmt: skip
    vit.out_type = 'cls_token'
    vit.train()
    model = torch.nn.Module()
    model.backbone = vit
    found = attend_class_token(model, images)
    assert found.shape == (3, 2, 2, 4) and vit.training
    torch.testing.assert_close(found.flatten(2), weights[:, :, 0, 1:], atol=1e-6, rtol=1e-5)
    arch = dict(embed_dims=12, num_layers=1, num_heads=2, feedforward_channels=12)
    model.backbone = PatchMixViT(arch=arch, img_size=16, patch_size=8, num_registers=4)
    with torch.no_grad():  # all tokens alike: a ninth each, of the class, 4 registers, 4 patches
        model.backbone.layers[0].attn.qkv.weight.zero_()
    found = attend_class_token(model, torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(found, torch.full((2, 2, 2, 2), 1 / 9))


def test_a_sample_has_at_most_20_classes():
    dataset = MagicMock(metainfo={'labelled': True}, __len__=lambda self: 120)
    dataset.get_gt_labels = lambda: np.arange(120) // 4
    chosen = choose_images(dataset, 40)
    assert len(chosen) == 40 == len(set(chosen))
    classes = {index // 4 for index in chosen}
    assert len(classes) == 20 and {0, 29} <= classes
    assert choose_images([None] * 10, 5) == [0, 2, 4, 6, 8]


def draw_extreme_features():
    """Draw each figure of features that are alike, not finite, or few; all are in one class."""
    features = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    alike, nan, infinite = torch.ones(12, 8), features.clone(), features.clone()
    nan[2:], infinite[:, 2] = torch.nan, torch.inf
    nearly = alike + 1e-6 * features
    for rows in (alike, nearly, nan, infinite, 1e30 * features, features[:1], features[:2]):
        groups = torch.zeros(len(rows)).long()
        figures.draw_map(rows, groups, 'a')
        if rows is infinite or len(rows) == 1:
            unit, pictures = F.normalize(rows, dim=1), torch.rand(len(rows), 3, 8, 8)
            sample = Sample(pictures, pictures, unit, groups, 'a', True)
            for figure in (
                figures.draw_map(unit, groups, 'a'),
                figures.draw_similarity_matrix(unit, groups, 'a'),
                figures.draw_neighbours(pictures, unit, groups, [0]),
                figures.draw_attention(pictures, rows[:, :4].reshape(-1, 1, 2, 2)),
                draw_similar_by({'': sample}),
            ):
                assert to_array(figure).std() > 0
    curve = calibrate(torch.full((1, 2), 0.5), torch.full((1, 4, 2), torch.nan))
    for curves in ({2: curve}, {}):  # one image cannot be mixed
        to_array(figures.draw_similarity(curves, None))


def test_figures_of_any_features_are_drawn():
    process = SERVER.Process(target=draw_extreme_features)  # t-SNE may crash the interpreter
    process.start()
    process.join()
    assert process.exitcode == 0


def test_similarity_has_a_curve_per_mix_and_a_bar_per_number_of_neighbours():
    curve = dict(curve=[(0.1, 0.2, 0.05, 10), (0.6, 0.5, 0.1, 20)])
    agreement = {'auroc': 0.7, 'precision_at_1': 0.5, 'precision_at_10': 0.4}
    figure = figures.draw_similarity({2: curve, 3: curve}, agreement)
    curves, bars = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in curves.get_lines()}
    assert lines['mixes of 2 images'] == [[0.1, 0.2], [0.6, 0.5]]
    assert lines['equal to the true share'] == [[0, 0], [1, 1]]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx([50, 40])
    for alone in (({}, agreement), ({2: curve}, None)):
        assert len(figures.draw_similarity(*alone).axes) == 1
