"""One run of benchmarks/methods.py: its config, its images, the training, the judgement."""

import copy
import time
from pathlib import Path

from runs import append_result, digest_config

HERE = Path(__file__).parent
CONFIG = HERE / 'configs/methods.py'
IMAGES = Path('work_dirs/methods/cifar10.npz')
NUM_TRAIN, NUM_TUNE = 16_384, 5_000
NUM_BANK = 10_240  # of them with labels, for kNN and linear classifiers
# Of the learning curve, which is drawn on images that nothing else is judged on.
NUM_CURVE_BANK, NUM_CURVE = 4_096, 2_000


def build_config(row: str, changes: dict, seed: int, shrink: int):
    """Return the config of a run and its digest."""
    from mmengine.config import Config

    from mmpatchmix.cli.arguments import set_epochs

    changes = dict(changes)
    epochs = changes.pop('epochs', None)
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(changes)
    if epochs is not None:
        set_epochs(cfg, epochs)
    cfg.randomness.seed = seed
    held_out = 50_000 - NUM_TUNE
    sizes = dict(
        train=('train', 0, NUM_TRAIN // shrink),
        bank=('train', 0, NUM_BANK // shrink),
        curve_bank=('train', 0, NUM_CURVE_BANK // shrink),
        curve=('train', held_out, held_out + NUM_CURVE // shrink),
        tune=('train', held_out, held_out + NUM_TUNE // shrink),
        test=('test', 0, 10_000 // shrink),
    )
    view = cfg.val_dataloader.dataset.pipeline
    part = {
        name: dict(
            type='mmpatchmix.PhotosInMemory', path=str(IMAGES), split=split, rows=(start, stop),
            pipeline=copy.deepcopy(view),
        )
        for name, (split, start, stop) in sizes.items()
    }  # fmt: skip
    crops = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset = dict(part['train'], pipeline=crops)
    # Copies: the config's val and test nodes may be one object.
    loader = cfg.val_cfg.bank_dataloader.to_dict()
    for name, bank, queries in (
        ('val', 'curve_bank', 'curve'),
        ('test', 'bank', 'tune' if row.startswith('tune-') else 'test'),
    ):
        cfg[f'{name}_dataloader'] = dict(copy.deepcopy(loader), dataset=part[queries])
        cfg[f'{name}_cfg'] = dict(
            type='mmpatchmix.KNNLoop',
            bank_dataloader=dict(copy.deepcopy(loader), dataset=part[bank]),
        )
    digest = digest_config(cfg, cfg.test_cfg.bank_dataloader.dataset.to_dict())
    cfg.work_dir = f'work_dirs/methods/{row}-{seed}'
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend')]
    return cfg, digest


def prepare_images(data_root: str | None) -> None:
    """Write images and labels into one file, shuffled once and for all, if it is not there."""
    if IMAGES.is_file():
        return
    print(f'reading the photographs into {IMAGES} ...')
    import numpy as np

    from mmpatchmix.registry import DATASETS

    arrays = {}
    for split in ('train', 'test'):
        if data_root:
            load = dict(type='mmpretrain.LoadImageFromFile')
            config = dict(type='mmpatchmix.ImageFolder', data_prefix=split, labels=True)
            config |= dict(data_root=data_root, pipeline=[load])
        else:
            config = dict(type='mmpretrain.CIFAR10', data_root='data/cifar10', split=split)
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


def register_photos() -> None:
    """Register the data set of the file that :func:`prepare_images` wrote."""
    import numpy as np
    from mmengine.dataset import BaseDataset

    from mmpatchmix.registry import DATASETS

    @DATASETS.register_module(force=True)
    class PhotosInMemory(BaseDataset):
        def __init__(self, path: str, split: str, rows: tuple[int, int], **kwargs) -> None:
            self.path, self.split, self.rows = path, split, slice(*rows)
            super().__init__(serialize_data=False, metainfo=dict(labelled=True), **kwargs)

        def load_data_list(self) -> list[dict]:
            with np.load(self.path) as arrays:
                images = arrays[f'{self.split}_images'][self.rows]
                labels = arrays[f'{self.split}_labels'][self.rows]
            return [
                dict(img=image, gt_label=int(label))
                for image, label in zip(images, labels, strict=True)
            ]


def run(row: str, changes: dict, seed: int, shrink: int, results: Path) -> None:
    """Train and judge one row, and append its line to the results."""
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()
    from mmpatchmix.cli.verb import build_runner

    register_photos()
    cfg, digest = build_config(row, changes, seed, shrink)
    runner = build_runner(cfg)
    began = time.monotonic()
    curve, iterations = [], 0
    if row == 'untrained':
        runner.model.init_weights()
    else:
        runner.train()
        curve = [float(v) for v in runner.message_hub.log_scalars['val/knn/top1'].data[0]]
        iterations = runner.max_iters
    seconds = time.monotonic() - began
    began = time.monotonic()
    result = judge(runner, seed)
    line = dict(
        row=row,
        seed=seed,
        config=digest,
        iterations=iterations,
        batch_size=cfg.train_dataloader.batch_size,
        encoded_views=count_views(cfg) * iterations * cfg.train_dataloader.batch_size,
        train_seconds=round(seconds, 1),
        judge_seconds=round(time.monotonic() - began, 1),
        curve_knn20=curve,
        **result,
    )
    append_result(results, line)


def count_views(cfg) -> float:
    """Count the views of full size that are encoded per image: queries and keys alike."""
    crops = cfg.train_dataloader.dataset.pipeline[-2]
    local = 2 * crops.get('num_local', 0) * (crops.get('local_size', 0) / crops.global_size) ** 2
    keys = 3 if cfg.model.get('momentum_encoder') else 2
    return 2 + keys + local


def judge(runner, seed: int) -> dict:
    """Judge the features of both encoders on the test split (of tune rows: the tune split)."""
    from mmpatchmix.evaluation.features import extract_features
    from mmpatchmix.evaluation.similarity import calibrate, predict_shares

    model, loop = runner.model, runner.test_loop
    encoders = dict(query=model.backbone)
    if model.momentum_encoder is not None:
        encoders['momentum'] = model.momentum_encoder.backbone
    views, images = paired_views(runner), first_images(loop.dataloader, 256)
    images = model.data_preprocessor(dict(inputs=images), False)['inputs']
    result = {}
    for name, backbone in encoders.items():
        bank, queries = (
            extract_features(backbone, loader, model.data_preprocessor, f'{name} {title}')
            for title, loader in (('bank', loop.bank_dataloader), ('test', loop.dataloader))
        )
        result[name] = judge_features(backbone, bank, queries, views, seed)
    shares = {m: predict_shares(model, images, m, num_draws=32) for m in (2, 3, 4)}
    result['calibration'] = {str(m): calibrate(each) for m, each in shares.items()}
    return result


def judge_features(backbone, bank, queries, views, seed: int) -> dict:
    """Compute kNN, linear and few-label accuracy, class agreement, and geometry."""
    import torch

    from mmpatchmix.evaluation.features import evaluation_mode
    from mmpatchmix.evaluation.knn import knn_predict
    from mmpatchmix.evaluation.linear_probe import linear_probe, low_shot
    from mmpatchmix.evaluation.rank_me import alignment, rank_me, uniformity
    from mmpatchmix.evaluation.similarity import class_agreement

    result = {}
    predictions = knn_predict(queries.features, bank.features, bank.labels, (20, 200))
    for k, classes in predictions.items():
        result[f'knn{k}'] = 100 * (classes[:, 0] == queries.labels).double().mean().item()
    linear = linear_probe(bank, queries, num_epochs=20, seed=seed)
    result['linear'], result['linear_lr'] = linear['linear/top1'], linear['linear/lr']
    per_class = len(bank.labels) / 10
    for count in (1, 2, 5, 10, 20, 50, 100):
        metrics = low_shot(bank, queries, count / per_class)
        result[f'labels{count}'] = next(v for k, v in metrics.items() if k.endswith('/top1'))
    result['agreement'] = class_agreement(queries)
    with torch.no_grad(), evaluation_mode(backbone):
        first, second = (
            torch.cat([backbone(part)[-1] for part in view.split(256)]) for view in views
        )
    result['alignment'] = alignment(first, second)
    result['uniformity'] = uniformity(queries.features)
    result['rank_me'] = rank_me(queries.features)
    return result


def paired_views(runner, num_images: int = 2048):
    """Return two augmented, unmixed views of training images, normalised."""
    import torch
    from mmengine.dataset import default_collate

    dataset = runner.train_dataloader.dataset
    torch.manual_seed(0)
    batch = default_collate([dataset[i] for i in range(min(num_images, len(dataset)))])
    inputs = runner.model.data_preprocessor(batch, training=False)['inputs']
    return inputs['view_1'], inputs['view_2']


def first_images(dataloader, num_images: int):
    """Return the first images of a test set, as its pipeline gives them."""
    import torch

    dataset = dataloader.dataset
    step = max(1, len(dataset) // num_images)
    return torch.stack([dataset[i]['inputs'] for i in range(0, len(dataset), step)][:num_images])
