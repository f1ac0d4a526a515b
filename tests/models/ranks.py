"""The work of each gloo rank of test_two_ranks.py, and a function that starts the ranks."""

import os
import warnings
from functools import partial
from unittest import mock

import torch
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from mmpatchmix.engine import PatchMixDDP, PatchMixFSDP
from tests.engine.tiny_run import tiny_run_config
from tests.faults.processes import free_port
from tests.models.test_micro_batches import Recorder, freeze_statistics
from tests.models.tiny import tiny_config, tiny_model, uint8_batch

NUM_IMAGES, STEPS, MOMENTUM = 4, 3, 0.9
# A large eps: with the usual one a gradient of rounding errors moves its weight by lr.
ADAMW = dict(lr=0.02, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1)


def start(num_ranks, folder):
    """Run ``work`` on ``num_ranks`` ranks and return their records."""
    arguments = num_ranks, free_port(), str(folder)
    torch.multiprocessing.start_processes(work, arguments, num_ranks, start_method='forkserver')
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(num_ranks)]


def work(rank, num_ranks, port, folder):
    torch.set_num_threads(1)
    warnings.filterwarnings('error', message='FSDP2-wrapped module')
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=rank, LOCAL_RANK=rank)
    os.environ.update({key: str(value) for key, value in place.items()}, WORLD_SIZE=str(num_ranks))
    torch.distributed.init_process_group('gloo')
    ddp = partial(PatchMixDDP, broadcast_buffers=False)
    records = {'ddp': train(ddp, rank)}
    if num_ranks == 2:
        options = dict(embed_dim=16, depth=2, num_heads=2, patch_size=4, img_size=16)
        name = 'vit_tiny_patch16_224'
        timm = dict(backbone=dict(type='mmpatchmix.TimmViT', model=name, options=options))
        large = dict(micro_batch_size=2, backbone=tiny_config().backbone | {'with_cp': True})
        records |= {
            'fsdp': train(PatchMixFSDP, rank),
            'ddp in micro-batches': train(ddp, rank, **large),
            'fsdp in micro-batches': train(PatchMixFSDP, rank, **large),
            'ddp in bfloat16': train(ddp, rank, num_steps=1, bf16=True),
            'fsdp in bfloat16': train(PatchMixFSDP, rank, num_steps=1, bf16=True),
            'whole': train_with_frozen_statistics(rank),
            'micro-batches': train_with_frozen_statistics(rank, micro_batch_size=2),
            'compiled': train_with_frozen_statistics(rank, compile=dict(backend='eager')),
            'fsdp of timm': train(PatchMixFSDP, rank, **timm),
            'ddp of timm': train(ddp, rank, **timm),
            'fsdp without momentum': train(PatchMixFSDP, rank, momentum_encoder=None),
            'ddp without momentum': train(ddp, rank, momentum_encoder=None),
        }
        run_runners(folder, records)
    else:
        records['fsdp'] = train(partial(PatchMixFSDP, ranks_per_copy=2), rank)
    torch.save(records, f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


def prepare(model, rank, step):
    """The views of a rank in a step, with augmentation and mixes of its own."""
    torch.manual_seed(100 * step + rank)
    batch = uint8_batch(NUM_IMAGES, num_local=2, seed=10 * step + rank)
    return model.data_preprocessor(batch, training=True)['inputs']


def train(wrap, rank, num_steps=STEPS, bf16=False, **changes):
    """Take a few steps like the Runner; then compute the losses in evaluation mode."""
    model = tiny_model(seed=rank, **changes).train()  # the wrapper makes ranks equal
    if not bf16:
        compute_in_float64(model)
    wrapper = wrap(model)
    record = dict(start=copy_whole(model.state_dict()), losses=[], gradients=[], weights=[])
    constructor = 'mmpatchmix.DecayGroupsConstructor'
    optimizer = dict(type='AdamW', **ADAMW)
    cfg = dict(type='mmpatchmix.BF16OptimWrapper', enabled=bf16, constructor=constructor)
    optim_wrapper = build_optim_wrapper(wrapper, cfg | dict(optimizer=optimizer))
    optim_wrapper.optimizer.register_step_pre_hook(
        lambda *_: record['gradients'].append(
            copy_whole({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        )
    )
    gathered = count_calls('all_gather')
    for step in range(num_steps):
        with CommDebugMode() as exchanges:
            model.update_momentum_encoder(MOMENTUM)
        assert exchanges.get_total_counts() == 0
        torch.manual_seed(100 * step + rank)
        batch = uint8_batch(NUM_IMAGES, num_local=2, seed=10 * step + rank)
        losses = wrapper.train_step(batch, optim_wrapper)
        record['losses'].append({name: value.detach() for name, value in losses.items()})
        record['weights'].append(copy_whole(dict(model.named_parameters())))
    record['gathered'] = len(gathered) / num_steps
    record['end'] = copy_whole(model.state_dict())
    shares = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    record['share'] = sum(p.numel() for p in shares) / sum(p.numel() for p in model.parameters())
    moments = [state['exp_avg'] for state in optim_wrapper.optimizer.state.values()]
    record['cut moments'] = sum(isinstance(moment, DTensor) for moment in moments)
    model.eval()
    with torch.no_grad():
        record['evaluated'] = model(prepare(model, rank, STEPS), mode='loss')
        record['features'] = model.extract_feat(torch.ones(2, 3, 16, 16))
    return record


def train_with_frozen_statistics(rank, **changes):
    """Take two steps with DDP, with BatchNorm statistics that do not depend on the batch."""
    model = tiny_model(**changes).train()
    freeze_statistics(model)
    ddp, reduced, wrapper = PatchMixDDP(model, broadcast_buffers=False), [], Recorder(model)
    ddp.register_comm_hook(reduced, count_and_average)
    losses = []
    for step in range(2):
        model.update_momentum_encoder(MOMENTUM)
        torch.manual_seed(10 * step + rank)
        batch = uint8_batch(6, num_local=2, seed=10 * step + rank)
        losses.append(ddp.train_step(batch, wrapper)['loss'].detach())
    weights = copy_whole(model.state_dict())
    training = dict(losses=losses, gradients=wrapper.gradients, weights=weights)
    return dict(training=training, reductions=len(reduced))


def count_and_average(reduced, bucket):
    reduced.append(bucket.index())
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0] / 2)


def compute_in_float64(model):
    """BatchNorm of four nearly equal features multiplies rounding, by a thousand in each step."""
    encoders = [model] if model.momentum_encoder is None else [model, model.momentum_encoder]
    for encoder in encoders:
        encoder.backbone.double().register_forward_pre_hook(lambda _, args: (args[0].double(),))
        encoder.neck.double()
    model.head.double()
    for name in ('predict', 'gather'):  # which ask for float32
        setattr(model.head, name, with_float64_for_float32(getattr(model.head, name)))


def with_float64_for_float32(function):
    def call(*args):
        with mock.patch.object(torch.Tensor, 'float', torch.Tensor.double):
            return function(*args)

    return call


def copy_whole(state):
    """Copy tensors; those that ranks share as a whole."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in state.items()
    }


def count_calls(name):
    """Return a list that grows with each call of a collective from now on."""
    calls, original = [], getattr(torch.distributed, name)
    original = getattr(original, 'original', original)

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    counted.original = original
    setattr(torch.distributed, name, counted)
    return calls


def run_runners(folder, records):
    """Two epochs with FSDP, and the second one again from its checkpoint with either wrapper."""
    ddp = dict(type='mmpatchmix.PatchMixDDP', broadcast_buffers=False)
    fsdp = dict(type='mmpatchmix.PatchMixFSDP')
    runner = run_runner(f'{folder}/fsdp', fsdp)
    run_runner(f'{folder}/resumed', fsdp, f'{folder}/fsdp/epoch_1.pth')
    run_runner(f'{folder}/resumed_ddp', ddp, f'{folder}/fsdp/epoch_1.pth')

    # One NaN on one rank stops all ranks.
    hook = next(hook for hook in runner.hooks if hasattr(hook, '_refuse_nonfinite_weights'))
    weight = runner.model.module.neck.fc0.weight
    if torch.distributed.get_rank() == 1:
        weight.detach().to_local()[-1, -1] = float('nan')
    try:
        hook._refuse_nonfinite_weights(runner)
        records['stopped'] = False
    except FloatingPointError:
        records['stopped'] = True


def run_runner(work_dir, wrapper, checkpoint=None):
    cfg = tiny_run_config(work_dir, epochs=2, num_images=32)
    cfg.launcher = 'pytorch'
    cfg.model_wrapper_cfg = wrapper
    cfg.optim_wrapper.optimizer.eps = ADAMW['eps']
    cfg.randomness = dict(seed=3, diff_rank_seed=True)
    cfg.default_hooks.checkpoint.save_best = 'knn/top1'
    cfg.train_cfg.val_interval = 1
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    cfg.load_from, cfg.resume = checkpoint, checkpoint is not None
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner
