"""Where photometric augmentation happens: batched on the device, or in the data workers."""

from collections.abc import Iterator

import torch

PREPROCESSOR = 'mmpatchmix.PatchMixDataPreprocessor'
ON_DEVICE = 'mmpatchmix.PhotometricAugment'
IN_WORKERS = 'mmpatchmix.AugmentViews'
PACK = 'mmpatchmix.PackViews'


def place_augmentation(cfg) -> str | None:
    """Move the photometric augmentation of a config to where it is to happen.

    ``model.data_preprocessor.augment_on`` says where:

    - ``'device'``: in the data preprocessor, batched
      (:class:`~mmpatchmix.views.on_device.PhotometricAugment`).
    - ``'workers'``: in the training pipeline, right before ``mmpatchmix.PackViews``
      (:class:`~mmpatchmix.datasets.AugmentViews`), with the same settings.
    - ``'auto'``, the default: on the device if that is an accelerator. Without one both
      take time of the same cores, and the workers take several times less of it
      (``benchmarks/data.py``).

    Either place may be written in the config; it is rewritten to the other one.

    Args:
        cfg: A whole config; ``model.data_preprocessor.augment`` and the pipelines below
            ``train_dataloader`` may change. Configs without our data preprocessor, or
            without augmentation, stay as they are.

    Returns:
        str | None: A line for the log, or None where nothing is augmented.

    Raises:
        ValueError: If augmentation is written in both places, or it cannot be moved to the
            place that is asked for.
    """
    preprocessor = _find_preprocessor(cfg)
    if preprocessor is None:
        return None
    wanted = preprocessor.get('augment_on', 'auto')
    if wanted not in ('auto', 'device', 'workers'):
        raise ValueError(
            f"model.data_preprocessor.augment_on={wanted!r} must be 'auto', 'device' or 'workers'."
        )
    augment = preprocessor.get('augment') or {}
    pipelines = list(_find_pipelines(cfg.get('train_dataloader')))
    steps = [step for pipeline in pipelines for step in pipeline if _is(step, IN_WORKERS)]
    if augment and steps:
        raise ValueError(
            'the config augments twice: in model.data_preprocessor.augment and in '
            f'{IN_WORKERS} of the training pipeline. Remove one of them.'
        )
    if not augment and not steps:
        return None
    _check_channel_order(preprocessor, steps)
    place = wanted
    if wanted == 'auto':
        place = 'device' if torch.accelerator.is_available() else 'workers'
    obstacle = None
    if place == 'workers' and augment:
        obstacle = _find_obstacle(augment, pipelines)
        if obstacle and wanted == 'workers':
            raise ValueError(f"model.data_preprocessor.augment_on='workers': {obstacle}.")
        if obstacle:
            place = 'device'
        else:
            _move_to_workers(preprocessor, pipelines)
    elif place == 'device' and steps:
        _move_to_device(preprocessor, pipelines, steps)
    return _describe(place, wanted, obstacle)


def _find_preprocessor(cfg) -> dict | None:
    model = cfg.get('model')
    found = model.get('data_preprocessor') if isinstance(model, dict) else None
    found = found or cfg.get('data_preprocessor')
    return found if _is(found, PREPROCESSOR) else None


def _is(node, name: str) -> bool:
    return isinstance(node, dict) and node.get('type') == name


def _find_pipelines(node) -> Iterator[list]:
    """All lists of transforms below a config node that pack views."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _find_pipelines(value)
    elif isinstance(node, list | tuple):
        if any(_is(step, PACK) for step in node):
            yield node
        else:
            for value in node:
                yield from _find_pipelines(value)


def _check_channel_order(preprocessor: dict, steps: list[dict]) -> None:
    expected = 'bgr' if preprocessor.get('to_rgb', True) else 'rgb'
    for step in steps:
        if step.get('channel_order', 'bgr') != expected:
            raise ValueError(
                f'{IN_WORKERS}.channel_order={step.get("channel_order", "bgr")!r} and '
                f'model.data_preprocessor.to_rgb={preprocessor.get("to_rgb", True)} contradict '
                'each other: to_rgb=True means that crops arrive as bgr, False as rgb.'
            )


def _find_obstacle(augment: dict, pipelines: list) -> str | None:
    if not pipelines:
        return f'no training pipeline has {PACK}, before which it would happen'
    for view, settings in augment.items():
        if not _is(settings, ON_DEVICE):
            name = settings.get('type') if isinstance(settings, dict) else settings
            return f'the workers can do what {ON_DEVICE} does; {view} has {name}'
    return None


def _move_to_workers(preprocessor: dict, pipelines: list) -> None:
    for pipeline in pipelines:
        step = type(preprocessor)(
            type=IN_WORKERS, channel_order='bgr' if preprocessor.get('to_rgb', True) else 'rgb'
        )
        for view, settings in preprocessor['augment'].items():
            step[view] = {key: value for key, value in settings.items() if key != 'type'}
        place = next(index for index, each in enumerate(pipeline) if _is(each, PACK))
        pipeline.insert(place, step)
    preprocessor['augment'] = {}


def _move_to_device(preprocessor: dict, pipelines: list, steps: list[dict]) -> None:
    if len(steps) != len(pipelines) or any(step != steps[0] for step in steps):
        raise ValueError(
            f'the training pipelines differ in {IN_WORKERS}, but the device treats all images '
            "alike: make them equal, or set model.data_preprocessor.augment_on='workers'."
        )
    preprocessor['augment'] = {
        view: dict(settings, type=ON_DEVICE)
        for view, settings in steps[0].items()
        if view not in ('type', 'channel_order') and settings is not None
    }
    for pipeline in pipelines:
        pipeline[:] = [step for step in pipeline if not _is(step, IN_WORKERS)]


def _describe(place: str, wanted: str, obstacle: str | None) -> str:
    where = {'device': 'on the device, batched', 'workers': 'in the data workers'}[place]
    if wanted != 'auto':
        why = f'augment_on={wanted!r}'
    elif obstacle:
        why = f'there is no accelerator, but {obstacle}'
    elif place == 'workers':
        why = 'there is no accelerator, and they take less time'
    else:
        why = 'it is an accelerator'
    return f'Photometric augmentation happens {where} ({why}).'
