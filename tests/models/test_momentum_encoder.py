"""The momentum update against a loop over parameters."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath

from tests.models.tiny import tiny_config, tiny_model


def test_update_equals_a_loop_over_parameters_and_leaves_buffers_alone():
    model = tiny_model()
    encoder = model.momentum_encoder
    before = copy.deepcopy(encoder)
    model.neck.bn0.running_mean.fill_(7.0)
    model.update_momentum_encoder(0.75)

    query = dict(model.backbone.named_parameters(prefix='backbone'))
    query.update(model.neck.named_parameters(prefix='neck'))
    previous = dict(before.named_parameters())
    assert set(query) == set(previous)
    for name, parameter in encoder.named_parameters():
        expected = 0.75 * previous[name].double() + 0.25 * query[name].double()
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=0)
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name)), name


@pytest.mark.parametrize(('momentum', 'source'), [(1.0, 'momentum'), (0.0, 'query')])
def test_the_ends_of_the_scale_keep_all_or_nothing(momentum, source):
    model = tiny_model()
    kept = model.momentum_encoder.backbone.cls_token.clone()
    model.update_momentum_encoder(momentum)
    expected = kept if source == 'momentum' else model.backbone.cls_token
    assert torch.equal(model.momentum_encoder.backbone.cls_token, expected)


def test_stochastic_depth_is_off_in_the_copy_only():
    backbone = tiny_config().backbone
    backbone.drop_path_rate = 0.3
    model = tiny_model(backbone=backbone)

    def rates(module):
        return [m.drop_prob for m in module.modules() if isinstance(m, DropPath)]

    assert max(rates(model.backbone)) == pytest.approx(0.3)
    assert rates(model.momentum_encoder) and set(rates(model.momentum_encoder)) == {0.0}


def test_the_copy_trains_with_batch_statistics():
    model = tiny_model().train()
    assert model.momentum_encoder.neck.bn0.training


@pytest.mark.parametrize('momentum', [-0.1, 1.1])
def test_a_share_outside_0_to_1_is_refused(momentum):
    with pytest.raises(ValueError, match='share kept'):
        tiny_model().update_momentum_encoder(momentum)
