"""Refuse misspelt config keys, and values that no one could take, before anything is built."""

import difflib
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from inspect import Parameter
from typing import Any

from mmengine import registry as root
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from torch.utils.data import DataLoader

from mmpatchmix.cli.check_values import find_wrong_values
from mmpatchmix.cli.walk_config import walk_dicts

PREFIX = 'mmpatchmix.'
# Keys that mean something to mmengine wherever a config dict is built.
ALWAYS_KNOWN = {
    'type',
    '_scope_',
    '_delete_',
    'priority',
    'init_cfg',
    'convert_to_iter_based',  # of every schedule
    'constructor',  # of every optimizer wrapper
    'paramwise_cfg',
    'requires_grad',  # of every norm layer
    'num_batch_per_epoch',  # of every data loader
    'by_epoch',  # of a train_cfg without type
}
# Top-level keys that the Runner or the tools read; the second part is no Runner argument.
TOP_LEVEL = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'sync_bn',
    'tta_model',
}
_FOUND: dict[tuple[str | None, str], list[Callable]] = {}  # by scope and name


def check_config(cfg: Any) -> None:
    """Check the keys of a config that mmengine itself would pass over or trip over late.

    Args:
        cfg: A whole config (``mmengine.Config`` or a dict).

    Raises:
        ValueError: Naming every key that the type beside it does not take, every
            top-level key that is almost, but not quite, one of the Runner's, and every value
            of the wrong kind or out of range.
    """
    problems = list(_misspelt_top_level(cfg))
    for path, node in walk_dicts(cfg):
        problems += _unknown_type(cfg, path, node)
        problems += _unknown_arguments(cfg, path, node)
    if problems:
        raise ValueError('the config has keys that nothing reads:\n  ' + '\n  '.join(problems))
    wrong = list(find_wrong_values(cfg, partial(_find_own_parameters, cfg)))
    if wrong:
        raise ValueError('the config has values that cannot be meant:\n  ' + '\n  '.join(wrong))


def find_parameters(cfg: Any, path: str, node: Any) -> dict[str, Parameter]:
    """Return what the type of a config node takes, by name; nothing where that is not known.

    Args:
        cfg: The whole config.
        path: Dotted key of the node.
        node: A dict of the config.
    """
    known: dict[str, Parameter] = {}
    for built in _find_types(cfg, path, node):
        known |= _parameters(built)[0]
    return known


def _find_own_parameters(cfg: Any, path: str, node: Any) -> dict[str, Parameter]:
    """Return what constructors of ours take; upstream's annotations are not always meant."""
    if not str(node.get('type')).startswith(PREFIX):
        return {}
    known: dict[str, Parameter] = {}
    for built in _find_types(cfg, path, node):
        for base in reversed(inspect.getmro(built)) if inspect.isclass(built) else ():
            if base.__module__.startswith(PREFIX) and '__init__' in vars(base):
                known |= inspect.signature(base.__init__).parameters
    return known


def _misspelt_top_level(cfg: Any) -> Iterator[str]:
    for key in cfg.keys() - TOP_LEVEL:
        for close in difflib.get_close_matches(key, TOP_LEVEL, n=1, cutoff=0.85):
            yield f'{key}: did you mean {close}?'


def _unknown_type(cfg: Any, path: str, node: Any) -> Iterator[str]:
    name = node.get('type')
    if not isinstance(name, str) or _find_types(cfg, path, node):
        return
    # Other people's types may not be imported yet: refuse only what is nearly one that is.
    ours = name.startswith(PREFIX)
    close = difflib.get_close_matches(name, _all_types(ours), n=1, cutoff=0.6 if ours else 0.85)
    if close or ours:
        yield f'{path}.type: there is no {name}' + (f'; did you mean {close[0]}?' if close else '')


def _unknown_arguments(cfg: Any, path: str, node: Any) -> Iterator[str]:
    types = _find_types(cfg, path, node)
    known = find_parameters(cfg, path, node)
    # Other people's types may be built by someone who takes keys away, or pass keys on: with
    # them only a slip of the pen is refused. What they do not take stops the run later.
    strict = all(built.__module__.startswith(PREFIX) for built in types)
    takes_more = any(_parameters(built)[1] for built in types)
    cutoff = 0.6 if strict else 0.9 if takes_more else 0.75
    for key in set(node) - known.keys() - ALWAYS_KNOWN if types else ():
        close = difflib.get_close_matches(key, known, n=1, cutoff=cutoff)
        if close or strict:
            name = node.get('type', types[0].__name__)
            hint = f'did you mean {close[0]}?' if close else f'it knows {", ".join(sorted(known))}'
            yield f'{path}.{key}: {name} has no such argument; {hint}'


def _find_types(cfg: Any, path: str, node: Any) -> list[Callable]:
    """Return what a node may build: its type in all registries, the Runner's where it has none."""
    name = node.get('type')
    if callable(name):
        return [name]
    if not isinstance(name, str):
        return _built_without_type(path, node)
    scope = None if name.startswith(PREFIX) else cfg.get('default_scope', 'mmengine')
    if (scope, name) not in _FOUND:
        found = list(_look_up(scope, name))
        if not found:
            return []  # its module may yet be imported
        _FOUND[scope, name] = found
    return _FOUND[scope, name]


def _look_up(scope: str | None, name: str) -> dict[Callable, None]:
    """Look a type up in all registries; mmengine tries to import the name in each of them."""
    nodes = _registries(root)
    if scope is not None:
        with suppress(ImportError):
            import_module(f'{scope}.registry')
        nodes = [node.children.get(scope, node) for node in nodes]
    found = (node.get(name) for node in nodes)
    return dict.fromkeys(each for each in found if each is not None)


def _built_without_type(path: str, node: Any) -> list[Callable]:
    key = path.rpartition('.')[2]
    if key.endswith('_dataloader') and 'dataset' in node:
        return [DataLoader]
    loop = EpochBasedTrainLoop if node.get('by_epoch', True) else IterBasedTrainLoop
    builders = {
        'optim_wrapper': OptimWrapper,
        'train_cfg': loop,
        'log_processor': LogProcessor,
        'randomness': Runner.set_randomness,
    }
    return [builders[path]] if path in builders else []


def _registries(module: Any) -> list[Registry]:
    return [node for node in vars(module).values() if isinstance(node, Registry)]


def _all_types(ours: bool) -> set[str]:
    if not ours:
        nodes = _registries(root)
        nodes += [child for node in nodes for child in node.children.values()]
        return {name for node in nodes for name in node.module_dict}
    nodes = _registries(import_module('mmpatchmix.registry'))
    return {PREFIX + name for node in nodes for name in node.module_dict}


def _parameters(built: Callable) -> tuple[dict[str, Parameter], bool]:
    """Return the arguments of a class or function, and whether it takes more than those.

    ``**kwargs`` are followed into the base classes. Of our own classes that is all there is;
    others may pass theirs to something else.
    """
    ours = built.__module__.startswith(PREFIX)
    chain = [built]
    if inspect.isclass(built):
        chain = [base.__init__ for base in inspect.getmro(built) if '__init__' in vars(base)]
    names: dict[str, Parameter] = {}
    for function in chain:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # written in C
            return names, True
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names = {p.name: p for p in named if p.name != 'self'} | names
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, function is not chain[0] and not ours
    return names, not ours
