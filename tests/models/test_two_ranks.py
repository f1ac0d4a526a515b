"""Two and four gloo ranks against one process that emulates them; FSDP against DDP."""

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from mmpatchmix.checkpoints import fit_state_dict, read_backbone
from mmpatchmix.compat.file_kinds import find_damage
from mmpatchmix.registry import MODELS
from tests.engine.tiny_run import tiny_run_config
from tests.models import ranks
from tests.models.emulation import Emulation
from tests.models.tiny import tiny_model

close = torch.testing.assert_close
pytestmark = pytest.mark.skipif(
    not hasattr(FSDPModule, 'set_force_sum_reduction_for_comms'),
    reason='this torch has no FSDP on CPUs',
)


def near(ours, theirs, message, tolerance=1e-5):
    """Compare by the largest number of a tensor, 1 at least."""
    scale = max(1.0, theirs.abs().max().item())
    close(ours.double() / scale, theirs.double() / scale, atol=tolerance, rtol=0, msg=message)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('ranks')


@pytest.fixture(scope='module')
def two(folder):
    return ranks.start(2, folder)


@pytest.fixture(scope='module')
def four(tmp_path_factory):
    return ranks.start(4, tmp_path_factory.mktemp('four'))


@pytest.fixture(scope='module', params=[2, 4], ids=['two ranks', 'four ranks'])
def records(request):
    return request.getfixturevalue('two' if request.param == 2 else 'four')


@pytest.fixture(scope='module')
def emulated(records):
    """The expected records, from the weights of rank 0."""
    torch.manual_seed(0)
    emulation = Emulation(records[0]['ddp']['start'], len(records))
    return emulation.train() | {'statistics': emulation.statistics}


def test_ranks_start_from_the_weights_of_rank_0(records):
    model = tiny_model(seed=0)
    ranks.compute_in_float64(model)
    start = model.state_dict()
    for record in records:
        assert all(torch.equal(value, start[n]) for n, value in record['ddp']['start'].items())


def test_losses_are_those_of_one_process(records, emulated):
    """Of every rank and step, BatchNorm taking the views of the rank."""
    for step in range(ranks.STEPS):
        for rank, record in enumerate(records):
            for name, value in emulated['losses'][step][rank].items():
                ours = record['ddp']['losses'][step][name]
                near(ours, value, f'{name}, {step}, {rank}')


def test_gradients_are_means_over_the_ranks(records, emulated):
    for ours, theirs in zip(records[-1]['ddp']['gradients'], emulated['gradients'], strict=True):
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            near(ours[name], gradient, name)
        assert max(gradient.abs().max() for gradient in theirs.values()) > 0.05


def test_weights_follow_the_published_adamw(records, emulated):
    start = records[0]['ddp']['start']
    for record in records:
        for ours, theirs in zip(record['ddp']['weights'], emulated['weights'], strict=True):
            for name, weight in theirs.items():
                near(ours[name], weight, name)
    moved = [(weight - start[name]).abs().max() for name, weight in emulated['weights'][-1].items()]
    assert sum(distance > 2e-3 for distance in moved) > 0.8 * len(moved)


def test_ranks_stay_bitwise_equal(records):
    for record in records[1:]:
        for name, weight in record['ddp']['weights'][-1].items():
            assert torch.equal(weight, records[0]['ddp']['weights'][-1][name]), name


def test_batch_norm_keeps_the_statistics_of_its_rank(records, emulated):
    different = 0
    for record, statistics in zip(records, emulated['statistics'], strict=True):
        for name, value in statistics.items():
            near(record['ddp']['end'][name], value, name)
            different += not torch.equal(record['ddp']['end'][name], records[0]['ddp']['end'][name])
    assert different > 10


def test_losses_in_evaluation_mode_use_these_statistics(records, emulated):
    for rank, record in enumerate(records):
        for name, value in emulated['evaluated'][rank].items():
            ours = record['ddp']['evaluated'][name]
            near(ours, value, f'{name}, {rank}')


def test_all_keys_are_gathered_in_one_collective(records):
    for record in records:
        assert [record[name]['gathered'] for name in ('ddp', 'fsdp')] == [1, 1]


def same_training(ours, theirs, steps=ranks.STEPS, tolerance=1e-5):
    for name in ('losses', 'gradients', 'weights'):
        for step in range(steps):
            mine, reference = ours[name][step], theirs[name][step]
            assert mine.keys() == reference.keys()
            for key, value in reference.items():
                near(mine[key], value, f'{name} {step} {key}', tolerance)
    if steps == ranks.STEPS:
        near(ours['features'], theirs['features'], 'features')
        for name, value in theirs['evaluated'].items():
            near(ours['evaluated'][name], value, name)


def test_fsdp_trains_as_ddp_does(records):
    """With four ranks as two copies of two shares."""
    for record in records:
        same_training(record['fsdp'], record['ddp'])


@pytest.mark.parametrize('way', ['in micro-batches', 'without momentum', 'of timm'])
def test_fsdp_trains_as_ddp_does_in_other_ways(two, way):
    """Gradients are reduced in each micro-batch; blocks are recomputed."""
    for record in two:
        same_training(record[f'fsdp {way}'], record[f'ddp {way}'])


def test_fsdp_takes_the_step_of_ddp_in_bfloat16(two):
    """The first one; after it rounding to 8 bits makes the runs diverge."""
    for record in two:
        same_training(record['fsdp in bfloat16'], record['ddp in bfloat16'], 1, 1e-2)


def test_each_rank_holds_its_share_of_both_encoders(records):
    """Half of it: four ranks hold two copies. Moments are sharded like the weights."""
    shares = [record['fsdp']['share'] for record in records]
    assert all(0.4 < share < 0.6 for share in shares)
    assert sum(shares) == pytest.approx(len(records) / 2)
    trained = sum(p.requires_grad for p in tiny_model().parameters())
    assert all(record['fsdp']['cut moments'] == trained for record in records)
    assert all(record['ddp']['share'] == 1 for record in records)


def read(path):
    return torch.load(path, weights_only=True)


def test_checkpoints_of_fsdp_are_whole(two, folder):
    path = folder / 'fsdp/epoch_2.pth'
    assert find_damage(path) is None
    model = MODELS.build(tiny_run_config(folder).model)
    ours = read(path)
    fit_state_dict(ours['state_dict'], model, 'The checkpoint')  # raises if keys or shapes differ
    model.load_state_dict(ours['state_dict'])
    moments = ours['optimizer']['state'].values()
    assert max(state['exp_avg'].abs().max() for state in moments) > 1e-3
    best = read(next((folder / 'fsdp').glob('best_*.pth')))
    fit_state_dict(best['state_dict'], model, 'The best checkpoint')
    backbone = read_backbone(path, num_heads=2)
    key = 'momentum_encoder.backbone.pos_embed'
    assert torch.equal(backbone.state_dict['pos_embed'], ours['state_dict'][key])


def test_a_resumed_run_equals_the_uninterrupted_run(two, folder):
    """Bitwise with FSDP; within rounding if DDP resumes the checkpoint of FSDP."""
    whole = read(folder / 'fsdp/epoch_2.pth')
    for name, tolerance in (('resumed', 0), ('resumed_ddp', 1e-4)):
        resumed = read(folder / name / 'epoch_2.pth')
        for part in ('state_dict', 'optimizer'):
            close(resumed[part], whole[part], atol=tolerance / 10, rtol=tolerance)
    first, key = read(folder / 'fsdp/epoch_1.pth')['state_dict'], 'backbone.cls_token'
    assert not torch.equal(first[key], whole['state_dict'][key])


def test_one_nan_stops_all_ranks(two):
    assert [record['stopped'] for record in two] == [True, True]


def test_micro_batches_train_as_whole_batches_do_and_reduce_gradients_once(two):
    for record in two:
        whole, parts = record['whole'], record['micro-batches']
        for name, tolerance in (('losses', 1e-4), ('gradients', 1e-3), ('weights', 1e-4)):
            ours, theirs = parts['training'][name], whole['training'][name]
            close(ours, theirs, atol=1e-5, rtol=tolerance)
        assert parts['reductions'] == whole['reductions'] >= 2  # in three micro-batches per step
    ours, theirs = (record['micro-batches']['training'] for record in two)
    close(ours['weights'], theirs['weights'], atol=0, rtol=0)
    assert not torch.equal(ours['losses'][0], theirs['losses'][0])


def test_compiled_backbones_train_as_eager_ones_do(two):
    for record in two:
        close(record['compiled']['training'], record['whole']['training'], atol=1e-4, rtol=1e-3)
