"""The algorithm against one encoder call per view and dense float64 contrasts."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional as F

from mmpatchmix.registry import MODELS
from tests.models.test_contrastive_head import naive_contrast, naive_rows
from tests.models.tiny import tiny_config, tiny_model, uint8_batch


def prepare(model, **kwargs):
    torch.manual_seed(11)
    return model.data_preprocessor(uint8_batch(**kwargs), training=True)['inputs']


def naive_losses(model, inputs):
    """Section 1 of the design, term by term: every view encoded by itself, dense targets."""
    momentum = model.momentum_encoder
    encoder = model if momentum is None else momentum

    def query(images):
        return F.normalize(model.head.predictor(model.neck(model.backbone(images)))[0], dim=1)

    @torch.no_grad()
    def key(images):
        return F.normalize(encoder.neck(encoder.backbone(images))[0], dim=1)

    def ce(q, k, target):
        rows = naive_rows(target, len(k), len(k), model.head.label_smoothing, rank=0)
        return naive_contrast(q, k, rows, 0.2 if target is None else 0.4)

    q1, q2_mixed = query(inputs['view_1']), query(inputs['mixed_view_2'])
    k1, k2, k1_mixed = (key(inputs[name]) for name in ('view_1', 'view_2', 'mixed_view_1'))
    losses = {
        'loss_source': ce(q1, k2, None),
        'loss_mix_source': ce(q2_mixed, k1, inputs['mix_to_source']) / 2,
        'loss_mix_mix': ce(q2_mixed, k1_mixed, inputs['mix_to_mix']) / 2,
    }
    if 'local_views' in inputs:
        num_local, num_images = inputs['local_views'].shape[:2]
        # The local crops together are one batch for BatchNorm, the mixed ones another.
        q_local = query(inputs['local_views'].flatten(0, 1)).view(num_local, num_images, -1)
        q_mixed = query(inputs['mixed_local_views'].flatten(0, 1)).view(num_local, num_images, -1)
        target = inputs['local_mix_to_source']
        losses['loss_local'] = sum(ce(q, k, None) for q in q_local for k in (k1, k2)) / num_local
        losses['loss_mix_local'] = (
            sum(ce(q, k, target) for q in q_mixed for k in (k1, k2)) / num_local
        )
    return losses


@pytest.mark.parametrize('num_local', [0, 3])
@pytest.mark.parametrize('changes', [{}, {'momentum_encoder': None}], ids=['momentum', 'without'])
@pytest.mark.parametrize('num_mix', [1, 2, 3])
def test_losses_and_gradients_equal_the_naive_ones(num_local, changes, num_mix):
    model = tiny_model(**changes).train()
    model.head.mix_temperature = 0.4
    model.data_preprocessor.num_mix_choices = [num_mix]
    inputs = prepare(model, num_local=num_local)
    reference = copy.deepcopy(model)

    outputs = model.loss(inputs)
    losses = {name: value for name, value in outputs.items() if 'loss' in name}
    expected = naive_losses(reference, inputs)
    assert set(losses) == set(expected)
    for name, value in losses.items():
        torch.testing.assert_close(value.double(), expected[name], atol=2e-5, rtol=1e-5)

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for (name, parameter), other in zip(
        model.named_parameters(), reference.parameters(), strict=True
    ):
        if name.startswith('momentum_encoder'):
            assert parameter.grad is None and not parameter.requires_grad
        else:
            torch.testing.assert_close(
                parameter.grad, other.grad, atol=2e-5, rtol=1e-3, msg=lambda m, n=name: f'{n}: {m}'
            )


def batchnorm_calls(module, run):
    """Batches that the first BatchNorm of a projector or predictor sees during ``run``."""
    seen = []
    handle = module.bn0.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize('num_local', [0, 2])
def test_batchnorm_sees_each_view_group_by_itself(num_local):
    """And in training, running statistics move once per group, by the group's own moments."""
    model = tiny_model().train()
    inputs = prepare(model, num_images=6, num_local=num_local)
    names = ['view_1', 'mixed_view_2'] + (['local_views', 'mixed_local_views'] if num_local else [])
    groups = [inputs[name].flatten(0, -4) for name in names]
    with torch.no_grad():
        features = [model.neck.fc0(model.backbone(group)[0]) for group in groups]
        mean = model.neck.bn0.running_mean.clone()
    for feature in features:
        mean = 0.9 * mean + 0.1 * feature.mean(0)

    seen = batchnorm_calls(model.neck, lambda: model.loss(inputs))
    assert [len(batch) for batch in seen] == [6, 6] + [6 * num_local] * (2 if num_local else 0)
    for batch, feature in zip(seen, features, strict=True):
        torch.testing.assert_close(batch, feature, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.neck.bn0.running_mean, mean, atol=1e-5, rtol=1e-5)

    keys = batchnorm_calls(model.momentum_encoder.neck, lambda: model.loss(inputs))
    assert [len(batch) for batch in keys] == [6, 6, 6]
    predictions = batchnorm_calls(model.head.predictor, lambda: model.loss(inputs))
    assert [len(batch) for batch in predictions] == [len(batch) for batch in seen]


@pytest.mark.parametrize('changes', [{}, {'momentum_encoder': None}], ids=['momentum', 'without'])
def test_backbone_is_called_once_per_resolution_and_role(changes):
    model, calls = tiny_model(**changes).train(), []
    for encoder in filter(None, (model, model.momentum_encoder)):
        encoder.backbone.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[::2]))
    model.loss(prepare(model, num_local=2))
    # Three views of 6 images as keys first; or, after the queries, two, as view 1 has a query.
    expected = [(12, 16), (12, 16)] if changes else [(18, 16), (12, 16)]
    assert calls == [*expected, (24, 8)]  # (images, pixels)


def test_features_are_the_class_token_of_the_momentum_backbone():
    images = torch.randn(3, 3, 16, 16)
    model = tiny_model().eval()
    expected = model.momentum_encoder.backbone(images)[-1]
    assert torch.equal(model(images, mode='tensor'), expected)
    assert not torch.allclose(expected, model.backbone(images)[-1])
    alone = tiny_model(momentum_encoder=None).eval()
    assert torch.equal(alone(images, mode='tensor'), alone.backbone(images)[-1])


def test_momentum_encoder_starts_as_a_copy():
    model = MODELS.build(tiny_config())
    model.init_weights()
    for part in ('backbone', 'neck'):
        copied = getattr(model.momentum_encoder, part).state_dict()
        for name, value in getattr(model, part).state_dict().items():
            assert torch.equal(copied[name], value), name


def test_a_forgotten_momentum_update_is_said_once():
    model = tiny_model().train()
    model.momentum_encoder.num_updates = 0
    inputs = prepare(model)
    with pytest.warns(UserWarning, match='never been updated'):
        model.loss(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.loss(inputs)


def test_loss_weights_scale_and_remove_terms():
    model = tiny_model().train()
    inputs = prepare(model)
    plain = copy.deepcopy(model).loss(inputs)
    weighted = tiny_model(loss_weights=dict(source=2.0, mix_mix=0)).train()
    weighted.load_state_dict(model.state_dict())
    losses = weighted.loss(inputs)
    assert losses.keys() == plain.keys() - {'loss_mix_mix', 'acc_mix_mix', 'kl_mix_mix'}
    torch.testing.assert_close(losses['loss_source'], 2 * plain['loss_source'])
    torch.testing.assert_close(losses['loss_mix_source'], plain['loss_mix_source'])


def test_weights_for_local_crops_alone_need_local_crops():
    model = tiny_model(loss_weights=dict(source=0, mix_source=0, mix_mix=0)).train()
    losses = model(prepare(model, num_local=2), mode='loss')
    assert losses.keys() >= {'loss_local', 'loss_mix_local', 'kl'} and 'loss_source' not in losses
    with pytest.raises(ValueError, match='leaves only terms of local crops'):
        model(prepare(model), mode='loss')


def test_loss_weights_that_make_no_sense_are_refused():
    zeros = dict.fromkeys(('source', 'mix_source', 'mix_mix', 'local', 'mix_local'), 0)
    for weights in (dict(sorce=1.0), zeros):
        with pytest.raises(ValueError, match=r'model\.loss_weights'):
            tiny_model(loss_weights=weights)
