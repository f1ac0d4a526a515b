"""The parts of a Runner that ``check_run`` reads, built without loggers, hooks and files."""

from types import SimpleNamespace

import pytest
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.registry import MODELS


def build_parts(cfg):
    """Build model and data loaders of a config."""
    init_default_scope(cfg.default_scope)
    train, val = (Runner.build_dataloader(cfg[f'{name}_dataloader']) for name in ('train', 'val'))
    return SimpleNamespace(
        cfg=cfg,
        param_schedulers=cfg.get('param_scheduler'),
        model=MODELS.build(cfg.model),
        train_dataloader=train,
        val_dataloader=val,
        train_loop=SimpleNamespace(dataloader=train, max_epochs=cfg.train_cfg.max_epochs),
        val_loop=SimpleNamespace(dataloader=val),
    )


def get_refusal(cfg) -> str:
    """Return the message with which ``check_run`` refuses a config."""
    with pytest.raises(ValueError) as caught:
        check_run(build_parts(cfg))
    return str(caught.value)
