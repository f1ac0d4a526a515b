"""One run of benchmarks/methods.py: its config, its images, the training, the evaluation."""

import copy
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, default_collate
from mmengine.runner import Runner
from runs import HERE, build_quiet_runner, digest_config

from mmpatchmix.cli.arguments import set_epochs
from mmpatchmix.evaluation.features import evaluation_mode, extract_features
from mmpatchmix.evaluation.knn import knn_predict
from mmpatchmix.evaluation.linear_probe import linear_probe, low_shot
from mmpatchmix.evaluation.rank_me import alignment, rank_me, uniformity
from mmpatchmix.evaluation.similarity import calibrate, class_agreement, predict_shares
from mmpatchmix.registry import DATASETS

CONFIG = HERE / 'configs/methods.py'
IMAGES = Path('work_dirs/methods/cifar10.npz')
# Split, first row and number; held-out training images start at 45,000. The bank has labels, for
# kNN and linear classifiers; the learning curve has images of its own.
PARTS = {
    'train': ('train', 0, 16_384),
    'bank': ('train', 0, 10_240),
    'curve_bank': ('train', 0, 4_096),
    'curve': ('train', 45_000, 2_000),
    'tune': ('train', 45_000, 5_000),
    'test': ('test', 0, 10_000),
}


@DATASETS.register_module(force=True)
class PhotosInMemory(BaseDataset):
    """Rows of the file that :func:`prepare_images` has written."""

    def __init__(self, path: str, split: str, rows: tuple[int, int], **kwargs) -> None:
        self.path, self.split, self.rows = path, split, slice(*rows)
        super().__init__(serialize_data=False, metainfo=dict(labelled=True), **kwargs)

    def load_data_list(self) -> list[dict]:
        with np.load(self.path) as arrays:
            images = arrays[f'{self.split}_images'][self.rows]
            labels = arrays[f'{self.split}_labels'][self.rows]
        pairs = zip(images, labels, strict=True)
        return [dict(img=image, gt_label=int(label)) for image, label in pairs]


def prepare_images(data_root: str | None) -> None:
    """Write images and labels into one file, shuffled once, unless it exists."""
    if IMAGES.is_file():
        return
    print(f'reading the photographs into {IMAGES} ...')
    arrays = {}
    for split in ('train', 'test'):
        config = dict(type='mmpretrain.CIFAR10', data_root='data/cifar10', split=split)
        if data_root:
            load = dict(type='mmpretrain.LoadImageFromFile')
            config = dict(type='mmpatchmix.ImageFolder', data_prefix=split, labels=True)
            config |= dict(data_root=data_root, pipeline=[load])
        dataset = DATASETS.build(config)
        samples = [dataset[i] for i in np.random.default_rng(0).permutation(len(dataset))]
        images = np.stack([sample['img'] for sample in samples])
        # Files are read as BGR, the downloaded arrays are RGB.
        arrays[f'{split}_images'] = images[..., ::-1] if data_root else images
        arrays[f'{split}_labels'] = np.array([int(sample['gt_label']) for sample in samples])
    IMAGES.parent.mkdir(parents=True, exist_ok=True)
    partial = IMAGES.with_name('partial.npz')
    np.savez(partial, **arrays)
    partial.replace(IMAGES)


def build_config(row: str, changes: dict, seed: int, shrink: int) -> tuple[Config, str]:
    """Return the config of a run and its digest; ``shrink`` divides the numbers of images."""
    changes = dict(changes)
    epochs = changes.pop('epochs', None)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(changes)
    if epochs is not None:
        set_epochs(cfg, epochs)
    cfg.randomness.seed = seed
    view = cfg.val_dataloader.dataset.pipeline

    def part(name: str, pipeline: list) -> dict:
        split, start, num = PARTS[name]
        photos = dict(type='mmpatchmix.PhotosInMemory', path=str(IMAGES), split=split)
        rows = (start, start + num // shrink)
        return dict(photos, rows=rows, pipeline=copy.deepcopy(pipeline))

    cfg.train_dataloader.dataset = part('train', cfg.train_dataloader.dataset.pipeline)
    # Copies: the config's val and test nodes may be one object.
    loader = cfg.val_cfg.bank_dataloader.to_dict()
    queries = 'tune' if row.startswith('tune-') else 'test'
    for name, bank, judged in (('val', 'curve_bank', 'curve'), ('test', 'bank', queries)):
        cfg[f'{name}_dataloader'] = dict(copy.deepcopy(loader), dataset=part(judged, view))
        bank_loader = dict(copy.deepcopy(loader), dataset=part(bank, view))
        cfg[f'{name}_cfg'] = dict(type='mmpatchmix.KNNLoop', bank_dataloader=bank_loader)
    digest = digest_config(cfg, cfg.test_cfg.bank_dataloader.dataset.to_dict())
    cfg.work_dir = f'work_dirs/methods/{row}-{seed}'
    return cfg, digest


def run(row: str, seed: int, cfg: Config) -> dict:
    """Train and evaluate one row; return the figures for its line of the results."""
    runner = build_quiet_runner(cfg)
    began = time.monotonic()
    curve, iterations = [], 0
    if row == 'untrained':
        runner.model.init_weights()
    else:
        runner.train()
        curve = [float(v) for v in runner.message_hub.log_scalars['val/knn/top1'].data[0]]
        iterations = runner.max_iters
    seconds = round(time.monotonic() - began, 1)
    batch_size = cfg.train_dataloader.batch_size
    line = dict(iterations=iterations, batch_size=batch_size, train_seconds=seconds)
    views = count_views(cfg) * iterations * batch_size
    return line | dict(encoded_views=views, curve_knn20=curve) | judge(runner, seed)


def count_views(cfg: Config) -> float:
    """Return the views of full size that are encoded per image: queries, keys and local crops."""
    crops = cfg.train_dataloader.dataset.pipeline[-2]
    local = 2 * crops.get('num_local', 0) * (crops.get('local_size', 0) / crops.global_size) ** 2
    return 2 + (3 if cfg.model.get('momentum_encoder') else 2) + local


def judge(runner: Runner, seed: int) -> dict:
    """Evaluate the features of both encoders on the Runner's test split."""
    model, loop = runner.model, runner.test_loop
    encoders = dict(query=model.backbone)
    if model.momentum_encoder:
        encoders['momentum'] = model.momentum_encoder.backbone
    # Two augmented, unmixed views of training images, and test images at equal distances.
    dataset, tests = runner.train_dataloader.dataset, loop.dataloader.dataset
    torch.manual_seed(0)
    batch = default_collate([dataset[i] for i in range(min(2048, len(dataset)))])
    inputs = model.data_preprocessor(batch, training=False)['inputs']
    views = inputs['view_1'], inputs['view_2']
    numbers = range(0, len(tests), max(1, len(tests) // 256))[:256]
    batch = dict(inputs=torch.stack([tests[i]['inputs'] for i in numbers]))
    images = model.data_preprocessor(batch, training=False)['inputs']
    result = {}
    for name, backbone in encoders.items():
        bank, queries = (
            extract_features(backbone, loader, model.data_preprocessor, f'{name} {title}')
            for title, loader in (('bank', loop.bank_dataloader), ('test', loop.dataloader))
        )
        result[name] = judge_features(backbone, bank, queries, views, seed)
    shares = {m: predict_shares(model, images, m, num_draws=32) for m in (2, 3, 4)}
    result['calibration'] = {str(m): calibrate(*each) for m, each in shares.items()}
    return result


def judge_features(backbone, bank, queries, views, seed: int) -> dict:
    """Compute kNN, linear and few-label accuracy, class agreement, and geometry."""
    predictions = knn_predict(queries.features, bank.features, bank.labels, (20, 200))
    result = {
        f'knn{k}': 100 * (classes[:, 0] == queries.labels).double().mean().item()
        for k, classes in predictions.items()
    }
    linear = linear_probe(bank, queries, num_epochs=20, seed=seed)
    result['linear'], result['linear_lr'] = linear['linear/top1'], linear['linear/lr']
    per_class = len(bank.labels) / 10
    for count in (1, 2, 5, 10, 20, 50, 100):
        metrics = low_shot(bank, queries, count / per_class)
        result[f'labels{count}'] = next(v for k, v in metrics.items() if k.endswith('/top1'))
    result['agreement'] = class_agreement(queries)
    with torch.no_grad(), evaluation_mode(backbone):
        pair = [torch.cat([backbone(part)[-1] for part in view.split(256)]) for view in views]
    result['alignment'] = alignment(*pair)
    result['uniformity'] = uniformity(queries.features)
    result['rank_me'] = rank_me(queries.features)
    return result
