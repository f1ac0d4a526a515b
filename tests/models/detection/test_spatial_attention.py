"""Window and relative-position attention against mmpretrain's own and slow versions."""

import pytest
import torch
from mmpretrain.models.utils import MultiheadAttention
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmpatchmix.models.detection.spatial_attention import SpatialAttention

WIDTH, HEADS = 12, 3


def attention(**kwargs):
    torch.manual_seed(0)
    module = SpatialAttention(WIDTH, HEADS, **kwargs).eval()
    for parameter in module.parameters():  # relative position starts at zero
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def tokens_attention(module):
    """mmpretrain's own attention with the same weights."""
    plain = MultiheadAttention(WIDTH, HEADS).eval()
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if 'rel_pos' not in k})
    return plain


def test_global_attention_is_mmpretrains_and_fused():
    """The flash kernel stores no matrix of all pairs; were it not usable this would raise."""
    module, x = attention(), torch.randn(2, 5, 7, WIDTH)
    with sdpa_kernel([SDPBackend.MATH]):
        expected = tokens_attention(module)(x.flatten(1, 2)).unflatten(1, (5, 7))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), torch.no_grad():
        torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 3)])
def test_windows_attend_to_themselves_alone(size):
    """Also where the window does not divide the map: zeros fill the last windows."""
    module, x = attention(window_size=2), torch.randn(2, *size, WIDTH)
    plain, expected = tokens_attention(module), torch.zeros_like(x)
    for top in range(0, size[0], 2):
        for left in range(0, size[1], 2):
            part = x[:, top : top + 2, left : left + 2]
            height, width = part.shape[1:3]
            window = x.new_zeros(len(x), 2, 2, WIDTH)
            window[:, :height, :width] = part
            seen = plain(window.flatten(1, 2)).unflatten(1, (2, 2))
            expected[:, top : top + 2, left : left + 2] = seen[:, :height, :width]
    torch.testing.assert_close(module(x), expected)


def naive_rel_pos(module, x):
    """Softmax over explicit logits, with every offset looked up one by one."""
    num, height, width, _ = x.shape
    length, dim = height * width, WIDTH // HEADS
    q, k, v = module.qkv(x).view(num, length, 3, HEADS, dim).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(-1, -2) / dim**0.5
    middle = len(module.rel_pos_h) // 2
    extra = torch.zeros_like(logits)
    for i in range(length):
        for j in range(length):
            down, along = i // width - j // width, i % width - j % width
            r = module.rel_pos_h[middle + down] + module.rel_pos_w[middle + along]
            extra[:, :, i, j] = q[:, :, i] @ r
    out = (logits + extra).softmax(-1) @ v
    return module.proj(out.transpose(1, 2).reshape(num, height, width, WIDTH))


def test_relative_position_equals_a_naive_one_gradients_included():
    module, x = attention(rel_pos_size=4).double(), torch.randn(2, 4, 4, WIDTH).double()
    leaves = [module.rel_pos_h, module.rel_pos_w, module.qkv.weight]
    output, expected = module(x), naive_rel_pos(module, x)
    torch.testing.assert_close(output, expected)
    ours = torch.autograd.grad(output.square().sum(), leaves)
    theirs = torch.autograd.grad(expected.square().sum(), leaves)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their)


def test_drop_path_drops_images_and_not_windows():
    torch.manual_seed(0)
    module = SpatialAttention(
        WIDTH, HEADS, window_size=2, dropout_layer={'type': 'DropPath', 'drop_prob': 0.5}
    )
    output = module.train()(torch.randn(16, 4, 4, WIDTH))
    dropped = (output == 0).all(-1).flatten(1)  # (image, cell)
    assert torch.equal(dropped.any(1), dropped.all(1))
    assert 0 < dropped.all(1).sum() < 16
