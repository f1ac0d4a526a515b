"""Refuse values of the wrong kind or out of range before anything is built."""

import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal, Union, get_args, get_origin

from mmpatchmix.cli.walk_config import walk_dicts

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
