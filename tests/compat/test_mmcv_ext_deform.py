"""Deformable convolution and attention of the stand-in ops against slow, obvious ones."""

import math

import pytest
import torch

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

from mmcv import ops  # noqa: E402


def naive_deform_conv(images, offset, mask, weight, stride, padding, dilation, groups):
    """``(N, C, H, W)``; every tap of every output position sampled by itself.

    Offsets and masks are read as mmcv's kernel reads them: by their place in memory, with
    the rows and columns of the output, whatever shape they have.
    """
    out_channels, in_group, kernel, _ = weight.shape
    batch, channels = images.shape[:2]
    offset_groups = offset.shape[1] // (2 * kernel * kernel)
    per_offset, per_group = channels // offset_groups, out_channels // groups
    span = dilation * (kernel - 1) + 1
    rows, columns = [(side + 2 * padding - span) // stride + 1 for side in images.shape[2:]]
    offset, mask = offset.flatten(1), mask.flatten(1)
    out = images.new_zeros(batch, out_channels, rows, columns)
    for n in range(batch):
        for i in range(rows):
            for j in range(columns):
                taps = images.new_zeros(channels, kernel * kernel)
                for g in range(offset_groups):
                    part = slice(g * per_offset, (g + 1) * per_offset)
                    for tap in range(kernel * kernel):
                        at = g * kernel * kernel + tap
                        down, along, share = [
                            (channel * rows + i) * columns + j
                            for channel in (2 * at, 2 * at + 1, at)
                        ]
                        y = i * stride - padding + tap // kernel * dilation + offset[n, down]
                        x = j * stride - padding + tap % kernel * dilation + offset[n, along]
                        value = zero_padded_sample(images[n, part], y, x)
                        taps[part, tap] = value * mask[n, share]
                for o in range(out_channels):
                    g = o // per_group
                    chosen = taps[g * in_group : (g + 1) * in_group]
                    out[n, o, i, j] = (chosen * weight[o].flatten(1)).sum()
    return out


def zero_padded_sample(image, y, x):
    value = 0
    top, left = math.floor(y.item()), math.floor(x.item())
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            value = value + share * image[:, row, column]
    return value


def deform_inputs(groups, offset_groups):
    torch.manual_seed(3)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    images, weight = make(2, 4, 5, 5), make(4, 4 // groups, 3, 3)
    offset, mask = make(2, 18 * offset_groups, 3, 3), make(2, 9 * offset_groups, 3, 3).sigmoid()
    return [tensor.requires_grad_() for tensor in (images, offset, mask, weight, make(4))]


@pytest.mark.parametrize(('groups', 'offset_groups'), [(1, 1), (2, 2)])
def test_deformable_convolutions_equal_a_naive_one_gradients_included(groups, offset_groups):
    images, offset, mask, weight, bias = deform_inputs(groups, offset_groups)
    geometry = (2, 1, 1, groups, offset_groups)
    expected = naive_deform_conv(
        images, offset, torch.ones_like(mask), weight, *geometry[:3], groups
    )
    output = ops.deform_conv2d(images, offset, weight, *geometry)
    torch.testing.assert_close(output, expected)
    assert_same_gradients(output, expected, [images, offset, weight])

    expected = naive_deform_conv(images, offset, mask, weight, *geometry[:3], groups)
    expected = expected + bias[:, None, None]
    output = ops.modulated_deform_conv2d(images, offset, mask, weight, bias, *geometry)
    torch.testing.assert_close(output, expected)
    assert_same_gradients(output, expected, [images, offset, mask, weight, bias])

    without = ops.modulated_deform_conv2d(images, offset, mask, weight, None, *geometry)
    torch.testing.assert_close(without, expected - bias[:, None, None])


@pytest.mark.parametrize('side', [5, 6])  # the output has 3 x 3
def test_offsets_of_a_larger_level_are_read_as_mmcv_reads_them(side):
    """mmdet's DyHead convolves a level with the offsets of one of twice its side."""
    images, _, _, weight, bias = deform_inputs(groups=1, offset_groups=1)
    offset = torch.randn(2, 18, side, side, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 27, side, side, dtype=torch.float64)[:, 18:].requires_grad_()
    expected = naive_deform_conv(images, offset, mask, weight, 2, 1, 1, 1) + bias[:, None, None]
    output = ops.modulated_deform_conv2d(images, offset, mask, weight, bias, 2, 1, 1, 1, 1)
    torch.testing.assert_close(output, expected)
    assert_same_gradients(output, expected, [images, offset, mask, weight, bias])


def test_too_few_offsets_are_an_error():
    images, offset, mask, weight, bias = deform_inputs(groups=1, offset_groups=1)
    with pytest.raises(ValueError, match=r'\(2, 2\).*\(3, 3\)'):
        ops.modulated_deform_conv2d(images, offset[..., :2, :2], mask, weight, bias, 2, 1, 1, 1, 1)


def assert_same_gradients(output, expected, leaves):
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad((output * upstream).sum(), leaves)
    theirs = torch.autograd.grad((expected * upstream).sum(), leaves)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_multi_scale_deformable_attention_samples_each_level_bilinearly():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    torch.manual_seed(4)
    sizes = [(4, 5), (2, 3)]
    value = torch.randn(2, 26, 2, 3, dtype=torch.float64, requires_grad=True)
    where = torch.rand(2, 4, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    share = torch.rand(2, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    shapes, starts = torch.tensor(sizes), torch.tensor([0, 20])
    output = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, where, share, 64)

    expected = torch.zeros(2, 4, 2, 3, dtype=torch.float64)
    for n, q, h, level, point in torch.cartesian_prod(*map(torch.arange, (2, 4, 2, 2, 2))).tolist():
        height, width = sizes[level]
        start = starts[level]
        image = value[n, start : start + height * width, h].T.view(3, height, width)
        x, y = where[n, q, h, level, point]
        sampled = zero_padded_sample(image, y * height - 0.5, x * width - 0.5)
        contribution = torch.zeros_like(expected)
        contribution[n, q, h] = share[n, q, h, level, point] * sampled
        expected = expected + contribution
    expected = expected.flatten(2)
    torch.testing.assert_close(output, expected)
    assert_same_gradients(output, expected, [value, where, share])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_tensors_give_what_cpu_tensors_give():
    tensors = [tensor.detach().float() for tensor in deform_inputs(1, 1)]
    geometry = (2, 1, 1, 1, 1)
    torch.testing.assert_close(
        ops.modulated_deform_conv2d(*[t.cuda() for t in tensors], *geometry).cpu(),
        ops.modulated_deform_conv2d(*tensors, *geometry),
        rtol=1e-4,
        atol=1e-4,
    )
