"""Print the recipe of a run in a dozen lines: what will really happen."""

from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner
from torch import nn

from mmpatchmix.datasets import LoadAnyImage
from mmpatchmix.datasets.survey import Survey, as_rgb8, sample_paths, survey_images
from mmpatchmix.engine.bf16_optim_wrapper import computes_bf16
from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.report.run_record import DESCRIBED, cores_per_process


def describe_run(runner: Runner) -> list[str]:
    """Describe data, batch, schedules and model of a run that has not started.

    The report of the run finds the facts in the message hub.

    Args:
        runner: The Runner.

    Returns:
        list[str]: One line per fact, ready to print.
    """
    cfg, loader = runner.cfg, runner.train_dataloader
    world_size = get_world_size()
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    # A loader with a batch sampler of its own, as mmdet's, has no batch size itself.
    per_rank = loader.batch_size or loader.batch_sampler.batch_size
    batch = per_rank * world_size
    micro_batch = cfg.model.get('micro_batch_size')
    facts = {
        'data': f'{len(loader.dataset):,} images, {_workers(loader.num_workers)}'
        + _fragile(str(cfg.train_dataloader.dataset.type)),
        **describe_images(loader.dataset, unwrap_model(runner.model).data_preprocessor),
        **_views(cfg),
        'batch': f'{per_rank} x {world_size} ranks = {batch}'
        + (f', x {accumulation} accumulated' if accumulation > 1 else '')
        + (f', queries in micro-batches of {micro_batch}' if micro_batch else ''),
        'length': f'{runner.max_epochs} epochs x {len(loader):,} = {runner.max_iters:,} iterations',
        'optimizer': cfg.optim_wrapper.optimizer.type,
        'precision': _precision(cfg.optim_wrapper),
        **_schedules(cfg, batch),
        **_parameter_counts(runner.model),
        **_start(cfg.model.get('backbone') or {}),
        'evaluation': _evaluation(runner),
        'output': str(runner.work_dir),
    }
    runner.message_hub.update_info(DESCRIBED, facts, resumed=False)
    return [f'  {name:<14}{fact}' for name, fact in facts.items()]


def _fragile(dataset: str) -> str:
    """Say what the first damaged file does to a data set of mmpretrain."""
    if dataset.removeprefix('mmpretrain.') != 'CustomDataset':
        return ''
    return (
        "  <- ends at the first one that cannot be read; type='mmpatchmix.CustomDataset' skips and "
        'counts them'
    )


def _views(cfg) -> dict[str, str]:
    """Say which views are made of an image; nothing for pipelines without ours."""
    pipeline = cfg.train_dataloader.dataset.get('pipeline') or []
    for crops in pipeline:
        if 'global_size' in crops:
            text = f'2 of {_size(crops["global_size"])}'
            if crops.get('num_local'):
                text += f' and {crops["num_local"]} of {_size(crops.get("local_size", 96))}'
            return {'crops': f'{text} pixels per image'}
        if crops.get('type') == 'mmpatchmix.TransformViews':
            return {'views': f'2 per image, by {", ".join(step.type for step in crops.transforms)}'}
    return {}


def _size(size: int | list | tuple) -> str:
    return str(size) if isinstance(size, int) else f'{size[0]}x{size[1]}'


def _workers(num_workers: int) -> str:
    cores = cores_per_process()
    if num_workers <= cores:
        return f'{num_workers} workers per rank'
    return (
        f'{num_workers} workers per rank  <- more than the {cores} cores it has here take turns; '
        f'--workers {cores} starts fewer'
    )


def _precision(optim_wrapper: dict) -> str:
    wrapper = str(optim_wrapper.get('type', 'OptimWrapper'))
    if not wrapper.endswith('BF16OptimWrapper'):
        return 'float32' if wrapper.rpartition('.')[2] == 'OptimWrapper' else wrapper
    enabled = optim_wrapper.get('enabled', True)
    if enabled == 'auto':
        enabled = computes_bf16(get_device())
    return 'bfloat16 autocast' if enabled else 'float32'


def _schedules(cfg, batch: int) -> dict[str, str]:
    optimizer = cfg.optim_wrapper.optimizer
    rate = optimizer.lr
    note = ''
    scaling = cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if base and scaling.get('enable'):
        rate *= batch / base
        note = f' ({optimizer.lr:g} x {batch} / {base})'
    elif base and base != batch:
        note = (
            f'  <- meant for a batch of {base}, not {batch}; '
            f'--auto-scale-lr makes it {optimizer.lr * batch / base:g}'
        )
    lr, decay = f'{rate:g}', f'{optimizer.get("weight_decay", 0):g}'
    for scheduler in cfg.get('param_scheduler') or []:
        unit = 'epoch' if scheduler.get('by_epoch', True) else 'iteration'
        span = f'{unit} {scheduler.get("begin", 0)}-{scheduler.get("end", "last")}'
        if scheduler.type in ('mmpatchmix.LinearWarmupLR', 'LinearLR'):
            lr = f'{rate * scheduler.get("start_factor", 0):g} -> {lr} ({span}, linear)'
        elif scheduler.type == 'CosineAnnealingLR':
            lr += f' -> {scheduler.get("eta_min", 0):g} ({span}, cosine)'
        elif scheduler.type == 'CosineAnnealingWeightDecay':
            decay += f' -> {scheduler.eta_min:g} ({span}, cosine)'
        else:
            lr += f', {scheduler.type} ({span})'
    facts = {'learning rate': lr + note, 'weight decay': decay}
    hook = (cfg.get('default_hooks') or {}).get('momentum')
    if hook and cfg.model.get('momentum_encoder'):
        facts['momentum'] = (
            f'{hook.get("momentum", 0.996):g} -> {hook.get("end_momentum", 1.0):g} (cosine over '
            'all iterations; the share kept)'
        )
    return facts


def _start(backbone: dict) -> dict[str, str]:
    """Say what the backbone starts from, where it is a file."""
    file = (find_pretrained(backbone.get('init_cfg')) or backbone).get('checkpoint')
    return {'starts from': str(file)} if file else {}


def _parameter_counts(model: nn.Module) -> dict[str, str]:
    model = unwrap_model(model)
    parts = {
        name: sum(parameter.numel() for parameter in child.parameters())
        for name, child in model.named_children()
    }
    listed = ', '.join(f'{name} {count / 1e6:.2f} M' for name, count in parts.items() if count)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {'parameters': listed, 'trained': f'{trained:,}'}


def _evaluation(runner: Runner) -> str:
    if runner.val_loop is None:
        return 'none during training'
    loop = type(runner.val_loop).__name__
    return f'{loop} every {runner.train_loop.val_interval} epochs'


NUM_SAMPLED = 50

SECONDS = 10  # a large image may take one


def describe_images(dataset: Any, preprocessor: nn.Module | None = None) -> dict[str, str]:
    """Describe a folder or list of images; nothing for other data sets and on other ranks.

    Args:
        dataset: Of the train loader.
        preprocessor: Whose mean and std are compared with those of the sample.
    """
    # Not by its class: the train loader's is wrapped in one that seeds its samples.
    if not hasattr(dataset, 'understood') or not is_main_process():
        return {}
    load = dataset.pipeline.transforms[0]
    keeps_all = isinstance(load, LoadAnyImage)
    scale = load.scale if keeps_all else as_rgb8
    survey = survey_images(sample_paths(dataset, NUM_SAMPLED), scale, SECONDS)
    facts = {**dataset.understood, **describe_survey(survey)}
    lost = [kind for kind in survey.kinds if kind not in ((1, 'uint8'), (3, 'uint8'))]
    if lost and not keeps_all:
        facts['kinds'] += (
            '  <- this recipe makes 8-bit RGB of all: depth and further channels are lost; '
            'configs/patchmix_vit-s_any.py keeps them (docs/own-images.md)'
        )
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if survey.num_fit and mean is not None and std is not None:
        note = _compare(survey, mean.flatten().tolist(), std.flatten().tolist())
        facts |= {'mean, std': note} if note else {}
    return facts


def describe_survey(survey: Survey) -> dict[str, str]:
    """Describe sizes, kinds, values, and what is wrong with some of the images."""
    facts = {}
    if survey.num_read:
        sizes = [f'{height} x {width}' for height, width in (survey.smallest, survey.largest)]
        facts['sizes'] = ' to '.join(dict.fromkeys(sizes)) + ' pixels'
        facts['kinds'] = ', '.join(
            f'{count} x {channels} channel{"" if channels == 1 else "s"} {name}'
            for (channels, name), count in survey.kinds.most_common()
        )
        facts['values'] = f'{survey.low:g} to {survey.high:g}'
    for name, files in (('damaged', survey.damaged), ('unfit', survey.unfit)):
        if files:
            path, reason = files[0]
            total = survey.num_read + len(survey.damaged)
            facts[name] = f'{len(files)} of {total} sampled, such as {path} ({reason})'
    return facts


def _compare(survey: Survey, mean: list[float], std: list[float]) -> str | None:
    """Say where the sample, normalised, is far from a mean of 0 and a deviation of 1."""
    try:
        found_mean, found_std = survey.mean_and_std()
    except ValueError as error:
        return str(error)
    if len(found_mean) != len(mean):
        return None  # refused elsewhere
    channels = zip(found_mean, found_std, mean, std, strict=True)
    if all(abs(m - m0) < 2 * s0 and 1 / 3 < s / s0 < 3 for m, s, m0, s0 in channels):
        return None
    return (
        f'{_list(mean)}, {_list(std)}  <- those of the sample are {_list(found_mean)}, '
        f'{_list(found_std)}: --stats auto takes them'
    )


def _list(values: list[float]) -> str:
    return f'[{", ".join(f"{value:.4g}" for value in values)}]'
