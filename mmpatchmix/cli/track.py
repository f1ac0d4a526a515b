"""``--track``: figures and config of a run also go to MLflow, Weights & Biases or Aim."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRACKERS = ('mlflow', 'wandb', 'aim')  # as their packages are called


def set_trackers(cfg: Any, names: Sequence[str]) -> None:
    """Add the back ends of mmengine for some trackers to the visualizer of a config.

    Where they write is up to them and their environment variables: without any, MLflow into
    ``mlflow.db`` and ``mlruns`` of the present folder, as it does by itself, and Aim into ``.aim``.

    Args:
        cfg: The config, with ``work_dir`` and ``visualizer``; changed in place.
        names: Of :data:`TRACKERS`.

    Raises:
        ModuleNotFoundError: If the package of one is missing.
        ValueError: If the config has no visualizer.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f'--track {name} needs the package {name}, which is not installed: '
                f'pip install {name}'
            )
    if names and not (cfg.get('visualizer') or {}).get('vis_backends'):
        raise ValueError('--track needs a config with visualizer.vis_backends.')
    project, run = Path(cfg.filename).stem, Path(cfg.work_dir).name
    for name in names:
        cfg.visualizer.vis_backends.append(_backend(name, project, run))


def _backend(name: str, project: str, run: str) -> dict[str, Any]:
    if name == 'mlflow':  # by itself it would open a store of its own for every start of a run
        store = f'sqlite:///{Path("mlflow.db").absolute()}'
        store = os.environ.get('MLFLOW_TRACKING_URI') or store
        return dict(type='MLflowVisBackend', exp_name=project, run_name=run, tracking_uri=store)
    if name == 'wandb':
        return dict(type='WandbVisBackend', init_kwargs=dict(project=project, name=run))
    return dict(type='AimVisBackend', init_kwargs=dict(experiment=project))
