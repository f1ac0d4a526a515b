"""Initialisation and sizes of the ViT."""

import copy
import math
import pickle

import pytest
import torch
from mmpretrain.models.backbones import VisionTransformer
from torch.utils._python_dispatch import TorchDispatchMode

from mmpatchmix.models import PatchMixViT
from mmpatchmix.models.vit_blocks import attend

ARCH = dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=192)


def make_vit(**kwargs):
    torch.manual_seed(0)
    vit = PatchMixViT(arch=dict(ARCH), img_size=32, patch_size=8, **kwargs)
    vit.init_weights()
    vit.eval()  # mmpretrain's backbones return None here
    return vit


def assert_uniform(weight, bound):
    """Values fill [-bound, bound] evenly: extremes and standard deviation agree."""
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.97 * bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_weights_are_drawn_as_in_moco_v3():
    vit = make_vit()
    layer = vit.layers[0]
    for matrix in layer.attn.qkv.weight.split(48):  # (48, 48) each: three matrices of their own
        assert_uniform(matrix, math.sqrt(6 / (48 + 48)))
    assert_uniform(layer.attn.proj.weight, math.sqrt(6 / (48 + 48)))
    assert_uniform(layer.ffn.layers[0][0].weight, math.sqrt(6 / (48 + 192)))
    assert_uniform(layer.ffn.layers[1].weight, math.sqrt(6 / (48 + 192)))
    assert_uniform(vit.patch_embed.projection.weight, math.sqrt(6 / (3 * 8 * 8 + 48)))
    for bias in (layer.attn.qkv.bias, layer.ffn.layers[1].bias, vit.patch_embed.projection.bias):
        assert not bias.any()
    assert 0 < vit.cls_token.std() < 3e-6
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    'options',
    [{}, {'qkv_bias': False}, {'layer_scale_init_value': 0.1}, {'drop_rate': 0.2}],
    ids=['plain', 'no-bias', 'layer-scale', 'dropout'],
)
@pytest.mark.parametrize('with_cp', [False, True])
def test_the_class_token_alone_is_what_the_whole_last_block_gives(options, with_cp):
    """Features and every gradient, in float64, against mmpretrain's forward."""
    vit = make_vit(with_cp=with_cp, **options).double()
    upstream = VisionTransformer(arch=dict(ARCH), img_size=32, patch_size=8, **options).double()
    upstream.load_state_dict(vit.state_dict(), strict=True)
    upstream.eval()
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    direction = torch.randn(3, 48, dtype=torch.float64)
    for model in (vit, upstream):
        (model(images)[0] * direction).sum().backward()
    torch.testing.assert_close(vit(images), upstream(images))
    for (name, ours), theirs in zip(vit.named_parameters(), upstream.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize('drop', [{'drop_path_rate': 0.5}, {'drop_rate': 0.3}])
def test_blocks_train_as_mmpretrains_do(drop):
    """Outputs of all tokens and every gradient, in training, where both draw the same."""
    settings = dict(arch=dict(ARCH), img_size=32, patch_size=8, out_type='raw', **drop)
    ours, theirs = PatchMixViT(**settings).double(), VisionTransformer(**settings).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    direction = torch.randn(6, 17, 48, dtype=torch.float64)
    outputs = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(1)
        outputs.append(model(images)[0])
        (outputs[-1] * direction).sum().backward()
    torch.testing.assert_close(*outputs)
    model.eval()
    assert not torch.allclose(model(images)[0], outputs[1])  # something was dropped
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=lambda m, n=name: f'{n}: {m}')


def test_outputs_of_several_blocks_are_mmpretrains():
    vit = make_vit(out_indices=[0, 1])
    upstream = VisionTransformer(arch=dict(ARCH), img_size=32, patch_size=8, out_indices=[0, 1])
    upstream.load_state_dict(vit.state_dict(), strict=True)
    upstream.eval()
    images = torch.randn(2, 3, 32, 32)
    outputs = vit(images)
    assert len(outputs) == 2
    for ours, theirs in zip(outputs, upstream(images), strict=True):
        assert torch.equal(ours, theirs)


def test_the_last_block_works_on_one_token():
    vit = make_vit()
    seen = []
    vit.layers[-1].ffn.layers.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    vit(torch.randn(2, 3, 32, 32))
    assert seen == [(2, 1, 48)]


def test_checkpointing_keeps_no_activations_within_blocks_and_changes_nothing():
    """Saved tensors shrink; drop path draws the same in both passes, so gradients agree."""

    def train(with_cp):
        torch.manual_seed(0)
        vit = PatchMixViT(
            arch=dict(ARCH), img_size=32, patch_size=8, drop_path_rate=0.5, with_cp=with_cp
        )
        vit.init_weights()
        saved = []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            out = vit(torch.randn(4, 3, 32, 32))[0]
        out.square().sum().backward()
        return sum(saved), [parameter.grad for parameter in vit.parameters()]

    (kept, gradients), (kept_with_cp, gradients_with_cp) = train(False), train(True)
    assert kept_with_cp < kept / 2
    for a, b in zip(gradients, gradients_with_cp, strict=True):
        assert torch.equal(a, b)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='img_size=30 is not divisible'):
        PatchMixViT(arch=dict(ARCH), img_size=30, patch_size=8)
    with pytest.raises(ValueError, match='36x32 pixels is not divisible'):
        make_vit()(torch.zeros(1, 3, 36, 32))
    with pytest.raises(ValueError, match='heads'):
        PatchMixViT(arch={**ARCH, 'num_heads': 5}, img_size=32, patch_size=8)


@pytest.mark.parametrize('num_keys', [37, 600])
@pytest.mark.parametrize('num_queries', [1, 37])
def test_attention_in_bfloat16_is_the_textbooks(num_keys, num_queries):
    """Forward and gradients against float64; bfloat16 has 8 significant bits."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, count, 8) for count in (num_queries, num_keys, num_keys, num_queries)]
    *qkv, gradient = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)

    def run(attention, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in qkv]
        result = attention(*leaves)
        return [result, *torch.autograd.grad(result, leaves, gradient.to(dtype))]

    def textbook(query, key, value):
        scores = torch.einsum('nhqd,nhtd->nhqt', query, key) / query.shape[-1] ** 0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        return torch.einsum('nhqt,nhtd->nhqd', weights, value)

    for ours, exact in zip(run(attend, torch.bfloat16), run(textbook, torch.float64), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), exact, atol=0.02, rtol=0.02)


def test_attention_drops_weights_at_the_given_rate():
    query, key = torch.zeros(2, 1, 1, 1, 8).bfloat16()
    value = torch.ones(1, 1, 1, 8).bfloat16()
    drawn = [attend(query.requires_grad_(), key, value, 0.25)[0, 0, 0, 0] for _ in range(400)]
    kept = torch.stack(drawn).count_nonzero() / 400
    assert 0.67 < kept < 0.83  # 0.75 and four standard deviations


def test_everything_is_trained():
    assert all(parameter.requires_grad for parameter in make_vit().parameters())


def test_weights_fit_mmpretrains_vit_with_the_same_features():
    vit = make_vit()
    upstream = VisionTransformer(arch=dict(ARCH), img_size=32, patch_size=8)
    upstream.eval()
    upstream.load_state_dict(vit.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(vit(images)[0], upstream(images)[0], atol=1e-5, rtol=1e-5)
    assert vit(images)[0].shape == (2, 48)


def test_a_pickled_or_copied_vit_computes_the_same():
    vit = PatchMixViT(arch=dict(ARCH), img_size=32, patch_size=8, drop_path_rate=0.5)
    vit.train()
    images = torch.randn(4, 3, 32, 32)
    torch.manual_seed(1)
    expected = vit(images)[0]
    for twin in (pickle.loads(pickle.dumps(vit)), copy.deepcopy(vit)):
        torch.manual_seed(1)
        assert torch.equal(twin(images)[0], expected)
        with torch.no_grad():
            twin.layers[0].attn.proj.weight.zero_()  # of its own
        torch.manual_seed(1)
        assert torch.equal(vit(images)[0], expected)


class Written(TorchDispatchMode):
    """Count the values that operations write."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and isinstance(result, torch.Tensor):
            self.values += result.numel()
        return result


def test_the_backward_of_a_block_makes_no_gradients_of_zeros():
    """Ours and mmpretrain's attention alone, by what their backward writes."""
    written = []
    for make in (PatchMixViT, VisionTransformer):
        layer = make(arch=dict(ARCH), img_size=32, patch_size=8).layers[0]
        attention = layer._attend if make is PatchMixViT else layer.attn
        result = attention(torch.randn(4, 17, 48))
        with Written() as count:
            result.sum().backward()
        written.append(count.values / result.numel())
    # Three gradients of three tensors each and two sums of them, for one gradient of three: 12.
    assert written[1] - written[0] >= 12


@pytest.mark.parametrize('size', [(8, 8), (16, 16), (24, 40), (32, 32), (64, 64)])
def test_positions_are_interpolated_at_every_size(size):
    """As bicubic interpolation of the grid says; the class token keeps its own."""
    vit = make_vit()
    seen = []
    vit.drop_after_pos.register_forward_hook(lambda *args: seen.append(args[-1]))
    images = torch.zeros(1, 3, *size)
    features = vit(images)[0]
    assert features.shape == (1, 48) and torch.isfinite(features).all()
    grid = vit.pos_embed[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    rows, columns = size[0] // 8, size[1] // 8
    if (rows, columns) != (4, 4):
        grid = torch.nn.functional.interpolate(
            grid, (rows, columns), mode='bicubic', align_corners=False
        )
    expected = grid.flatten(2).transpose(1, 2) + vit.patch_embed(images)[0]
    torch.testing.assert_close(seen[0][:, 1:], expected)
    torch.testing.assert_close(seen[0][:, :1], vit.cls_token + vit.pos_embed[:, :1])
