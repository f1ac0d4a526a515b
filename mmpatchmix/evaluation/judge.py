"""All judgements of one checkpoint, from one extraction of features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from mmpatchmix import __version__
from mmpatchmix.checkpoints import match_state_dict, read_checkpoint
from mmpatchmix.evaluation.feature_cache import cached_features, feature_key
from mmpatchmix.evaluation.features import Features, extract_features
from mmpatchmix.evaluation.knn_loop import KNNLoop
from mmpatchmix.evaluation.linear_probe import linear_probe, low_shot
from mmpatchmix.models import unwrap_model

JUDGEMENTS = ('knn', 'linear', 'low-shot')


def load_model(model: nn.Module, checkpoint: str | Path) -> None:
    """Load a checkpoint into the model it was trained as: all of it, or an error.

    Args:
        model (nn.Module): Possibly wrapped for distributed training.
        checkpoint (str | Path): A file of the same config.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read safely or does not fit; keys are named.
    """
    model = unwrap_model(model)
    state = read_checkpoint(checkpoint).state_dict
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    taken, report = match_state_dict(state, model.state_dict())
    report.raise_unless_fits(
        f'{checkpoint} does not fit the model of the config', 'Use the config it was trained with.'
    )
    model.load_state_dict(taken, strict=True)


def load_features(runner: Runner, checkpoint: str | Path) -> tuple[Features, Features]:
    """Features of a checkpoint, extracted by all ranks or read from the work dir.

    Args:
        runner (Runner): Of a config whose ``test_cfg`` is a :class:`KNNLoop`:
            its bank is the training set, its queries are the test set.
        checkpoint (str | Path): See :func:`load_model`.

    Returns:
        tuple[Features, Features]: Training and test set, the same on every rank.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no kNN evaluation, or the checkpoint does
            not fit.
    """
    loop, config = runner.test_loop, runner.cfg
    if not isinstance(loop, KNNLoop):
        raise ValueError(
            "the config's test_cfg is no mmpatchmix.KNNLoop; give the config of the pre-training, "
            'which says what the training and the test images are.'
        )
    load_model(runner.model, checkpoint)
    parts = dict(
        bank=(loop.bank_dataloader, config.test_cfg.bank_dataloader.dataset),
        queries=(loop.dataloader, config.test_dataloader.dataset),
    )
    result = []
    for name, (loader, dataset) in parts.items():
        key = feature_key(checkpoint, config.model, dataset, loader.dataset)
        path = Path(runner.work_dir) / 'features' / f'{name}.safetensors'
        compute = partial(extract_features, runner.model, loader, title=name)
        result.append(cached_features(path, key, compute))
    return result[0], result[1]


def judge_neighbors(runner: Runner, train: Features, test: Features) -> dict[str, float]:
    """kNN as the config's test loop does it; called on all ranks.

    Args:
        runner (Runner): As for :func:`load_features`.
        train (Features): The bank.
        test (Features): The queries.

    Returns:
        dict[str, float]: ``knn/...`` and, where the config wants it, ``pixels/...``.

    Raises:
        ValueError: If labels are missing.
    """
    loop = runner.test_loop
    device = next(runner.model.parameters()).device
    metrics = loop.metric.compute(test, train, device=device)
    if loop.pixel_baseline:
        metrics |= loop.judge_pixels(device)
    return metrics


def judge_classifiers(
    train: Features,
    test: Features,
    judgements: Sequence[str] = JUDGEMENTS,
    fractions: Sequence[float] = (0.01, 0.1),
    linear_epochs: int = 100,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Linear classifiers with all and with few labels; one process does it.

    Args:
        train (Features): Training set.
        test (Features): Test set.
        judgements (Sequence[str]): Of :data:`JUDGEMENTS`; kNN is passed over.
        fractions (Sequence[float]): Shares of labels for ``'low-shot'``.
        linear_epochs (int): Length of ``'linear'``.
        device (torch.device | str): Where ``'linear'`` computes.

    Returns:
        dict[str, float]: ``linear/...`` and ``lowshot_...``.

    Raises:
        ValueError: If labels are missing.
    """
    metrics: dict[str, float] = {}
    if 'linear' in judgements:
        metrics |= linear_probe(train, test, num_epochs=linear_epochs, device=device)
    for fraction in fractions if 'low-shot' in judgements else ():
        metrics |= low_shot(train, test, fraction)
    return metrics


def finetune(config: Config, checkpoint: str | Path, build_runner) -> dict[str, float]:
    """Fine-tune from a checkpoint as a config says.

    Args:
        config (Config): Its backbone is a :class:`~mmpatchmix.models.PretrainedViT`.
        checkpoint (str | Path): Where the backbone starts.
        build_runner (Callable): Builds a Runner from a config.

    Returns:
        dict[str, float]: ``finetune/top1``, ``finetune/top5`` in percent, of the
        averaged weights where the config averages (then ``..._origin`` are
        those of the weights themselves), and ``finetune/epochs``.

    Raises:
        ValueError: If the config's backbone takes no checkpoint.
    """
    if 'checkpoint' not in config.model.backbone:
        raise ValueError(
            "the fine-tuning config's model.backbone has no key 'checkpoint'; take one of "
            'configs/finetune.'
        )
    config.model.backbone.checkpoint = str(checkpoint)
    runner = build_runner(config)
    runner.train()
    # Of the validation that ended the training: another runner.val() would find the
    # averaged weights of an EMAHook made anew from the last ones.
    scalars = runner.message_hub.log_scalars
    names = ('top1', 'top5', 'top1_origin', 'top5_origin')
    found = {name: scalars.get(f'val/accuracy/{name}') for name in names}
    result = {f'finetune/{name}': float(v.current()) for name, v in found.items() if v is not None}
    return result | {'finetune/epochs': float(runner.max_epochs)}


def write_report(
    folder: str | Path, metrics: dict[str, float], about: dict[str, Any]
) -> tuple[Path, str]:
    """Write ``evaluation.json`` and lay the figures out as a table.

    Args:
        folder (str | Path): Where to write.
        metrics (dict[str, float]): Figures by name.
        about (dict[str, Any]): What was judged and how.

    Returns:
        tuple[Path, str]: The file, and the table.
    """
    versions = dict(mmpatchmix=__version__, torch=torch.__version__, mmengine=mmengine.__version__)
    path = Path(folder) / 'evaluation.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(about, versions=versions, metrics=metrics)
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    return path, format_table(metrics)


def format_table(metrics: dict[str, float]) -> str:
    """Top-1 and top-5 of each judgement, one line each.

    Args:
        metrics (dict[str, float]): As :func:`judge_checkpoint` and :func:`finetune` name them.

    Returns:
        str: Lines of plain text.
    """
    rows = [('', 'top-1 %', 'top-5 %')]
    for prefix, title in (('pixels', 'kNN on raw pixels'), ('knn', 'kNN on features')):
        for name in metrics:
            if name.startswith(f'{prefix}/top1_k'):
                k = name.removeprefix(f'{prefix}/top1_k')
                rows.append(_row(metrics, f'{title}, k={k}', name, f'{prefix}/top5_k{k}'))
    if 'linear/top1' in metrics:
        title = f'linear on features, lr {metrics["linear/lr"]:g}'
        rows.append(_row(metrics, title, 'linear/top1', 'linear/top5'))
    for name in metrics:
        if name.startswith('lowshot_') and name.endswith('/top1'):
            prefix = name.removesuffix('/top1')
            share = prefix.removeprefix('lowshot_').removesuffix('pct')
            title = f'{share} % of labels ({metrics[f"{prefix}/num_images"]:g} images)'
            spread = metrics[f'{prefix}/top1_std']
            rows.append((title, f'{metrics[name]:.1f} ± {spread:.1f}', ''))
    if 'finetune/top1' in metrics:
        title = f'fine-tuned, {metrics["finetune/epochs"]:g} epochs'
        rows.append(_row(metrics, title, 'finetune/top1', 'finetune/top5'))
    width = max(len(row[0]) for row in rows)
    return '\n'.join(f'  {a:<{width}}  {b:>12}  {c:>8}'.rstrip() for a, b, c in rows)


def _row(metrics: dict[str, float], title: str, top1: str, top5: str) -> tuple[str, str, str]:
    return title, f'{metrics[top1]:.1f}', f'{metrics[top5]:.1f}'
