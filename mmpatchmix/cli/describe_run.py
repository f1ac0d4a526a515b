"""The facts that a run prints before it starts: data, batch, schedules, model, evaluation."""

from typing import Any

from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner
from torch import nn

from mmpatchmix.checkpoints.vit_spec import compare_with_run
from mmpatchmix.cli.arguments import BF16, FLOAT32
from mmpatchmix.datasets import LoadAnyImage
from mmpatchmix.datasets.survey import Survey, as_rgb8, sample_paths, survey_images
from mmpatchmix.engine.optimizers import complete_optimizer, computes_bf16
from mmpatchmix.engine.schedules import global_batch
from mmpatchmix.models import PatchMixViT, TimmViT, unwrap_model
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.report.run_record import cores_per_process

LINEAR = {'mmpatchmix.LinearWarmupLR': 0, 'LinearLR': 1 / 3}  # start_factor by default
NUM_SAMPLED, SECONDS = 50, 10  # of the training images; a large image may take a second


def describe_run(runner: Runner) -> tuple[list[str], dict[str, str]]:
    """Return one line per fact of a run that has not started, and the facts by name."""
    cfg, loader, model = runner.cfg, runner.train_dataloader, unwrap_model(runner.model)
    world_size, workers, cores = get_world_size(), loader.num_workers, cores_per_process()
    batch = global_batch(runner)
    accumulation = cfg.optim_wrapper.get('accumulative_counts', 1)
    micro_batch = cfg.model.get('micro_batch_size')
    data = f'{len(loader.dataset):,} images, {workers} workers per rank'
    if workers > cores:
        data += f'  <- more than its {cores} cores; --workers {cores} starts fewer'
    if cfg.train_dataloader.dataset.type in ('CustomDataset', 'mmpretrain.CustomDataset'):
        data += '  <- stops at the first unreadable image; mmpatchmix.CustomDataset skips them'
    parts = [
        f'{name} {count / 1e6:.2f} M'
        for name, child in model.named_children()
        if (count := sum(p.numel() for p in child.parameters()))
    ]
    start = cfg.model.get('backbone') or {}
    start = str((find_pretrained(start.get('init_cfg')) or {}).get('checkpoint') or '')
    if start and not cfg.get('resume') and isinstance(model.backbone, PatchMixViT | TimmViT):
        start += f'  <- {note}' if (note := compare_with_run(start, cfg.pretty_text)) else ''
    unit = 'iterations' if 'max_iters' in cfg.train_cfg else 'epochs'
    evaluation = 'none during training'
    if runner.val_loop is not None:
        kind = type(runner.val_loop).__name__
        evaluation = f'{kind} every {runner.train_loop.val_interval} {unit}'
    facts = {
        'data': data,
        **describe_images(loader.dataset, model.data_preprocessor),
        **_describe_views(cfg.train_dataloader.dataset.get('pipeline') or []),
        'batch': f'{batch // world_size} x {world_size} ranks = {batch}'
        + (f', x {accumulation} accumulated' if accumulation > 1 else '')
        + (f', queries in micro-batches of {micro_batch}' if micro_batch else ''),
        'length': f'{runner.max_epochs} epochs x {len(loader):,} = ' * (unit == 'epochs')
        + f'{runner.max_iters:,} iterations',
        'optimizer': cfg.optim_wrapper.optimizer.type,
        'precision': _describe_precision(cfg.optim_wrapper),
        **describe_schedules(cfg, batch * accumulation),
        'parameters': ', '.join(parts),
        'trained': f'{sum(p.numel() for p in model.parameters() if p.requires_grad):,}',
        **({'starts from': start} if start else {}),
        'evaluation': evaluation,
        'output': str(runner.work_dir),
    }
    return [f'  {name:<14}{fact}' for name, fact in facts.items()], facts


def describe_images(dataset: Any, preprocessor: nn.Module | None = None) -> dict[str, str]:
    """Describe a sample of a folder or list of images, on the first rank.

    Mean and std of the preprocessor are compared with those of the sample.
    """
    # By an attribute of ImageFolder: the train loader's is wrapped in a class that sets seeds.
    if not hasattr(dataset, 'understood') or not is_main_process():
        return {}
    load = dataset.pipeline.transforms[0]
    keeps_all = isinstance(load, LoadAnyImage)
    scale = load.scale if keeps_all else as_rgb8
    survey = survey_images(sample_paths(dataset, NUM_SAMPLED), scale, SECONDS)
    facts = {**dataset.understood, **describe_survey(survey)}
    if not keeps_all and not survey.kinds.keys() <= {(1, 'uint8'), (3, 'uint8')}:
        facts['kinds'] += (
            '  <- this recipe converts all to 8-bit RGB; configs/patchmix_vit-s_any.py keeps depth '
            'and channels (docs/own-images.md)'
        )
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if survey.num_fit and mean is not None and std is not None:
        note = _compare_statistics(survey, mean.flatten().tolist(), std.flatten().tolist())
        facts['mean, std'] = note
    return facts


def describe_survey(survey: Survey) -> dict[str, str]:
    """Describe sizes, kinds and values of sampled images, and those that are damaged or unfit."""
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


def _compare_statistics(survey: Survey, mean: list[float], std: list[float]) -> str:
    """Return both; note if the normalised sample is far from a mean of 0 and a deviation of 1."""
    try:
        found = survey.mean_and_std()
    except ValueError as error:
        return str(error)
    # check_run refuses another number of channels.
    channels = zip(*found, mean, std, strict=False)
    config, sample = (
        ', '.join(f'[{", ".join(f"{v:.4g}" for v in values)}]' for values in pair)
        for pair in ((mean, std), found)
    )
    if all(abs(m - m0) < 2 * s0 and 1 / 3 < s / s0 < 3 for m, s, m0, s0 in channels):
        return config
    return f'{config}  <- those of the sample are {sample}: --stats auto sets them'


def _describe_views(pipeline: list) -> dict[str, str]:
    """Describe the views that a pipeline of ours makes of an image."""
    for step in pipeline:
        if 'global_size' in step:
            sizes = [step['global_size'], step.get('local_size', 96)]
            sizes = [s if isinstance(s, int) else f'{s[0]}x{s[1]}' for s in sizes]
            local = f' and {step["num_local"]} of {sizes[1]}' if step.get('num_local') else ''
            return {'views': f'2 of {sizes[0]}{local} pixels per image'}
        if step.get('type') == 'mmpatchmix.TransformViews':
            return {'views': f'2 per image, by {", ".join(each.type for each in step.transforms)}'}
    return {}


def _describe_precision(optim_wrapper: dict) -> str:
    wrapper, enabled = str(optim_wrapper.get('type', FLOAT32)), optim_wrapper.get('enabled', True)
    if wrapper != BF16:
        return 'float32' if wrapper.rpartition('.')[2] == FLOAT32 else wrapper
    is_enabled = computes_bf16(get_device()) if enabled == 'auto' else enabled
    return 'bfloat16 autocast' if is_enabled else 'float32'


def describe_schedules(cfg: Any, batch: int) -> dict[str, str]:
    """Describe learning rate, weight decay and momentum for the images of an optimizer step."""
    optimizer = complete_optimizer(cfg.optim_wrapper.optimizer)
    first = rate = optimizer.get('lr')
    if rate is None and not cfg.get('param_scheduler'):
        return {'learning rate': 'set by the optimizer'}
    if rate is None:
        raise ValueError(f'optim_wrapper.optimizer.lr: {optimizer["type"]} has no default; set it.')
    note, scaling = '', cfg.get('auto_scale_lr') or {}
    base = scaling.get('base_batch_size')
    if base and scaling.get('enable'):
        rate *= batch / base
        note = f' ({first:g} x {batch} / {base})'
    elif base and base != batch:
        note = f'  <- meant for a batch of {base}, not {batch}; --auto-scale-lr makes it '
        note += f'{first * batch / base:g}'
    lr, decay = f'{rate:g}', f'{optimizer.get("weight_decay", 0):g}'
    for scheduler in cfg.get('param_scheduler') or []:
        unit = 'epoch' if scheduler.get('by_epoch', True) else 'iteration'
        span = f'{unit} {scheduler.get("begin", 0)}-{scheduler.get("end", "last")}'
        if scheduler.type in LINEAR:
            start = rate * scheduler.get('start_factor', LINEAR[scheduler.type])
            lr = f'{start:g} -> {lr} ({span}, linear)'
        elif scheduler.type == 'CosineAnnealingLR':
            lr += f' -> {scheduler.get("eta_min", 0):g} ({span}, cosine)'
        elif scheduler.type == 'CosineAnnealingWeightDecay':
            decay += f' -> {scheduler.get("eta_min", 0):g} ({span}, cosine)'
        else:
            lr += f', {scheduler.type} ({span})'
    facts = {'learning rate': lr + note, 'weight decay': decay}
    hook = (cfg.get('default_hooks') or {}).get('momentum')
    if hook and cfg.model.get('momentum_encoder'):
        ends = f'{hook.get("momentum", 0.996):g} -> {hook.get("end_momentum", 1.0):g}'
        facts['momentum'] = f'{ends} (cosine over all iterations; the share kept)'
    return facts
