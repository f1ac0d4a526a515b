import pytest
import torch
from mmpretrain.models import VisionTransformer

from mmpatchmix.models.detection import DetectionViT, WindowedViT

ARCH = {'embed_dims': 12, 'num_layers': 4, 'num_heads': 3, 'feedforward_channels': 24}
SMALL = {'arch': ARCH, 'img_size': 32, 'patch_size': 8}


def build(kind, training=False, **kwargs):
    torch.manual_seed(0)
    model = kind(**{**SMALL, **kwargs})
    model.init_weights()
    model.train(training)  # mmpretrain's returns None
    return model


def pretrained():
    """A ViT as pre-training leaves it, with a class token that matters."""
    torch.manual_seed(1)
    model = VisionTransformer(**SMALL, out_indices=[1, 2], out_type='featmap')
    model.init_weights()
    torch.nn.init.normal_(model.cls_token)
    model.eval()
    return model


@pytest.mark.parametrize('size', [(32, 32), (48, 40)])
def test_plain_maps_are_those_of_mmpretrains_vit(size):
    reference = pretrained()
    model = build(DetectionViT, out_indices=(1, 2))
    weights = {k: v for k, v in reference.state_dict().items() if not k.startswith('ln1.')}
    model.load_state_dict(weights)
    x = torch.randn(2, 3, *size)
    for ours, theirs in zip(model(x), reference(x), strict=True):
        assert ours.shape == (2, 12, size[0] // 8, size[1] // 8)
        torch.testing.assert_close(ours, theirs)


def test_windowed_vit_is_mmpretrains_without_class_token():
    reference = VisionTransformer(
        **SMALL, out_type='featmap', with_cls_token=False, final_norm=False
    )
    reference.eval()
    model = build(WindowedViT, window_size=2, global_blocks=(0, 1, 2, 3))
    model.load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 40, 56)
    torch.testing.assert_close(model(x)[0], reference(x)[0])


@pytest.mark.parametrize('kind', [DetectionViT, WindowedViT])
@pytest.mark.parametrize('num_frozen', [0, 2, 4])
def test_frozen_blocks_have_no_trainable_parameter(kind, num_frozen):
    model = kind(**SMALL, out_indices=(-1,), frozen_stages=num_frozen)
    trained = [all(p.requires_grad for p in layer.parameters()) for layer in model.layers]
    frozen = [not any(p.requires_grad for p in layer.parameters()) for layer in model.layers]
    assert frozen == [index < num_frozen for index in range(4)]
    assert trained == [not each for each in frozen]


def test_blocks_that_no_map_uses_are_logged(monkeypatch):
    logged = []
    monkeypatch.setattr('mmpatchmix.models.detection.vit.print_log', lambda *a: logged.append(a[0]))
    for out_indices in ([1, 3], [-1], [-3]):
        DetectionViT(**SMALL, out_indices=out_indices)
    assert logged == ['backbone.out_indices=[-3]: later blocks, up to 3, are not used.']


def test_global_blocks_end_the_quarters_and_drop_path_rises_linearly():
    model = WindowedViT(**{**SMALL, 'arch': {**ARCH, 'num_layers': 12}}, drop_path_rate=0.11)
    sizes = [layer.attn.window_size for layer in model.layers]
    assert [i for i, size in enumerate(sizes) if size == 0] == [2, 5, 8, 11]
    for index, layer in enumerate(model.layers):
        assert layer.attn.out_drop.drop_prob == pytest.approx(0.01 * index)
        assert layer.ffn.dropout_layer.drop_prob == pytest.approx(0.01 * index)


@pytest.mark.parametrize('size', [(16, 40), (40, 104), (64, 64)])  # 10, 65 and 64 patches
def test_positions_of_a_windowed_vit_are_resumed_at_every_size(size):
    vit = WindowedViT(**{**SMALL, 'img_size': size})
    state = {name: value.clone() for name, value in vit.state_dict().items()}
    state['pos_embed'] = torch.randn(state['pos_embed'].shape)
    vit.load_state_dict({name: value.clone() for name, value in state.items()})
    assert torch.equal(vit.pos_embed, state['pos_embed'])


def test_registers_of_the_pre_training_are_left_out_of_maps():
    vit = WindowedViT(**SMALL, num_registers=2)
    vit.init_weights()
    assert vit.register_tokens is None and vit.cls_token is None
    assert vit(torch.zeros(1, 3, vit.img_size[0], vit.img_size[1]))[0].ndim == 4


def test_wrong_settings_are_named():
    for message, kwargs in {
        r'global_blocks names \[4\].*0 to 3': {'global_blocks': (3, 4)},
        'window_size=0': {'window_size': 0},
        'cannot be split into 5 heads': {'arch': {**ARCH, 'num_heads': 5}},
    }.items():
        with pytest.raises(ValueError, match=message):
            WindowedViT(**{**SMALL, **kwargs})
