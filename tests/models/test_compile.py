"""Compiled backbones against eager ones: values, gradients and the number of graphs."""

import copy
import os
import shutil

import pytest
import torch
from mmengine.runner import Runner
from torch._dynamo.testing import CompileCounterWithBackend

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.models import compiling
from tests.engine.tiny_run import tiny_run_config
from tests.models.test_micro_batches import NUM_IMAGES, Recorder, freeze_statistics
from tests.models.tiny import tiny_config, tiny_model, uint8_batch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(model, num_steps=2, num_local=2):
    """Losses and gradients of a few steps, without BatchNorm's amplified rounding."""
    freeze_statistics(model)
    wrapper, losses = Recorder(model), []
    for iteration in range(num_steps):
        model.update_momentum_encoder(0.9)
        torch.manual_seed(iteration)
        batch = uint8_batch(NUM_IMAGES, num_local=num_local, seed=iteration)
        losses.append(model.train_step(batch, wrapper)['loss'].detach())
    return losses, wrapper.gradients


def assert_alike(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ('changes', 'num_local', 'graphs'),
    [
        ({}, 0, 2),  # queries, keys
        ({'momentum_encoder': None}, 2, 3),  # queries, local queries, keys without gradient
        ({'micro_batch_size': 2}, 2, 3),
    ],
    ids=['two-views', 'no-momentum', 'micro-batches'],
)
def test_each_resolution_and_role_has_one_graph(changes, num_local, graphs):
    counter = CompileCounterWithBackend('eager')
    eager = steps(tiny_model(**changes).train(), num_local=num_local)
    model = tiny_model(compile=dict(backend=counter), **changes).train()
    assert_alike(steps(model, num_local=num_local), eager)
    assert counter.frame_count == graphs


def test_recomputed_blocks_are_compiled():
    def with_cp(**changes):
        model = tiny_model(**changes).train()
        model.backbone.with_cp = model.momentum_encoder.backbone.with_cp = True
        return model

    counter = CompileCounterWithBackend('aot_eager')
    compiled = steps(with_cp(compile=dict(backend=counter)), num_steps=1, num_local=0)
    assert_alike(compiled, steps(with_cp(), num_steps=1, num_local=0))
    assert counter.frame_count == 2


@pytest.mark.program
@pytest.mark.skipif(
    not shutil.which(os.environ.get('CXX', 'g++')), reason='needs a C++ compiler (g++, or $CXX)'
)
def test_inductor_agrees():
    """The compiler that the backends above leave out, on one layer."""
    results = []
    for compile in (False, True):
        backbone = tiny_config().backbone
        backbone.arch.num_layers = 1
        model = tiny_model(backbone=backbone, momentum_encoder=None, compile=compile).train()
        features = model.backbone(torch.linspace(-1, 1, 3072).sin().view(4, 3, 16, 16))[0]
        features.square().sum().backward()
        results.append([features.detach(), *(p.grad for p in model.backbone.parameters())])
    assert_alike(*results)


def test_weights_keep_their_names_and_copies_are_independent():
    model, plain = tiny_model(compile=dict(backend='eager')), tiny_model()
    assert list(model.state_dict()) == list(plain.state_dict())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.backbone.cls_token.normal_()
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(twin.backbone(images)[0], model.backbone(images)[0])


def test_evaluation_stays_eager_at_any_batch_size():
    counter = CompileCounterWithBackend('eager')
    model, plain = tiny_model(compile=dict(backend=counter)), tiny_model()
    model.eval(), plain.eval()
    for num_images in (1, 4, 11):
        images = torch.randn(num_images, 3, 16, 16)
        torch.testing.assert_close(model.extract_feat(images), plain.extract_feat(images))
    assert counter.frame_count == 0


@pytest.mark.parametrize(
    ('has_device', 'micro_batch_size', 'reason'),
    [(False, None, 'no CUDA device'), (True, 2, 'micro-batches'), (True, None, None)],
)
def test_modes_without_cuda_graphs_are_chosen_with_a_warning(
    has_device, micro_batch_size, reason, monkeypatch
):
    mode = 'reduce-overhead'
    logged = []
    monkeypatch.setattr(compiling, 'print_log', lambda message, *_: logged.append(message))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_device)
    options = compiling.choose_compile_options(dict(mode=mode), micro_batch_size)
    assert options['mode'] == ('default' if reason else mode)
    assert compiling.records_graphs(options) is (reason is None)
    assert len(logged) == (reason is not None)
    assert all(mode in message and reason in message for message in logged)


def test_other_modes_record_no_graphs_and_nothing_is_compiled_by_default():
    assert compiling.choose_compile_options(False) is None
    for compile in (False, True, dict(mode='default')):
        assert not compiling.records_graphs(compiling.choose_compile_options(compile))


def test_each_recorded_step_begins_with_a_mark(monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: marks.append(1))
    model = tiny_model().train()
    for options, num_marks in ((None, 0), (dict(mode='reduce-overhead'), 2)):
        model.compile_options = options
        steps(model, num_local=0)
        assert len(marks) == num_marks
    steps(model.eval(), num_steps=1, num_local=0)
    assert len(marks) == 2


def fail_to_compile(graph, inputs):
    raise RuntimeError('No working C++ compiler found')


def test_options_that_cannot_work_are_refused_before_training(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path))
    runner.model.compile_options = dict(backend=fail_to_compile)
    with pytest.raises(ValueError, match=r'model\.compile: .*model\.compile=False'):
        check_run(runner)
    runner.cfg.optim_wrapper.accumulative_counts = 2
    runner.model.compile_options = dict(mode='reduce-overhead')
    with pytest.raises(ValueError, match=r'accumulative_counts=2.*overwritten'):
        check_run(runner)
