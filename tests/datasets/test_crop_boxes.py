"""Boxes against torchvision's, and their way to a smaller image."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from mmpatchmix.datasets.crop_boxes import Box, choose_reduction, draw_box, reduce_box


@pytest.mark.parametrize('ratio', [(3 / 4, 4 / 3), (0.2, 6.0), (1.0, 1.0)])
@pytest.mark.parametrize('shape', [(375, 500), (1, 1), (2, 300), (900, 31), (2048, 1361)])
def test_boxes_and_random_numbers_are_torchvisions(shape, ratio):
    # (2, 300) and (900, 31) have no box of most ratios: the centre is taken.
    image = torch.empty(3, *shape)
    for scale in [(0.35, 1.0), (0.05, 0.35), (1.0, 1.0)]:
        torch.manual_seed(0)
        ours = [draw_box(*shape, scale, ratio) for _ in range(60)]
        after = torch.rand(())
        torch.manual_seed(0)
        theirs = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(60)]
        assert ours == theirs
        assert after == torch.rand(())


def test_reduction_is_the_largest_that_every_crop_bears():
    boxes = [Box(0, 0, 448, 900), Box(3, 5, 97, 400)]
    assert choose_reduction(boxes[:1], [(224, 224)]) == 2
    assert choose_reduction(boxes[:1], [(225, 224)]) == 1
    assert choose_reduction(boxes[:1], [(224, 451)]) == 1
    assert choose_reduction(boxes[:1], [(56, 56)]) == 8
    assert choose_reduction(boxes[:1], [(56, 112)]) == 8
    assert choose_reduction(boxes, [(112, 112), (48, 48)]) == 2  # 97 / 2 >= 48, 97 / 4 < 48
    assert choose_reduction(boxes, [(56, 56), (24, 24)]) == 4
    assert choose_reduction(boxes, [(2, 2), (2, 2)]) == 8  # libjpeg goes no further
    assert choose_reduction(boxes, [(500, 500), (24, 24)]) == 1


def test_reduced_boxes_stay_inside_and_keep_what_crops_need():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(3000):
        height, width = (int(side) for side in rng.integers(1, 3000, 2))
        size = int(rng.integers(1, 300))
        torch.manual_seed(int(rng.integers(2**31)))
        box = draw_box(height, width, (0.05, 1.0), (3 / 4, 4 / 3))
        reduction = choose_reduction([box], [(size, size)])
        seen.add(reduction)
        small = reduce_box(box, reduction)
        assert small.top >= 0 and small.left >= 0
        assert small.top + small.height <= -(-height // reduction)
        assert small.left + small.width <= -(-width // reduction)
        if reduction == 1:
            assert small == box
            continue
        assert min(small.height, small.width) >= size
        # No edge moves by more than half a pixel of the smaller image.
        for begin, length, place, new in zip(box[:2], box[2:], small[:2], small[2:], strict=True):
            assert abs(place - begin / reduction) <= 0.5
            assert abs(place + new - (begin + length) / reduction) <= 0.5
    assert seen == {1, 2, 4, 8}
