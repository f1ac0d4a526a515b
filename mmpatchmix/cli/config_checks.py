"""Checks of a config before anything is built, and ``--cfg-options``.

Unknown keys and values of the wrong type are refused for types of ours (``mmpatchmix.*``), by the
signatures and annotations of their constructors. Of other types only misspelt names and keywords
are refused: a config that mmdet or mmpretrain builds passes.
"""

import ast
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mmengine import registry as root
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from torch.utils.data import DataLoader

from mmpatchmix.cli.verb import walk_dicts

PREFIX = 'mmpatchmix.'
# Keys that mmengine reads wherever it builds a config dict.
ALWAYS_KNOWN = {'type', '_scope_', '_delete_', 'priority', 'init_cfg', 'convert_to_iter_based'}
ALWAYS_KNOWN |= {'constructor', 'paramwise_cfg'}  # of every optimizer wrapper
# Top-level keys that the Runner takes, or that it or the tools read in its config.
TOP_LEVEL = set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'}
TOP_LEVEL |= {'activation_checkpointing', 'compile', 'custom_imports', 'efficient_conv_bn_eval'}
TOP_LEVEL |= {'find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'sync_bn', 'tta_model'}

REGISTRIES = [each for each in vars(root).values() if isinstance(each, Registry)]
# Without a type, these are built or called.
DEFAULTS = {'optim_wrapper': OptimWrapper, 'log_processor': LogProcessor}
DEFAULTS['randomness'] = Runner.set_randomness
# Keys that an argument sets in all places.
ARGUMENTS = {'data_root': '--data-root', 'max_epochs': '--epochs', 'num_workers': '--workers'}


def check_config(cfg: Any) -> None:
    """Raise a ValueError with every unknown key or type of a config, and every unfit value."""
    _look_up.cache_clear()  # a notebook may have registered a class again
    problems = [
        f'{key}: did you mean {near}?'
        for key in cfg.keys() - TOP_LEVEL
        for near in difflib.get_close_matches(key, TOP_LEVEL, n=1, cutoff=0.85)
    ]
    for path, node in walk_dicts(cfg):
        built = find_types(cfg, path, node)
        name = node.get('type')
        problems += _check_node(path, node, built) if built else _check_type(f'{path}.type', name)
    constructor = (cfg.get('optim_wrapper') or {}).get('constructor')
    if constructor and not find_types(cfg, '', dict(type=constructor)):
        problems += _check_type('optim_wrapper.constructor', constructor)
    if problems:
        raise ValueError('\n  '.join(['the config has unknown keys or wrong values:', *problems]))


def _check_type(key: str, name: Any) -> Iterator[str]:
    """Yield a line if an unregistered name is of ours, an optimizer's, or like a registered one."""
    # Training never builds the test parts; two configs of mmdet have a misspelt type there.
    if not isinstance(name, str) or (key.startswith('test_') and not name.startswith(PREFIX)):
        return
    nodes = REGISTRIES + [child for node in REGISTRIES for child in node.children.values()]
    known = {each for node in nodes for each in node.module_dict}
    known |= {f'{node.scope}.{each}' for node in nodes for each in node.module_dict}
    # Other packages may be imported later, or lack a dependency: BertModelCN is not BertModel.
    ours = name.startswith(PREFIX)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if ours else 0.905)
    required = ours or key.startswith('optim_wrapper.')
    if (required or near) and name not in known:  # known to another scope: no default_scope
        hint = f'did you mean {near[0]}?' if near else 'is its package installed?'
        yield f'{key}: there is no {name}; {hint}'


def _check_node(path: str, node: Any, built: list[Callable]) -> Iterator[str]:
    """Yield a line per key that the types do not take, and per value of another type."""
    # Upstream code may remove keys before it builds a type, or pass **kwargs on.
    ours = all(each.__module__.startswith(PREFIX) for each in built)
    known, takes_more = _merge_parameters(built)
    own = _merge_parameters(built, PREFIX)[0] if ours else {}
    for key, value in node.items():
        if key in own and not fits(value, hint := own[key].annotation):
            wanted = inspect.formatannotation(hint).replace('collections.abc.', '')
            default = own[key].default
            example = f', such as {default!r}' if default not in (Parameter.empty, None) else ''
            yield f'{path}.{key}={value!r:.60} must be {wanted}{example}'
        elif key not in known.keys() | ALWAYS_KNOWN and (ours or not takes_more):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6 if ours else 0.85)
            hint = f'did you mean {near[0]}?' if near else f'it has {", ".join(sorted(known))}'
            if near or ours:
                name = node.get('type', built[0].__name__)
                yield f'{path}.{key}: {name} has no such argument; {hint}'


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value of a config fits an annotation; a dict may build any object."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(fits(value, arg) for arg in args)
    if kind is Literal:
        return value in args
    if kind in (Parameter.empty, Any) or not isinstance(kind, type):
        return True
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    if kind in (int, float):
        is_number = isinstance(value, int | kind) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if kind in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if kind is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(fits, value, args))
        return not args or all(fits(each, args[0]) for each in value)
    return isinstance(value, kind | Mapping)


def find_types(cfg: Any, path: str, node: Any) -> list[Callable]:
    """Return the classes or functions that a node may build, by its type or its dotted key."""
    name = node.get('type')
    if isinstance(name, str):
        scope = None if name.startswith(PREFIX) else cfg.get('default_scope') or 'mmengine'
        return _look_up(scope, name)
    if path.endswith('_dataloader') and 'dataset' in node:
        name = DataLoader
    elif path == 'train_cfg' and name is None:
        name = EpochBasedTrainLoop if node.get('by_epoch', True) else IterBasedTrainLoop
    name = name or DEFAULTS.get(path)
    return [name] if callable(name) else []


@cache
def _look_up(scope: str | None, name: str) -> list[Callable]:
    nodes = REGISTRIES
    if scope is not None:
        with suppress(ImportError):
            import_module(f'{scope}.registry')
        nodes = [each.children.get(scope, each) for each in nodes]
    found = [each.get(name) for each in nodes]
    return list(dict.fromkeys(each for each in found if each is not None))


def _merge_parameters(built: list[Callable], prefix: str = '') -> tuple[dict[str, Parameter], bool]:
    """Return the arguments of types, with those of bases by ``**kwargs``, and if one has those."""
    known, takes_more = {}, False
    for each in built:
        bases = inspect.getmro(each) if inspect.isclass(each) else ()
        bases = [base for base in bases if base.__module__.startswith(prefix)]
        for function in [b.__init__ for b in bases if '__init__' in vars(b)] or [each]:
            try:
                parameters = inspect.signature(function).parameters
            except (TypeError, ValueError):  # written in C
                return known, True
            named = {k: p for k, p in parameters.items() if k not in ('self', 'args', 'kwargs')}
            known = named | known
            if not any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values()):
                break
            takes_more = True
    return known, takes_more


def apply_options(cfg: Config, texts: Iterable[str]) -> None:
    """Apply ``--cfg-options``: ``KEY=VALUE`` as in mmengine, or ``KEY=dict(type=Name, key=1)``."""
    options = dict(map(_parse, texts))
    problems = [text for key, value in options.items() for text in _check_option(cfg, key, value)]
    if problems:
        raise ValueError('--cfg-options:\n  ' + '\n  '.join(problems))
    nodes = dict(walk_dicts(cfg))
    for key, value in options.items():
        path, _, name = key.rpartition('.')
        old = nodes.get(path, {}).get(name, value)
        if isinstance(value, dict) and not isinstance(old, dict | list):
            value['_delete_'] = True  # a dict replaces None or a number; mmengine refuses it
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:  # no such place in a list
        raise ValueError(f'--cfg-options: {error.args[0]}') from error


def _parse(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition('=')
    if not (key and sign):
        raise ValueError(f'--cfg-options {text}: write KEY=VALUE, without spaces around "=".')
    try:
        if 'dict(' in value or '{' in value:
            return key, _evaluate(ast.parse(value.strip(), mode='eval').body)
        return key, DictAction._parse_iterable(value)
    except (ValueError, SyntaxError, AssertionError) as error:
        raise ValueError(
            f'--cfg-options {key}: {value!r} cannot be parsed ({error}). Write dicts as in Python, '
            """in quotes for the shell: KEY="dict(type='Name', path='/a/b')"."""
        ) from error


def _evaluate(node: ast.expr) -> Any:
    """Return the value of literals and ``dict(...)``; bare names are strings."""
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=pairs):
            return {pair.arg: _evaluate(pair.value) for pair in pairs}
        case ast.Dict(keys=keys, values=values):
            return {_evaluate(k): _evaluate(v) for k, v in zip(keys, values, strict=True)}
        case ast.List(elts=parts):
            return [_evaluate(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(_evaluate(part) for part in parts)
        case ast.Name() | ast.Attribute():
            return DictAction._parse_int_float_bool(ast.unparse(node))
    return ast.literal_eval(node)


def _check_option(cfg: Config, key: str, value: Any) -> Iterator[str]:
    """Yield a line if a key is read nowhere, or a text would replace a number."""
    nodes, (first, *rest) = dict(walk_dicts(cfg)), key.split('.')
    if first not in TOP_LEVEL:
        homes = [f'{path}.{key}' for path, node in nodes.items() if path and first in node]
        near = difflib.get_close_matches(first, TOP_LEVEL, n=1)
        hint = f'did you mean {".".join([*near, *rest])}?' if near else 'see the config file.'
        if homes:
            argument = f'; {ARGUMENTS[key]} sets all of them' if key in ARGUMENTS else ''
            hint = f'there is {", ".join(homes[:4])}{argument}'
        yield f'{key}: not read at the top level; {hint}'
        return
    path = first
    for part in rest:
        node = nodes.get(path, {})  # no dict: a list, or a key that does not exist yet
        known, _ = _merge_parameters(find_types(cfg, path, node))
        path, old = f'{path}.{part}', node.get(part)
        if part not in node and part not in known:
            for near in difflib.get_close_matches(part, node, n=1, cutoff=0.8):
                yield f'{path}: there is no such key; did you mean {near}?'
        if isinstance(value, str) and isinstance(old, int | float):
            texts = str(known[part].annotation) if part in known else ''
            if 'str' not in texts and not isinstance(getattr(known.get(part), 'default', 0), str):
                kind = 'True or False' if isinstance(old, bool) else 'a number'
                yield f'{key}={value!r} must be {kind}, such as {old}'
