"""Checks of a run before it starts: data, model and schedule against each other, and one step."""

import math
import os.path as osp
import time
import warnings
from typing import Any

import torch
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.datasets.pack_views import channels_first
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.engine.ranks import compare_data
from mmpatchmix.models import PatchMix, draw_groups, unwrap_model
from mmpatchmix.models.compiling import records_graphs


def check_run(runner: Runner) -> None:
    """Check data, model and schedule of a pre-training run against each other.

    Reads one sample for training and one for evaluation. Random states are restored.

    Args:
        runner: A Runner that has not started; afterwards with loops and data loaders.

    Raises:
        ValueError: Saying what does not fit, where, and how to mend it.
    """
    # Built in the order of Runner.train(): samplers draw their seeds when they are built.
    compare_data(runner.train_loop.dataloader.dataset)
    _ = runner.val_loop
    model = unwrap_model(runner.model)
    if not isinstance(model, PatchMix):
        return
    with random_states_kept():
        _check_held_out(runner)
        _check_batch(runner, model)
        _check_compiler(runner, model)
        _check_views(runner, model)
        _check_schedule_end(runner)


def prepare_training(runner: Runner) -> None:
    """Prepare a Runner as ``runner.train()`` does before its loop, without hooks and checkpoints.

    Args:
        runner: A Runner that has not started; afterwards ready for ``train_step``.
    """
    _ = runner.train_loop  # builds the data, and the number of iterations
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner._init_model_weights()
    if modules := runner.cfg.get('activation_checkpointing'):
        turn_on_activation_checkpointing(unwrap_model(runner.model), modules)
    runner._maybe_compile('train_step')
    runner.model.train()


def run_one_step(runner: Runner) -> dict[str, float]:
    """Build all parts of a run, including evaluation, and train on one batch.

    Args:
        runner: A Runner that has not started. Nothing is saved.

    Returns:
        dict[str, float]: The losses of the step, its duration in ``seconds``, and on a GPU
        ``peak_gib``, the peak memory in GiB.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    prepare_training(runner)
    _ = runner.val_loop, runner.test_loop if runner._test_loop else None
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 1)
    batch = next(iter(runner.train_dataloader))
    began = time.perf_counter()
    if hasattr(model := unwrap_model(runner.model), 'update_momentum_encoder'):
        model.update_momentum_encoder(0.996)
    outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    result = {name: float(value.detach()) for name, value in outputs.items()}
    if not all(map(math.isfinite, result.values())):
        raise FloatingPointError(f'the loss of the first step is not finite: {result}')
    result['seconds'] = time.perf_counter() - began
    if torch.cuda.is_available():
        result['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return result


def _check_held_out(runner: Runner) -> None:
    """Refuse evaluation images that are trained on, and other classes than in training."""
    train = runner.train_dataloader.dataset
    test = runner.val_loop.dataloader.dataset if runner.val_loop else None
    # By an attribute of ImageFolder: the train loader's is wrapped in a class that sets seeds.
    if not (hasattr(train, 'understood') and hasattr(test, 'understood')):
        return
    if not test.metainfo['labelled']:
        return  # there is no evaluation
    if shared := [] if _are_apart(train, test) else sorted(_paths(train) & _paths(test)):
        raise ValueError(
            f'{len(shared)} of the {len(test)} images of val_dataloader are trained on too, such '
            f'as {shared[0]}. Give both data sets the same labels and holdout, and split="train" '
            'and "val", or separate folders or lists.'
        )
    known = set(train.metainfo.get('classes') or ())
    if train.metainfo['labelled'] and known != set(test.metainfo['classes']):
        other = sorted(known.symmetric_difference(test.metainfo['classes']))
        raise ValueError(
            f'train_dataloader and val_dataloader have different classes ({", ".join(other[:5])}), '
            'and number them differently: give both dataset.classes=[...].'
        )


def _are_apart(train: Any, test: Any) -> bool:
    """Return True if settings alone show that two data sets share no image."""
    if train.list_file or test.list_file:
        return False  # a list may name any file
    roots = [osp.join(osp.realpath(each.img_prefix), '') for each in (train, test)]
    if roots[0] == roots[1]:
        settings = [(each.labels, each.holdout) for each in (train, test)]
        return {train.split, test.split} == {'train', 'val'} and settings[0] == settings[1]
    return osp.commonpath(roots) not in (root.rstrip('/') for root in roots)


def _paths(dataset: Any) -> set[str]:
    return {osp.abspath(dataset.get_data_info(n)['img_path']) for n in range(len(dataset))}


def _check_batch(runner: Runner, model: PatchMix) -> None:
    loader = runner.train_dataloader
    batch_size, num_images = loader.batch_size, len(loader.sampler)
    if len(loader) == 0:
        raise ValueError(
            f'train_dataloader: {num_images} images per rank do not fill one batch of '
            f'{batch_size}: lower batch_size, or set drop_last=False.'
        )
    num_mix = max(model.data_preprocessor.num_mix_choices)
    if num_mix > batch_size:
        raise ValueError(
            f'data_preprocessor.num_mix={num_mix} is larger than the batch of {batch_size} images '
            'per rank: lower it, or raise train_dataloader.batch_size.'
        )
    size = model.micro_batch_size or batch_size
    if size != batch_size and (size < 2 or batch_size % size):
        raise ValueError(
            f'model.micro_batch_size={size} must be at least 2 (BatchNorm) and divide '
            f'train_dataloader.batch_size={batch_size}.'
        )
    if model.micro_batch_size and runner.cfg.optim_wrapper.get('accumulative_counts', 1) > 1:
        raise ValueError(
            'model.micro_batch_size and optim_wrapper.accumulative_counts cannot be combined: '
            'raise train_dataloader.batch_size instead, to contrast all of its images.'
        )
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    if size == 1:
        raise ValueError(
            'train_dataloader.batch_size=1, but the BatchNorm layers of projector and predictor '
            'need at least 2 images per rank: raise it.'
        )
    if num_images % size == 1 and not loader.drop_last:
        kind = 'micro-batch' if model.micro_batch_size else 'batch'
        raise ValueError(
            f'the last {kind} of an epoch would hold 1 of {num_images} images, too few for the '
            'BatchNorm layers: set train_dataloader.drop_last=True or another batch_size.'
        )


def _check_compiler(runner: Runner, model: PatchMix) -> None:
    """Compile one addition, which needs the same compilers as a backbone."""
    if model.compile_options is None:
        return
    accumulation = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    if accumulation > 1 and records_graphs(model.compile_options):
        raise ValueError(
            f"model.compile=dict(mode='{model.compile_options['mode']}') records CUDA graphs, "
            f'which overwrite gradients that optim_wrapper.accumulative_counts={accumulation} '
            "adds up. Set one of them only, or mode='default'."
        )
    options = {k: v for k, v in model.compile_options.items() if k in ('backend', 'mode')}
    try:
        values = torch.zeros(2, device=next(model.parameters()).device)
        torch.compile(lambda each: each + 1, **options)(values)
    except Exception as error:
        raise ValueError(
            f'torch.compile does not work here ({str(error).splitlines()[0]}): install a C++ '
            'compiler (GPU: triton and a C compiler), or set model.compile=False.'
        ) from error


def _check_views(runner: Runner, model: PatchMix) -> None:
    inputs = runner.train_dataloader.dataset[0]['inputs']
    missing = {'view_1', 'view_2'} - set(inputs if isinstance(inputs, dict) else ())
    if missing:
        raise ValueError(
            f'the training pipeline yields no {sorted(missing)}: end it with '
            "dict(type='mmpatchmix.LoadMultiCrop', ...), dict(type='mmpatchmix.PackViews')."
        )
    preprocessor = model.data_preprocessor
    for name, view in inputs.items():
        view = channels_first(view, preprocessor.num_channels)
        _check_view(name, view, model, learns_positions=name != 'local_views')
        num_patches = math.prod(view.shape[-2:]) // preprocessor.patch_size**2
        draw_groups(num_patches, max(preprocessor.num_mix_choices))
    if runner.val_loop is not None:
        view = runner.val_loop.dataloader.dataset[0]['inputs']
        _check_view('the test view (val_dataloader)', view, model)


def _check_view(
    name: str, view: torch.Tensor, model: PatchMix, learns_positions: bool = True
) -> None:
    """Refuse a view of another number of channels, of cut patches, or of another aspect ratio."""
    num_channels, height, width = view.shape[-3:]  # (C, H, W), or (L, C, H, W)
    num_means = model.data_preprocessor.num_channels
    if num_channels != num_means:
        raise ValueError(
            f'{name} of shape {tuple(view.shape)} has not the {num_means} channels of '
            'model.data_preprocessor.mean and std: change the pipeline, or both.'
        )
    # Other backbones may lack these attributes.
    projection = getattr(getattr(model.backbone, 'patch_embed', None), 'projection', None)
    expected = getattr(projection, 'in_channels', num_channels)
    if num_channels != expected:
        raise ValueError(
            f'{name} has {num_channels} channels, model.backbone.in_channels={expected}: change '
            'one of them.'
        )
    patches = {
        'backbone.patch_size': getattr(model.backbone, 'patch_size', 1),
        'data_preprocessor.patch_size': model.data_preprocessor.patch_size,
    }
    for key, patch_size in patches.items():
        if height % patch_size or width % patch_size:
            raise ValueError(
                f'{name} is {height}x{width} pixels, which model.{key}={patch_size} does not '
                'divide: change the size in the pipeline or the patch size.'
            )
    learned = getattr(model.backbone, 'img_size', None) if learns_positions else None
    if learned is not None and height * learned[1] != width * learned[0]:
        raise ValueError(
            f'{name} is {height}x{width} pixels, model.backbone.img_size='
            f'{learned[0]}x{learned[1]}: give both the same aspect ratio. LoadMultiCrop and '
            'MultiCrop (global_size) and ResizeCentre (size) take (height, width).'
        )


def _check_schedule_end(runner: Runner) -> None:
    schedulers = runner.cfg.get('param_scheduler') or []
    ends = [s['end'] for s in schedulers if s.get('by_epoch', True) and 'end' in s]
    max_epochs = runner.train_loop.max_epochs
    if ends and max(ends) != max_epochs:
        warnings.warn(
            f'the schedules end at epoch {max(ends)}, the run at epoch {max_epochs}; --epochs N '
            'changes train_cfg.max_epochs and the param_scheduler entries together.'
        )
