"""All evaluations of one checkpoint, from one extraction of features; returns numbers."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmpatchmix.evaluation.feature_cache import cached_features, feature_key
from mmpatchmix.evaluation.features import Features, extract_features, is_labelled, load_model
from mmpatchmix.evaluation.knn_loop import KNNLoop
from mmpatchmix.evaluation.rank_me import measure_geometry
from mmpatchmix.evaluation.similarity import calibrate, class_agreement, predict_shares
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.models.vit import find_pretrained

# Images compared with all others; mixed images, and draws of shares of each.
_MAX_COMPARED, _NUM_MIXED, _NUM_DRAWS = 10_000, 128, 16


def load_features(runner: Runner, checkpoint: str | Path) -> tuple[Features, Features]:
    """Extract the features of a checkpoint on all ranks, or read them from the work dir.

    The checkpoint is loaded into the Runner's model. Images that are bank and queries at once, as
    in an unlabelled folder, are extracted once. Returns those of the bank and of the queries of the
    config's :class:`KNNLoop`, on all ranks; ``ValueError`` without one.
    """
    loop, config = runner.test_loop, runner.cfg
    if not isinstance(loop, KNNLoop):
        remedy = 'give the config of the pre-training, which names the training and test images.'
        raise ValueError(f"the config's test_cfg is no mmpatchmix.KNNLoop; {remedy}")
    load_model(runner, checkpoint)
    folder = Path(runner.work_dir) / 'features'
    loaders = dict(bank=loop.bank_dataloader, queries=loop.dataloader)
    if unlabelled := [name for name, each in loaders.items() if not is_labelled(each.dataset)]:
        names = ' and '.join(unlabelled)
        text = f'The {names} have no labels: kNN, linear and low-shot are left out. '
        print_log(f'{text}The features are kept in {folder}.', 'current', logging.WARNING)
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


def judge_similarity(
    runner: Runner, test: Features
) -> tuple[dict[str, float], dict[int, dict], dict[str, float] | None]:
    """Evaluate similarities: predicted shares of mixed images, and classes of near images.

    The Runner has the checkpoint loaded; of more than 10,000 test images every n-th is taken.
    Returns ``similarity/...``, the results of :func:`~mmpatchmix.evaluation.similarity.calibrate`
    for mixes of 2, 3 and 4 images (of a PatchMix model), and the class agreement or None.
    """
    metrics, calibrations, agreement = {}, {}, None
    model = unwrap_model(runner.model)
    if isinstance(model, PatchMix):
        dataset = runner.test_loop.dataloader.dataset
        step = max(1, len(dataset) // _NUM_MIXED)
        views = [dataset[i]['inputs'] for i in range(0, len(dataset), step)][:_NUM_MIXED]
        images = model.data_preprocessor(dict(inputs=torch.stack(views)), False)['inputs']
        for m in range(2, min(4, len(images)) + 1):
            calibrations[m] = calibrate(*predict_shares(model, images, m, _NUM_DRAWS))
            for name in ('error', 'mean_abs_error', 'correlation'):
                metrics[f'similarity/share_{name}_m{m}'] = calibrations[m][name]
    if test.labels is not None:
        step = -(-len(test.labels) // _MAX_COMPARED)
        agreement = class_agreement(Features(test.features[::step], test.labels[::step]))
        metrics |= {f'similarity/{name}': value for name, value in agreement.items()}
    return metrics, calibrations, agreement


def judge_geometry(runner: Runner, test: Features) -> dict[str, float]:
    """Return :func:`~mmpatchmix.evaluation.rank_me.measure_geometry` and ``geometry/width``.

    The Runner has the checkpoint loaded; of more than 10,000 test images every n-th is taken.
    """
    features = test.features[:: -(-len(test.features) // _MAX_COMPARED)]
    dataset = runner.train_dataloader.dataset if runner.cfg.get('train_dataloader') else None
    metrics = measure_geometry(unwrap_model(runner.model), features, dataset)
    return metrics | {'geometry/width': float(features.shape[1])}


def finetune(
    config: Config, checkpoint: str | Path, build_runner: Callable[[Config], Runner]
) -> dict[str, float]:
    """Fine-tune from a checkpoint according to a config of a :class:`PatchMixViT`.

    ``finetune/top1``, ``finetune/top5`` in percent are of the averaged weights where the config
    averages (then ``..._origin`` are those of the weights themselves), ``finetune/epochs`` their
    number. ``ValueError`` if the config's backbone takes no checkpoint.
    """
    if find_pretrained(config.model.backbone.get('init_cfg')) is None:
        message = "the fine-tuning config's model.backbone has no init_cfg of type 'Pretrained'"
        raise ValueError(f'{message}; use one of configs/finetune.')
    config.model.backbone.init_cfg.checkpoint = str(checkpoint)
    runner = build_runner(config)
    runner.train()
    # Of the validation that ended the training: another runner.val() would evaluate averaged
    # weights that EMAHook has initialised again from the last ones.
    scalars = runner.message_hub.log_scalars
    names = ('top1', 'top5', 'top1_origin', 'top5_origin')
    found = {name: scalars.get(f'val/accuracy/{name}') for name in names}
    result = {f'finetune/{name}': float(v.current()) for name, v in found.items() if v is not None}
    return result | {'finetune/epochs': float(runner.max_epochs)}
