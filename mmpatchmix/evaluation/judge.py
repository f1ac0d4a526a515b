"""Judge one checkpoint in every way, from one extraction of features."""

import json
import logging
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmpatchmix import __version__
from mmpatchmix.checkpoints import fit_state_dict, read_checkpoint
from mmpatchmix.evaluation.feature_cache import cached_features, feature_key
from mmpatchmix.evaluation.features import Features, extract_features, is_labelled
from mmpatchmix.evaluation.knn_loop import KNNLoop
from mmpatchmix.evaluation.linear_probe import linear_probe, low_shot
from mmpatchmix.evaluation.rank_me import measure_geometry
from mmpatchmix.evaluation.similarity import calibrate, class_agreement, predict_shares
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.report.feature_figures import draw_similarity

JUDGEMENTS = ('knn', 'linear', 'low-shot', 'similarity', 'geometry')
# What `similarity` looks at: images that vote for each other's class; mixed images and draws.
_MAX_COMPARED, _NUM_MIXED, _NUM_DRAWS = 10_000, 128, 16


def load_features(runner: Runner, checkpoint: str | Path) -> tuple[Features, Features]:
    """Extract the features of a checkpoint on all ranks, or read them from the work dir.

    Without labels nothing can be judged: a warning says so first, and images that are bank and
    queries at once (an unlabelled folder is) are extracted once.

    Args:
        runner: Of a config whose ``test_cfg`` is a :class:`KNNLoop`: its bank is the training
            set, its queries are the test set.
        checkpoint: A file of the same config.

    Returns:
        tuple: Features of the training and of the test set, the same on every rank.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the config has no kNN evaluation, or the checkpoint does not fit.
    """
    loop, config = runner.test_loop, runner.cfg
    if not isinstance(loop, KNNLoop):
        raise ValueError(
            "the config's test_cfg is no mmpatchmix.KNNLoop; give the config of the pre-training, "
            'which says what the training and the test images are.'
        )
    model = unwrap_model(runner.model)
    state = read_checkpoint(checkpoint).state_dict
    model.load_state_dict(fit_state_dict(state, model, str(checkpoint))[0], strict=True)
    folder = Path(runner.work_dir) / 'features'
    loaders = dict(bank=loop.bank_dataloader, queries=loop.dataloader)
    if not all(is_labelled(loader.dataset) for loader in loaders.values()):
        print_log(
            'The images have no labels: kNN, linear and low-shot are left out. '
            f'The features are kept in {folder}.',
            'current',
            logging.WARNING,
        )
    datasets = config.test_cfg.bank_dataloader.dataset, config.test_dataloader.dataset
    keys = [
        feature_key(checkpoint, config.model, dataset, loader.dataset)
        for dataset, loader in zip(datasets, loaders.values(), strict=True)
    ]
    if all(keys[0][name] == keys[1][name] for name in ('transform', 'images')):
        print_log('Bank and queries are the same images: one extraction for both.', 'current')
        del loaders['queries']
    result = []
    for (name, loader), key in zip(loaders.items(), keys, strict=False):
        compute = partial(extract_features, runner.model, loader, title=name)
        result.append(cached_features(folder / f'{name}.safetensors', key, compute))
    return result[0], result[-1]


def judge_neighbors(runner: Runner, train: Features, test: Features) -> dict[str, float]:
    """Judge features by kNN as the config's test loop does; called on all ranks.

    Args:
        runner: As for :func:`load_features`.
        train: The bank.
        test: The queries.

    Returns:
        dict: ``knn/...`` and, where the config wants it, ``pixels/...``; empty without labels.
    """
    return {} if train.labels is None else runner.test_loop.judge(test, train)


def judge_classifiers(
    train: Features,
    test: Features,
    judgements: Sequence[str] = JUDGEMENTS,
    fractions: Sequence[float] = (0.01, 0.1),
    linear_epochs: int = 100,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Judge features by linear classifiers with all and with few labels, in one process.

    Args:
        train: Training set.
        test: Test set.
        judgements: Of ``'linear'`` and ``'low-shot'``; others are passed over.
        fractions: Shares of labels for ``'low-shot'``.
        linear_epochs: Length of ``'linear'``.
        device: Where ``'linear'`` computes.

    Returns:
        dict: ``linear/...`` and ``lowshot_...``; empty without labels.
    """
    metrics: dict[str, float] = {}
    if train.labels is None:
        return metrics
    if 'linear' in judgements:
        metrics |= linear_probe(train, test, num_epochs=linear_epochs, device=device)
    for fraction in fractions if 'low-shot' in judgements else ():
        metrics |= low_shot(train, test, fraction)
    return metrics


def judge_similarity(runner: Runner, test: Features, folder: str | Path) -> dict[str, float]:
    """Judge what similarity tells: shares of mixed images, and classes; in one process.

    Args:
        runner: As for :func:`load_features`, with the checkpoint loaded.
        test: Test set; of more than 10,000 images every n-th.
        folder: Where ``similarity.png`` goes.

    Returns:
        dict: ``similarity/share_error_m2`` and so on for mixes of 2, 3 and 4 images (of a PatchMix
        model, see :func:`~mmpatchmix.evaluation.similarity.calibrate`), ``similarity/auroc`` and
        ``similarity/precision_at_10`` and so on (with labels).
    """
    metrics: dict[str, float] = {}
    model = unwrap_model(runner.model)
    calibrations, agreement = {}, None
    if isinstance(model, PatchMix):
        dataset = runner.test_loop.dataloader.dataset
        step = max(1, len(dataset) // _NUM_MIXED)
        views = [dataset[i]['inputs'] for i in range(0, len(dataset), step)][:_NUM_MIXED]
        images = model.data_preprocessor(dict(inputs=torch.stack(views)), False)['inputs']
        for m in (2, 3, 4):
            if m <= len(images):
                shares = predict_shares(model, images, m, _NUM_DRAWS)
                calibrations[m] = calibration = calibrate(shares)
                metrics[f'similarity/share_error_m{m}'] = calibration['error']
                metrics[f'similarity/share_mean_abs_error_m{m}'] = calibration['mean_abs_error']
                metrics[f'similarity/share_correlation_m{m}'] = calibration['correlation']
    if test.labels is not None:
        step = -(-len(test.labels) // _MAX_COMPARED)
        part = Features(test.features[::step], test.labels[::step])
        agreement = class_agreement(part)
        metrics |= {f'similarity/{name}': value for name, value in agreement.items()}
    if calibrations or agreement:
        path = Path(folder) / 'similarity.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_similarity(calibrations, agreement).savefig(path)
    return metrics


def judge_geometry(runner: Runner, test: Features) -> dict[str, float]:
    """Judge how features lie in their space; needs no labels. In one process.

    Args:
        runner: As for :func:`load_features`, with the checkpoint loaded.
        test: Test set; of more than 10,000 images every n-th.

    Returns:
        dict: See :func:`~mmpatchmix.evaluation.rank_me.measure_geometry`; and
        ``geometry/width``, D.
    """
    features = test.features[:: -(-len(test.features) // _MAX_COMPARED)]
    dataset = runner.train_dataloader.dataset if runner.cfg.get('train_dataloader') else None
    metrics = measure_geometry(unwrap_model(runner.model), features, dataset)
    return metrics | {'geometry/width': float(features.shape[1])}


def finetune(config: Config, checkpoint: str | Path, build_runner) -> dict[str, float]:
    """Fine-tune from a checkpoint as a config says.

    Args:
        config: Its backbone is a :class:`~mmpatchmix.models.PretrainedViT`.
        checkpoint: Where the backbone starts.
        build_runner: Builds a Runner from a config.

    Returns:
        dict: ``finetune/top1``, ``finetune/top5`` in percent, of the averaged weights where the
        config averages (then ``..._origin`` are those of the weights themselves), and
        ``finetune/epochs``.

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
        folder: Where to write.
        metrics: Figures by name.
        about: What was judged and how.

    Returns:
        tuple: The file, and the table.
    """
    versions = dict(mmpatchmix=__version__, torch=torch.__version__, mmengine=mmengine.__version__)
    path = Path(folder) / 'evaluation.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dict(about, versions=versions, metrics=metrics)
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    return path, format_table(metrics)


def format_table(metrics: dict[str, float]) -> str:
    """Lay out top-1 and top-5 of each judgement, one line each.

    Args:
        metrics: As :func:`judge_neighbors`, :func:`judge_classifiers` and :func:`finetune` name
            them.
    """
    rows = [('', 'top-1 %', 'top-5 %')]
    for kind, title in (('pixels', 'kNN on raw pixels'), ('knn', 'kNN on features')):
        for name in metrics:
            if found := re.fullmatch(rf'{kind}(?:_(\w+))?/top1_k(\d+)', name):
                queries, k = found.groups()
                text = f'{title}, k={k}' + (f', queries {queries}' if queries else '')
                rows.append(_row(metrics, text, name, name.replace('/top1_', '/top5_')))
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
    if any(name.startswith('similarity/') for name in metrics):
        rows += [('', '', ''), *_similarity_rows(metrics)]
    if 'geometry/rank_me' in metrics:
        rows += [('', '', ''), *_geometry_rows(metrics)]
    width = max(len(row[0]) for row in rows)
    return '\n'.join(f'  {a:<{width}}  {b:>12}  {c:>8}'.rstrip() for a, b, c in rows)


def _row(metrics: dict[str, float], title: str, top1: str, top5: str) -> tuple[str, str, str]:
    return title, f'{metrics[top1]:.1f}', f'{metrics[top5]:.1f}'


def _similarity_rows(metrics: dict[str, float]) -> list[tuple[str, str, str]]:
    titles = {
        'auroc': 'AUROC, same class nearer than another (chance 0.5)',
        **{f'precision_at_{k}': f'same class among the {k} nearest' for k in (1, 10, 100)},
        **{f'share_error_m{m}': f'share of a mix of {m}, error of the curve' for m in (2, 3, 4)},
    }
    found = {title: metrics.get(f'similarity/{name}') for name, title in titles.items()}
    rows = [(title, f'{value:.3f}', '') for title, value in found.items() if value is not None]
    return [('similarity', '', ''), *rows]


def _geometry_rows(metrics: dict[str, float]) -> list[tuple[str, str, str]]:
    width = f'of {metrics["geometry/width"]:g} dimensions'
    titles = {
        'rank_me': f'RankMe, {width}',
        'lidar': f'LiDAR, {width}, {metrics.get("geometry/lidar_images", 0):g} images',
        'alignment': 'alignment of two views (0 best, 2 unrelated)',
        'uniformity': 'uniformity (lower is better, 0 collapsed)',
    }
    found = {title: metrics.get(f'geometry/{name}') for name, title in titles.items()}
    rows = [(title, f'{value:.3g}', '') for title, value in found.items() if value is not None]
    return [('geometry, without labels', '', ''), *rows]
