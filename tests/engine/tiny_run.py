"""Runs of a few iterations under the Runner, on a few digits."""

import uuid

from mmengine.config import Config

CONFIG = 'configs/patchmix_vit-digits.py'


def tiny_run_config(
    work_dir, epochs=2, num_images=48, batch_size=8, report=False, **options
) -> Config:
    """The digits recipe with a toy network; ``num_images // batch_size`` iterations an epoch.

    Without ``report`` no figures are drawn, which takes longer than such a run.
    """
    from mmpatchmix.cli.arguments import set_epochs

    cfg = Config.fromfile(CONFIG)
    if report:
        cfg.default_hooks.report.pictures = False  # of held-out images, which take longer still
    else:
        cfg.default_hooks.pop('report')
    set_epochs(cfg, epochs)
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f'test-{uuid.uuid4().hex}'  # mmengine keeps loggers by this name
    cfg.merge_from_dict(
        {
            'model.backbone.arch': dict(
                embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24
            ),
            'model.neck': dict(in_channels=12, hid_channels=16, out_channels=8),
            'model.head.predictor': dict(in_channels=8, hid_channels=16, out_channels=8),
            'train_dataloader.batch_size': batch_size,
            'train_dataloader.dataset.indices': num_images,
            'val_dataloader.dataset.indices': 20,
            'val_cfg.bank_dataloader.dataset.indices': 20,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
            **options,
        }
    )
    return cfg
