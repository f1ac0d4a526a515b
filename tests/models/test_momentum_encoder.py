"""The momentum update against a loop over parameters."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath

from mmpatchmix.models import MomentumEncoder
from tests.models.tiny import tiny_config, tiny_model


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float32, 1e-6), (torch.float64, 1e-15)])
def test_update_equals_a_loop_over_parameters_and_leaves_buffers_alone(dtype, tolerance):
    model = tiny_model().to(dtype)
    encoder = model.momentum_encoder
    before = copy.deepcopy(encoder)
    query = dict(model.backbone.named_parameters(prefix='backbone'))
    query.update(model.neck.named_parameters(prefix='neck'))
    for parameter in query.values():  # LayerNorm, BatchNorm and biases too
        parameter.data += torch.randn_like(parameter)
    model.neck.bn0.running_mean.fill_(7.0)
    model.update_momentum_encoder(0.75)

    previous = dict(before.named_parameters())
    assert set(query) == set(previous)
    for name, parameter in encoder.named_parameters():
        assert parameter.dtype == dtype
        expected = 0.75 * previous[name].double() + 0.25 * query[name].double()
        torch.testing.assert_close(parameter.double(), expected, atol=tolerance, rtol=tolerance)
        assert not torch.equal(parameter, previous[name]), name
    for name, buffer in encoder.named_buffers():
        assert torch.equal(buffer, before.get_buffer(name)), name


def test_update_sees_modules_that_were_replaced_and_moves_shared_parameters_once():
    model = tiny_model()
    backbone, neck = model.backbone, model.neck
    backbone.layers[1].ln1.weight = backbone.layers[0].ln1.weight
    backbone.register_parameter('absent', None)
    encoder = MomentumEncoder(backbone, neck)
    encoder.update(backbone, neck, 0.5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(1.0)
        for parameter in [*backbone.parameters(), *neck.parameters()]:
            parameter.fill_(5.0)
    backbone.ln1 = torch.nn.LayerNorm(backbone.embed_dims)  # weight 1, bias 0
    encoder.update(backbone, neck, 0.75)
    assert encoder.backbone.layers[0].ln1.weight is encoder.backbone.layers[1].ln1.weight
    for name, parameter in encoder.named_parameters():
        expected = {'backbone.ln1.weight': 1.0, 'backbone.ln1.bias': 0.75}.get(name, 2.0)
        assert (parameter == expected).all(), name


def test_stochastic_depth_is_off_in_the_copy_only():
    backbone = tiny_config().backbone
    backbone.drop_path_rate = 0.3
    model = tiny_model(backbone=backbone)

    def rates(module):
        return [m.drop_prob for m in module.modules() if isinstance(m, DropPath)]

    assert max(rates(model.backbone)) == pytest.approx(0.3)
    assert rates(model.momentum_encoder) and set(rates(model.momentum_encoder)) == {0.0}


def test_a_share_outside_0_to_1_is_refused():
    for momentum in (-0.1, 1.1):
        with pytest.raises(ValueError, match='share kept'):
            tiny_model().update_momentum_encoder(momentum)
