"""Detections show masks where they are, and precision a bar for each class."""

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure

from mmpatchmix.cli import show
from mmpatchmix.report import detection_figure
from mmpatchmix.report.detection_figure import Object, draw_class_precision, draw_detections


def test_annotated_masks_are_above_and_found_ones_below():
    images = [np.full((10, 12, 3), 50, np.uint8), np.full((10, 12), 80, np.uint8)]
    mask = np.pad(np.ones((3, 6), np.uint8), ((2, 5), (3, 3)))
    truth = [[Object(mask, 3, 'cat')], []]
    found = [[Object(mask[::-1], 1, 'dog 0.93')], [Object(mask, 12, 'owl 0.51')]]
    axes = np.array(draw_detections(images, truth, found).axes).reshape(2, 2)
    for column, image in enumerate(images):
        for row, objects in enumerate((truth[column], found[column])):
            shown, *layers = axes[row, column].images
            assert (shown.get_array() == image).all()
            assert len(layers) == len(objects) == len(axes[row, column].texts)
            for layer, text, one in zip(layers, axes[row, column].texts, objects, strict=True):
                layer = layer.get_array()
                assert ((layer[..., 3] > 0) == (one.mask > 0)).all()
                colour = layer[one.mask > 0][0][:3].tolist()
                assert colour == pytest.approx(colormaps['tab10'](one.label % 10)[:3])
                assert text.get_text() == one.text


def test_annotations_are_polygons_or_run_lengths_or_boxes():
    from pycocotools import mask as rle

    wanted = np.pad(np.ones((4, 4), np.uint8), ((2, 2), (3, 3)))
    square = [[3.0, 2.0, 7.0, 2.0, 7.0, 6.0, 3.0, 6.0]]
    packed = rle.encode(np.asfortranarray(wanted))
    # Column by column, beginning with what is not in it.
    plain = dict(size=[8, 10], counts=[26, 4, 4, 4, 4, 4, 4, 4, 26])
    for shape in (square, packed, plain, None):
        instance = dict(bbox=[3, 2, 7, 6], bbox_label=1, mask=shape)
        one = detection_figure._read_annotation(instance, ('a', 'b'), (8, 10))
        assert (one.mask == wanted).all() and one.label == 1 and one.text == 'b'


def test_the_precision_that_is_shown_is_of_boxes(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr(show, 'build_runner', lambda cfg, *args: shown.append(cfg.test_evaluator))
    monkeypatch.setattr(show, 'draw', lambda *args: Figure())
    (tmp_path / 'a.pth').touch()
    config = 'configs/coco/mask-rcnn_vit-s_fpn_1x.py'
    place = '--out', str(tmp_path / 'a.png'), '--work-dir', str(tmp_path)
    show.main(['class_precision', config, str(tmp_path / 'a.pth'), *place])
    assert shown[0].classwise and shown[0].metric == 'bbox'


def test_precision_is_ordered_and_classes_without_objects_are_marked():
    values = dict(cat=0.25, owl=float('nan'), dog=0.5)
    metrics = {f'coco/{name}_precision': value for name, value in values.items()}
    (axis,) = draw_class_precision(metrics | {'coco/bbox_mAP': 0.375}).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ['dog', 'cat', 'owl']
    assert [bar.get_width() for bar in axis.patches] == [50, 25, 0]
    assert [text.get_text() for text in axis.texts] == ['50.0', '25.0', 'no objects']
    with pytest.raises(ValueError, match='classwise=True'):
        draw_class_precision({'coco/bbox_mAP': 0.375})
