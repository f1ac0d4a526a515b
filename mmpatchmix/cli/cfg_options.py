"""``--cfg-options KEY=VALUE``: read the values, refuse keys and kinds that nothing could use."""

import ast
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config, DictAction

from mmpatchmix.cli.check_config import TOP_LEVEL, find_parameters
from mmpatchmix.cli.walk_config import walk_dicts

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
