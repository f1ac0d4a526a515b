"""Checks of a run before it starts: data, model and schedule against each other, and one step."""

import math
import os
import os.path as osp
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.datasets.image_folder import adopt_classes
from mmpatchmix.datasets.pack_views import channels_first
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.engine.ranks import compare_data
from mmpatchmix.engine.schedules import leave_out_short
from mmpatchmix.models import ImageClassifier, PatchMix, draw_groups, unwrap_model
from mmpatchmix.models.compiling import records_graphs


def check_run(runner: Runner) -> None:
    """Check data, model and schedule of a pre-training run that has not started.

    Builds loops and data loaders and reads one sample of each. Random states are restored.

    Raises:
        ValueError: If they do not fit, with the keys to change.
    """
    if 'mmdet' in sys.modules:  # of a detection config; pre-training needs none of it
        from mmpatchmix.datasets.coco_files import check_coco_files

        check_coco_files(runner)
    # Built in the order of Runner.train(): samplers draw their seeds when they are built.
    compare_data(runner.train_loop.dataloader.dataset)
    _ = runner.val_loop
    model = unwrap_model(runner.model)
    num_iters = len(runner.train_dataloader)
    runner.param_schedulers = leave_out_short(runner.param_schedulers, num_iters)
    _check_classes(runner, model)
    _check_schedule_end(runner)
    with random_states_kept():
        _check_held_out(runner)
        if isinstance(model, PatchMix):
            _check_batch(runner, model)
            _check_compiler(runner, model)
            _check_views(runner, model)


def prepare_training(runner: Runner) -> None:
    """Prepare a Runner for ``train_step`` as ``runner.train()`` does, without hooks and files."""
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
    """Build all parts of a run, including evaluation, and train on one batch; save nothing.

    Returns the losses of the step, its duration in ``seconds``, and on a GPU ``peak_gib``.
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


def _check_classes(runner: Runner, model: torch.nn.Module) -> None:
    """Refuse a classifier with fewer outputs than classes, and one of ours with more."""
    classes = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
    num_outputs = getattr(getattr(model, 'head', None), 'num_classes', None)
    difference = num_outputs - len(classes) if classes and num_outputs else 0
    if difference < 0 or (difference and isinstance(model, ImageClassifier)):
        key = 'num_classes' if isinstance(model, ImageClassifier) else 'head.num_classes'
        raise ValueError(
            f'model.{key}={num_outputs}, but the images of train_dataloader have {len(classes)} '
            f'classes: --cfg-options model.{key}={len(classes)}.'
        )


def _check_held_out(runner: Runner) -> None:
    """Refuse evaluation images that are trained on, or of classes that are not."""
    train = runner.train_dataloader.dataset
    test = runner.val_loop.dataloader.dataset if runner.val_loop else None
    # By an attribute of ImageFolder: the train loader's is wrapped in a class that sets seeds.
    are_folders = hasattr(train, 'understood') and hasattr(test, 'understood')
    if not are_folders or not test.metainfo['labelled']:  # then there is no evaluation
        return
    # Of a folder that is split by names, no image is in both parts.
    sources = [(d.list_file, d.img_prefix, d.labels, d.holdout) for d in (train, test)]
    is_split = sources[0] == sources[1] and {train.split, test.split} == {'train', 'val'}
    # Of a million training images only those with the name of a held-out one are compared.
    held_out = list(_list_paths(test)) if train.list_file or not is_split else []
    names = set(map(osp.basename, held_out))
    paths = [path for path in _list_paths(train) if osp.basename(path) in names] if names else []
    if shared := paths and set(map(osp.realpath, held_out)).intersection(map(osp.realpath, paths)):
        raise ValueError(
            f'{len(shared)} of the {len(test)} images of val_dataloader are trained on too, such '
            f'as {min(shared)}: give both separate folders or lists, or the same labels and '
            'holdout, and split="train" and "val".'
        )
    if train.metainfo['labelled']:
        adopt_classes(test, train.metainfo)


def _list_paths(dataset: Any) -> Iterator[str]:
    rows = dataset.data_list
    if 'path' in (getattr(getattr(rows, 'dtype', None), 'names', None) or ()):  # the fast way
        names = map(os.fsdecode, rows['path'].tolist())
        return (osp.join(dataset.img_prefix, name) for name in names)
    return (dataset.get_data_info(index)['img_path'] for index in range(len(dataset)))


def _check_batch(runner: Runner, model: PatchMix) -> None:
    """Refuse batches, or last batches, that are too small for the mix or for BatchNorm."""
    loader, num_mix = runner.train_dataloader, max(model.data_preprocessor.num_mix_choices)
    batch_size, num_images = loader.batch_size, len(loader.sampler)
    if len(loader) == 0:
        raise ValueError(
            f'train_dataloader: {num_images} images per rank do not fill one batch of '
            f'{batch_size}: lower batch_size, or set drop_last=False.'
        )
    last = 0 if loader.drop_last else num_images % batch_size
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
    num_last = last % size or size
    if num_last == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        kind = 'micro-batch' if model.micro_batch_size else 'batch'
        raise ValueError(
            f'the last {kind} of an epoch would hold 1 of {num_images} images, but BatchNorm needs '
            'at least 2 images per rank: change train_dataloader.batch_size, or drop_last.'
        )
    if num_mix > (smallest := last or batch_size):
        raise ValueError(
            f'data_preprocessor.num_mix={num_mix} is larger than {"the last" if last else "the"} '
            f'batch of {smallest} images per rank: lower it, or change train_dataloader.batch_size'
            f'{" or drop_last" if last else ""}.'
        )


def _check_compiler(runner: Runner, model: PatchMix) -> None:
    """Compile one addition, which needs the same compilers as a backbone."""
    if model.compile_options is None:
        return
    accumulation = runner.cfg.optim_wrapper.get('accumulative_counts', 1)
    if accumulation > 1 and records_graphs(model.compile_options):
        raise ValueError(
            f'model.compile={model.compile_options} records CUDA graphs: the gradients that '
            f'optim_wrapper.accumulative_counts={accumulation} adds up would be overwritten. Set '
            "one of them only, or mode='default'."
        )
    options = {k: v for k, v in model.compile_options.items() if k in ('backend', 'mode')}
    try:
        values = torch.zeros(2, device=next(model.parameters()).device)
        torch.compile(lambda each: each + 1, **options)(values)
    except Exception as error:
        raise ValueError(
            f'model.compile: it does not work here ({str(error).splitlines()[0]}). Install a C++ '
            'compiler (GPU: triton and a C compiler), or set model.compile=False.'
        ) from error


def _check_views(runner: Runner, model: PatchMix) -> None:
    inputs = runner.train_dataloader.dataset[0]['inputs']
    if missing := {'view_1', 'view_2'} - set(inputs if isinstance(inputs, dict) else ()):
        raise ValueError(
            f'the training pipeline yields no {sorted(missing)}: end it with '
            'mmpatchmix.LoadMultiCrop and mmpatchmix.PackViews.'
        )
    preprocessor = model.data_preprocessor
    load = (runner.cfg.train_dataloader.dataset.get('pipeline') or [{}])[0].get('type')
    if load == 'mmpatchmix.LoadAnyImage' and preprocessor._channel_conversion:
        raise ValueError(
            'model.data_preprocessor.to_rgb=True reverses RGB of LoadAnyImage: set to_rgb=False.'
        )
    for name, view in inputs.items():
        view = channels_first(view, preprocessor.num_channels)
        _check_view(name, view, model)
        num_patches = math.prod(view.shape[-2:]) // preprocessor.patch_size**2
        draw_groups(num_patches, max(preprocessor.num_mix_choices))
    if runner.val_loop is not None:
        view = runner.val_loop.dataloader.dataset[0]['inputs']
        _check_view('the test view (val_dataloader)', view, model)


def _check_view(name: str, view: torch.Tensor, model: PatchMix) -> None:
    """Refuse a view of another number of channels, of cut patches, or of another aspect ratio."""
    num_channels, height, width = view.shape[-3:]  # (C, H, W), or (L, C, H, W)
    # Other backbones may lack these attributes.
    projection = getattr(getattr(model.backbone, 'patch_embed', None), 'projection', None)
    for key, expected in (
        ('len(model.data_preprocessor.mean)', model.data_preprocessor.num_channels),
        ('model.backbone.in_channels', getattr(projection, 'in_channels', num_channels)),
    ):
        if num_channels != expected:
            raise ValueError(
                f'{name} of shape {tuple(view.shape)} does not have the channels of {key}='
                f'{expected}: change one of them.'
            )
    for key in ('backbone', 'data_preprocessor'):
        patch_size = getattr(getattr(model, key), 'patch_size', 1)
        if height % patch_size or width % patch_size:
            raise ValueError(
                f'{name} is {height}x{width} pixels, which model.{key}.patch_size={patch_size} '
                'does not divide: change the size in the pipeline or the patch size.'
            )
    learned = getattr(model.backbone, 'img_size', None)
    if learned and name != 'local_views' and height * learned[1] != width * learned[0]:
        raise ValueError(
            f'{name} is {height}x{width} pixels, model.backbone.img_size={learned[0]}x{learned[1]}:'
            ' give both the same aspect ratio; sizes in the pipeline may be (height, width).'
        )


def _check_schedule_end(runner: Runner) -> None:
    schedulers = runner.cfg.get('param_scheduler') or []
    end = max((s['end'] for s in schedulers if s.get('by_epoch', True) and 'end' in s), default=0)
    if end not in (0, last := runner.train_loop.max_epochs):
        warnings.warn(f'schedules end at epoch {end}, the run at epoch {last}: --epochs sets both')
