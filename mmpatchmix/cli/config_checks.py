"""Refuse misspelt config keys, and values that no one could take, before anything is built."""

import ast
import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from inspect import Parameter
from typing import Any, Literal, Union, get_args, get_origin

from mmengine import registry as root
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, LogProcessor, Runner
from torch.utils.data import DataLoader

from mmpatchmix.cli.verb import walk_dicts

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


WORDS = {
    int: 'a whole number',
    float: 'a number',
    bool: 'True or False',
    str: 'a text',
    dict: 'a dict',
    type(None): 'None',
}


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number; 2.0, True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_whole(value) and value >= low, f'a whole number of at least {low}'


def _number(low: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_number(value) and value >= low, f'a number of at least {low:g}'


def _or_none(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value is None or rule[0](value), f'{rule[1]}, or None'


def _one_of(*values: Any) -> tuple[Callable[[Any], bool], str]:
    # 1 equals True, but is not meant to.
    allowed = {(type(value), value) for value in values}
    return (
        lambda value: isinstance(value, str | bool | None) and (type(value), value) in allowed,
        ' or '.join(map(str, values)),
    )


def _dict(remedy: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, Mapping), f'a dict{remedy}'


def _is_pair_below_one(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) in (2, 3)
        and all(is_number(share) and 0 <= share < 1 for share in value)
    )


FLAG = _one_of(True, False)

ABOVE_ZERO = (lambda value: is_number(value) and value > 0, 'a number above 0')

SHARE = (lambda value: is_number(value) and 0 <= value < 1, 'a number from 0 to below 1')

EVERY = (lambda value: is_whole(value) and (value >= 1 or value == -1), 'a whole number, or -1')

LOADER, SCHEDULER = r'.*_dataloader', r'param_scheduler\.\d+'

# What upstream's types take without looking; those of ours say it themselves.
RULES = {
    rf'{LOADER}\.batch_size': _or_none(_whole(1)),
    rf'{LOADER}\.num_workers': _whole(0),
    rf'{LOADER}\.prefetch_factor': _or_none(_whole(1)),
    rf'{LOADER}\.timeout': _number(0),
    rf'{LOADER}\.(persistent_workers|pin_memory|drop_last|sampler\.shuffle)': FLAG,
    rf'{LOADER}\.sampler\.seed': _or_none(_whole(0)),
    rf'{LOADER}\.dataset': _dict(' with the type of the data set'),
    r'optim_wrapper\.optimizer': _dict(" such as dict(type='AdamW', lr=1e-3)"),
    r'optim_wrapper\.optimizer\.(lr|eps)': ABOVE_ZERO,
    r'optim_wrapper\.optimizer\.weight_decay': _number(0),
    r'optim_wrapper\.optimizer\.momentum': SHARE,
    r'optim_wrapper\.optimizer\.betas': (_is_pair_below_one, 'two numbers from 0 to below 1'),
    r'optim_wrapper\.accumulative_counts': _whole(1),
    r'optim_wrapper\.clip_grad': _or_none(_dict(' such as dict(max_norm=1.0)')),
    r'optim_wrapper\.clip_grad\.max_norm': ABOVE_ZERO,
    r'train_cfg\.(max_epochs|max_iters)': _whole(1),
    r'train_cfg\.val_interval': _whole(1),
    r'train_cfg\.val_begin': _whole(0),
    r'train_cfg\.by_epoch': FLAG,
    rf'{SCHEDULER}\.(begin|eta_min|start_factor|end_factor)': _number(0),
    rf'{SCHEDULER}\.(end|T_max)': ABOVE_ZERO,
    rf'{SCHEDULER}\.gamma': ABOVE_ZERO,
    rf'{SCHEDULER}\.(by_epoch|convert_to_iter_based|verbose)': FLAG,
    r'model': _dict(' with the type of the model'),
    r'model\.backbone\.(in_channels|patch_size)': _whole(1),
    r'model\.(neck|head\.predictor)\.(in_channels|hid_channels|out_channels|num_layers)': _whole(1),
    r'model\.backbone\.(drop_path_rate|drop_rate)': SHARE,
    r'model\.backbone\.arch\.(embed_dims|num_layers|num_heads|feedforward_channels)': _whole(1),
    r'model\.(.*\.)?with_cp': FLAG,
    r'default_hooks': _dict(
        '; without one checkpoints, log and momentum would go by other rules. One hook is '
        'switched off by default_hooks=dict(NAME=None)'
    ),
    r'default_hooks\.checkpoint\.(interval|max_keep_ckpts)': EVERY,
    r'default_hooks\.logger\.interval': _whole(1),
    r'env_cfg': _dict(" such as dict(dist_cfg=dict(backend='nccl'))"),
    r'env_cfg\.dist_cfg': _dict(" such as dict(backend='nccl')"),
    r'env_cfg\.dist_cfg\.timeout': ABOVE_ZERO,
    r'env_cfg\.cudnn_benchmark': FLAG,
    r'randomness': _dict(' such as dict(seed=0)'),
    r'randomness\.seed': _or_none(_whole(0)),
    r'randomness\.(diff_rank_seed|deterministic)': FLAG,
    r'auto_scale_lr': _or_none(_dict(' such as dict(base_batch_size=1024)')),
    r'auto_scale_lr\.base_batch_size': _whole(1),
    r'auto_scale_lr\.enable': FLAG,
    r'log_processor\.window_size': _whole(1),
    r'log_level': _one_of('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL', 'NOTSET'),
    r'resume': FLAG,
    r'load_from': (lambda value: value is None or isinstance(value, str), 'a path, or None'),
    r'sync_bn': _one_of(None, 'torch', 'mmcv'),
    r'find_unused_parameters': FLAG,
}

_RULES = [(re.compile(pattern), *rule) for pattern, rule in RULES.items()]


def find_wrong_values(
    cfg: Any, find_own: Callable[[str, Any], dict[str, Parameter]]
) -> Iterator[str]:
    """Yield one line per value that its reader could not take.

    Args:
        cfg: A whole config.
        find_own: Returns the arguments of a node's type where it is one of ours, by name.

    Yields:
        Dotted key, value, what it must be.
    """
    for path, node in walk_dicts(cfg):
        own = find_own(path, node)
        for key, value in node.items():
            full = f'{path}.{key}' if path else str(key)
            if key in own and not fits(value, own[key].annotation):
                yield f'{full}={_shown(value)} must be {_in_words(own[key])}'
                continue
            for pattern, is_good, wanted in _RULES:
                if pattern.fullmatch(full) and not is_good(value):
                    yield f'{full}={_shown(value)} must be {wanted}'


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a value is of the kind that an annotation says; True where it says too much.

    Args:
        value: Of a config.
        hint: An annotation.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if hint is None or hint is type(None):
        return value is None
    if hint is Parameter.empty:
        return True
    kind = origin or hint
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind is int:
        return is_whole(value)
    if kind is float:
        return is_number(value)
    if kind is dict:
        return isinstance(value, Mapping)
    if kind in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if kind is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(fits, value, args))
        return not args or all(fits(each, args[0]) for each in value)
    if isinstance(kind, type):  # what a dict of the config builds
        return isinstance(value, kind | Mapping)
    return True


def _in_words(parameter: Parameter) -> str:
    hint, default = parameter.annotation, parameter.default
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    words = [WORDS.get(get_origin(each) or each, inspect.formatannotation(each)) for each in hints]
    text = ' or '.join(word.replace('collections.abc.', '') for word in words)
    such = default is not Parameter.empty and default is not None
    return f'{text}, such as {default!r}' if such else text


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f'{text[:57]}...'


# Keys that an argument sets wherever they belong.
ARGUMENTS = {'data_root': '--data-root', 'max_epochs': '--epochs', 'num_workers': '--workers'}


def apply_options(cfg: Config, texts: Iterable[str]) -> None:
    """Set values of a config.

    Args:
        cfg: The config; changed in place.
        texts: ``KEY=VALUE`` each, as mmengine's ``DictAction`` takes them, and dicts, written
            ``dict(type=Name, key=1)`` or ``{...}``.

    Raises:
        ValueError: Naming all keys and values that cannot be meant.
    """
    options = dict(map(_parse, texts))
    problems = [text for key, value in options.items() for text in _problems(cfg, key, value)]
    if problems:
        raise ValueError('--cfg-options:\n  ' + '\n  '.join(problems))
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError) as error:  # no such place in a list, a dict instead of a value
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
            f'--cfg-options {key}: {value!r} is no value ({error}). Write dicts as Python does, '
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


def _problems(cfg: Config, key: str, value: Any) -> Iterator[str]:
    first, *_ = key.split('.')
    if first not in TOP_LEVEL:
        yield f'{key}: nothing reads it at the top level; {_find_home(cfg, key)}'
        return
    node, path = cfg, ''
    for part in key.split('.'):
        if isinstance(node, list | tuple):
            node = {str(index): each for index, each in enumerate(node)}
        if not hasattr(node, 'items'):
            return  # mmengine says so when it merges
        parent, parent_path, path = node, path, f'{path}.{part}'.lstrip('.')
        if part not in node:
            # Where a type says what it takes, check_config knows better.
            if parent_path and 'type' not in node:
                for near in difflib.get_close_matches(part, map(str, node), n=1, cutoff=0.8):
                    yield f'{path}: there is no such key; did you mean {near}?'
            return
        node = node[part]
    if isinstance(value, str) and isinstance(node, int | float):
        parameter = find_parameters(cfg, parent_path, parent).get(part)
        if parameter is None or not (
            'str' in str(parameter.annotation) or isinstance(parameter.default, str)
        ):
            kind = 'True or False' if isinstance(node, bool) else 'a number'
            yield f'{key}={value!r} must be {kind}, such as {node}'


def _find_home(cfg: Config, key: str) -> str:
    """Say where a key belongs that was written on the top level."""
    first, *rest = key.split('.')
    homes = [f'{path}.{key}' for path, node in walk_dicts(cfg) if path and first in node]
    if homes:
        more = f', and {len(homes) - 4} more places' if len(homes) > 4 else ''
        known = f'; {ARGUMENTS[key]} sets them all' if key in ARGUMENTS else ''
        return f'there is {", ".join(homes[:4])}{more}{known}'
    near = difflib.get_close_matches(first, TOP_LEVEL, n=1)
    if near:
        return f'did you mean {".".join([near[0], *rest])}?'
    return 'variables of your own belong into the config file.'
