"""Compiled backbones against eager ones: values, gradients, and how many graphs there are."""

import copy
import socket

import pytest
import torch
from mmengine.runner import Runner
from torch._dynamo.testing import CompileCounterWithBackend

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.engine import PatchMixDDP
from mmpatchmix.models import compiling
from tests.engine.tiny_run import tiny_run_config
from tests.models.test_large_batch_step import NUM_IMAGES, Recorder, freeze_statistics
from tests.models.tiny import tiny_model, uint8_batch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def steps(model, num_steps=3, num_local=2):
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
    for ours_part, theirs_part in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_part, theirs_part, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ('changes', 'num_local', 'graphs'),
    [
        ({}, 0, 2),  # queries, keys
        ({}, 2, 3),  # and local queries
        ({'momentum_encoder': None}, 2, 3),  # queries, local queries, keys without gradient
        ({'micro_batch_size': 2}, 2, 3),
    ],
    ids=['two-views', 'local', 'no-momentum', 'micro-batches'],
)
def test_one_graph_per_resolution_and_role_and_no_more_later(changes, num_local, graphs):
    counter = CompileCounterWithBackend('aot_eager')
    eager = steps(tiny_model(**changes).train(), num_local=num_local)
    model = tiny_model(compile=dict(backend=counter), **changes).train()
    first = steps(model, num_steps=1, num_local=num_local)
    assert counter.frame_count == graphs
    assert_alike(first, (eager[0][:1], eager[1][:1]))
    steps(model, num_steps=3, num_local=num_local)
    assert counter.frame_count == graphs


def test_several_steps_agree():
    eager = steps(tiny_model().train())
    assert_alike(steps(tiny_model(compile=dict(backend='aot_eager')).train()), eager)


def test_recomputed_blocks_are_compiled_too():
    def with_cp(**changes):
        model = tiny_model(**changes).train()
        model.backbone.with_cp = model.momentum_encoder.backbone.with_cp = True
        return model

    counter = CompileCounterWithBackend('aot_eager')
    assert_alike(steps(with_cp(compile=dict(backend=counter))), steps(with_cp()))
    assert counter.frame_count == 3


def test_the_real_compiler_agrees():
    """Inductor, which the backends above leave out."""
    eager = steps(tiny_model().train(), num_steps=2, num_local=0)
    assert_alike(steps(tiny_model(compile=True).train(), num_steps=2, num_local=0), eager)


def test_weights_keep_their_names_and_copies_work():
    model, plain = tiny_model(compile=dict(backend='aot_eager')), tiny_model()
    assert list(model.state_dict()) == list(plain.state_dict())
    steps(model.train(), num_steps=1)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.backbone.cls_token.normal_()
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(twin.backbone(images)[0], model.backbone(images)[0])


def test_evaluation_stays_eager_at_any_batch_size():
    counter = CompileCounterWithBackend('aot_eager')
    model, plain = tiny_model(compile=dict(backend=counter)), tiny_model()
    model.eval(), plain.eval()
    for num_images in range(1, 12):
        images = torch.randn(num_images, 3, 16, 16)
        torch.testing.assert_close(model.extract_feat(images), plain.extract_feat(images))
    assert counter.frame_count == 0


def train_on_rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    records = []
    for compile in (False, dict(backend='aot_eager')):
        model = tiny_model(compile=compile).train()
        freeze_statistics(model)
        wrapper = Recorder(model)
        ddp = PatchMixDDP(model, broadcast_buffers=False)
        model.update_momentum_encoder(0.9)
        torch.manual_seed(rank)
        ddp.train_step(uint8_batch(NUM_IMAGES, num_local=2, seed=rank), wrapper)
        records.append(wrapper.gradients)
    torch.save(records, f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


def test_two_ranks_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_rank, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        eager, compiled = torch.load(tmp_path / f'rank{rank}.pth')
        assert_alike(compiled, eager)


RECORDING = {'reduce-overhead': 'default', 'max-autotune': 'max-autotune-no-cudagraphs'}


@pytest.mark.parametrize('mode', RECORDING)
@pytest.mark.parametrize(
    ('has_device', 'micro_batch_size', 'reason'),
    [(False, None, 'no CUDA device'), (True, 2, 'micro-batches'), (True, None, None)],
)
def test_cuda_graphs_are_left_out_with_a_word(
    mode, has_device, micro_batch_size, reason, monkeypatch
):
    said = []
    monkeypatch.setattr(compiling, 'print_log', lambda message, *_: said.append(message))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_device)
    options = compiling.choose_compile_options(dict(mode=mode), micro_batch_size)
    assert options['mode'] == (RECORDING[mode] if reason else mode)
    assert compiling.records_graphs(options) is (reason is None)
    assert len(said) == (reason is not None)
    assert all(mode in message and reason in message for message in said)


@pytest.mark.parametrize('compile', [None, False, {}])
def test_nothing_is_compiled_where_nothing_is_said(compile):
    assert compiling.choose_compile_options(compile) is None


@pytest.mark.parametrize('compile', [False, True, dict(mode='default'), dict(backend='eager')])
def test_other_modes_record_no_graphs(compile):
    assert not compiling.records_graphs(compiling.choose_compile_options(compile))


def test_each_recorded_step_begins_with_a_mark(monkeypatch):
    marks = []
    monkeypatch.setattr(torch.compiler, 'cudagraph_mark_step_begin', lambda: marks.append(1))
    model = tiny_model(compile=dict(backend='aot_eager')).train()
    steps(model, num_steps=1)
    assert not marks
    model.compile_options = dict(mode='reduce-overhead')
    steps(model, num_steps=2)
    assert len(marks) == 2
    steps(model.eval(), num_steps=1)
    assert len(marks) == 2


def test_accumulated_gradients_are_refused_where_graphs_are_recorded(tmp_path):
    options = {'optim_wrapper.accumulative_counts': 2}
    runner = Runner.from_cfg(tiny_run_config(tmp_path, **options))
    runner.model.compile_options = dict(mode='reduce-overhead')
    with pytest.raises(ValueError, match=r'accumulative_counts=2.*overwritten'):
        check_run(runner)


def no_compiler(graph, inputs):
    raise RuntimeError('No working C++ compiler found')


def test_a_compiler_that_does_not_work_is_said_before_training(tmp_path):
    runner = Runner.from_cfg(tiny_run_config(tmp_path))
    runner.model.compile_options = dict(backend=no_compiler)
    with pytest.raises(ValueError, match=r'model\.compile: .*model\.compile=False'):
        check_run(runner)
