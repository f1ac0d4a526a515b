"""Refuse misspelt config keys before anything is built."""

import difflib
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mmengine.registry import Registry
from mmengine.runner import Runner

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
}
# Top-level keys that the Runner or the tools read and that are no Runner argument.
ALSO_TOP_LEVEL = {
    'auto_scale_lr',
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'resume',
    'sync_bn',
    'tta_model',
}


def check_config(cfg: dict) -> None:
    """Check the keys of a config that mmengine itself would pass over or trip over late.

    Args:
        cfg: A whole config (``mmengine.Config`` or a dict).

    Raises:
        ValueError: Naming every key that a type of ours does not know, and every
            top-level key that is almost, but not quite, one of the Runner's.
    """
    cfg = dict(cfg.items())  # mmengine's Config is no dict
    problems = list(_misspelt_top_level(cfg))
    for path, node in _typed_dicts(cfg, ''):
        problems += _unknown_arguments(path, node)
    if problems:
        raise ValueError('the config has keys that nothing reads:\n  ' + '\n  '.join(problems))


def _misspelt_top_level(cfg: dict) -> Iterator[str]:
    known = set(inspect.signature(Runner.__init__).parameters) - {'self'} | ALSO_TOP_LEVEL
    for key in cfg:
        if key in known:
            continue
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
        if close:
            yield f'{key}: did you mean {close[0]}?'


def _typed_dicts(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """All dicts below ``node`` whose type is ours, with their dotted paths."""
    if isinstance(node, dict):
        if isinstance(node.get('type'), str) and node['type'].startswith(PREFIX):
            yield path, node
        for key, value in node.items():
            yield from _typed_dicts(value, f'{path}.{key}' if path else str(key))
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _typed_dicts(value, f'{path}[{index}]')


def _unknown_arguments(path: str, node: dict) -> Iterator[str]:
    cls = _find_type(node['type'].removeprefix(PREFIX))
    if cls is None:
        names = difflib.get_close_matches(node['type'], _all_types(), n=1, cutoff=0.6)
        hint = f'; did you mean {names[0]}?' if names else ''
        yield f'{path}.type: there is no {node["type"]}{hint}'
        return
    known = _parameters(cls)
    for key in node:
        if key not in known | ALWAYS_KNOWN:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f'did you mean {close[0]}?' if close else f'it knows {", ".join(sorted(known))}'
            yield f'{path}.{key}: {node["type"]} has no such argument; {hint}'


def _registries() -> list[Registry]:
    module = import_module('mmpatchmix.registry')
    nodes = [node for node in vars(module).values() if isinstance(node, Registry)]
    for node in nodes:
        node.import_from_location()
    return nodes


def _find_type(name: str) -> type | None:
    found = (node.module_dict.get(name) for node in _registries())
    return next((cls for cls in found if cls is not None), None)


def _all_types() -> list[str]:
    return [PREFIX + name for node in _registries() for name in node.module_dict]


def _parameters(cls: type) -> set[str]:
    """Names of all constructor arguments, through ``**kwargs`` into the base classes."""
    names: set[str] = set()
    for base in inspect.getmro(cls):
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}
