"""Registry nodes of this package, children of mmengine's root nodes.

Config types written ``type='mmpatchmix.Name'`` are found from every scope (mmpretrain's, mmdet's):
for the prefix mmengine imports this file, and the first look-up in a node imports the modules in
its ``locations``. The import of this file also applies :mod:`mmpatchmix.compat`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine import registry as root

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()


def _node(name: str, parent: root.Registry, *modules: str) -> root.Registry:
    return root.Registry(
        name,
        parent=parent,
        scope='mmpatchmix',
        locations=[f'mmpatchmix.{module}' for module in modules],
    )


MODELS = _node('model', root.MODELS, 'models', 'models.detection', 'models.augment')
MODEL_WRAPPERS = _node('model_wrapper', root.MODEL_WRAPPERS, 'engine')
DATASETS = _node('dataset', root.DATASETS, 'datasets')
TRANSFORMS = _node('transform', root.TRANSFORMS, 'datasets')
FUNCTIONS = _node('function', root.FUNCTIONS, 'models')
METRICS = _node('metric', root.METRICS, 'evaluation')
HOOKS = _node('hook', root.HOOKS, 'engine', 'evaluation', 'report')
LOG_PROCESSORS = _node('log_processor', root.LOG_PROCESSORS, 'engine')
VISBACKENDS = _node('vis_backend', root.VISBACKENDS, 'engine')
LOOPS = _node('loop', root.LOOPS, 'engine', 'evaluation')
OPTIM_WRAPPERS = _node('optim_wrapper', root.OPTIM_WRAPPERS, 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _node(
    'optimizer wrapper constructor', root.OPTIM_WRAPPER_CONSTRUCTORS, 'engine'
)
PARAM_SCHEDULERS = _node('parameter scheduler', root.PARAM_SCHEDULERS, 'engine')


def read_signature(node: root.Registry, kind: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a type, given as in a config; none of one that is not registered."""
    with node.switch_scope_and_registry(None) as registry:
        kind = registry.get(kind) if isinstance(kind, str) else kind
    return inspect.signature(kind).parameters if kind else {}
