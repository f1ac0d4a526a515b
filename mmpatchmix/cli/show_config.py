"""Print a config without running it.

mmpatchmix show-config FILE

A config is a program, and reading it the usual way runs it. Here its text is worked out:
assignments, dicts, lists, sums, _base_ and what is taken from it. What is beyond that (imports,
functions, loops) is not run but shown as it is written, and listed at the end.
"""

import argparse
import ast
import operator
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from pprint import pformat
from typing import Any

from mmpatchmix.cli.arguments import new_parser
from mmpatchmix.cli.errors import exit_on_user_error
from mmpatchmix.cli.find_config import find_config

ENV = re.compile(r'\{\{[\'"]?\s*\$(\w+)\s*:\s*(\S*?)\s*[\'"]?\}\}')
FUNCTIONS = {f.__name__: f for f in (dict, list, tuple, set, int, float, str, bool, len)}
METHODS = {dict: {'pop', 'get', 'update', 'keys', 'values', 'items', 'copy', 'setdefault'}}
METHODS[list] = {'append', 'extend', 'insert', 'pop', 'copy'}
MAX_LENGTH = 10_000
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.Gt: operator.gt,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class Unknown:
    """An expression that is shown as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Return what is printed in the place of the value."""
        return f'<not worked out: {self.text}>'


class ConfigText:
    """The text of a config, worked out as far as that goes without running it.

    Args:
        path: A ``.py`` file.
        readers: Files that led here, so that a loop of ``_base_`` ends.

    Attributes:
        names: The variables of the config, with those of ``_base_``.
        problems: What was not worked out: file, line and text.

    Raises:
        ValueError: If the file is no Python, or ``_base_`` leads back to it.
    """

    def __init__(self, path: Path, readers: tuple[Path, ...] = ()) -> None:
        self.path, self.problems = path.resolve(), []
        if self.path in readers:
            raise ValueError(f'{path}: _base_ leads back to this file.')
        if path.suffix != '.py':
            raise ValueError(
                f'{path}: only configs in Python are worked out; open it in an editor.'
            )
        text = path.read_text(encoding='utf-8')
        text = ENV.sub(lambda found: os.environ.get(found[1], found[2]), text)
        try:
            body = ast.parse(text).body
        except (SyntaxError, RecursionError, ValueError) as error:
            raise ValueError(f'{path} is no Python: {error}') from error
        bases = [node for node in body if _assigned(node) == ['_base_']]
        self.names: dict[str, Any] = {'_base_': self._read_bases(bases, (*readers, self.path))}
        for node in body:
            if node not in bases:
                self._try(node)
        self.names = self._merge(self.names)

    def _merge(self, names: dict[str, Any]) -> dict[str, Any]:
        from mmengine.config import Config, ConfigDict

        base = ConfigDict(names.pop('_base_'))
        own = {key: value for key, value in names.items() if not key.startswith('__')}
        return Config._merge_a_into_b(own, base)

    def _read_bases(self, nodes: list[ast.stmt], readers: tuple[Path, ...]) -> dict[str, Any]:
        base: dict[str, Any] = {}
        for node in nodes:
            try:
                names = ast.literal_eval(node.value)
            except ValueError:
                self._note(node)
                continue
            for name in [names] if isinstance(names, str) else names:
                file = self._find(str(name))
                if file is None or not file.is_file():
                    self._note(node, f'there is no {name}')
                    continue
                text = ConfigText(file, readers)
                base |= text.names
                self.problems += text.problems
        return _plain(base)

    def _find(self, name: str) -> Path | None:
        package, sign, inside = name.partition('::')
        if not sign:
            return self.path.parent / name
        spec = find_spec(package) if package.isidentifier() else None  # imports nothing
        folders = spec.submodule_search_locations if spec else None
        return Path(folders[0], '.mim', 'configs', inside) if folders else None

    def _note(self, node: ast.AST, text: str = '') -> None:
        self.problems.append(f'{self.path}:{node.lineno}: {text or _short(node)}')

    def _try(self, node: ast.stmt) -> None:
        """Work out a statement; note it and show its text where that is not possible."""
        try:
            self._run(node)
        except Exception:  # whatever the text of a stranger makes of plain values
            self._note(node)
            for name in _assigned(node):
                self.names[name] = Unknown(_short(node))

    def _run(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                result = self._value(value)
                for target in targets:
                    self._assign(target, result)
            case ast.Delete(targets=targets):
                for target in targets:
                    del self.names[target.id]
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                self.names[name] = self._apply(op, self.names[name], self._value(value))
            case ast.Expr(value=value):
                self._value(value)
            case ast.For(target=ast.Name(id=name), iter=items, body=body, orelse=[]):
                for item in self._items(items):
                    self.names[name] = item
                    for inner in body:
                        self._run(inner)
            case _:
                raise ValueError

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name) if name != '_base_':
                self.names[name] = value
            case ast.Tuple(elts=parts):
                for part, each in zip(parts, value, strict=True):
                    self._assign(part, each)
            case ast.Attribute(value=owner, attr=key):
                self._of_kind(owner, dict)[key] = value
            case ast.Subscript(value=owner, slice=key):
                self._of_kind(owner, dict | list)[self._value(key)] = value
            case _:
                raise ValueError

    def _of_kind(self, node: ast.expr, kind: Any) -> Any:
        value = self._value(node)
        if not isinstance(value, kind):
            raise ValueError
        return value

    def _apply(self, op: ast.AST, left: Any, right: Any) -> Any:
        # 'a' * 10**10, and numbers and lists that double in each line, would fill the memory.
        sizes = [len(side) for side in (left, right) if hasattr(side, '__len__')]
        numbers = [side for side in (left, right) if isinstance(side, int)]
        times = numbers[0] if sizes and numbers and isinstance(op, ast.Mult) else 1
        if sum(sizes) * times > MAX_LENGTH or any(n.bit_length() > 1000 for n in numbers):
            raise ValueError
        if isinstance(op, ast.Mod) and isinstance(left, str):
            raise ValueError
        return OPERATORS[type(op)](left, right)

    def _value(self, node: ast.expr) -> Any:
        """Work out an expression of plain values; any exception means: it is none."""
        see = self._value
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                value = self.names[name]
                if isinstance(value, Unknown):
                    raise ValueError
                return value
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                kinds = {ast.List: list, ast.Tuple: tuple, ast.Set: set}
                return kinds[type(node)](self._spread(parts))
            case ast.Dict(keys=keys, values=values):
                result: dict = {}
                for key, value in zip(keys, values, strict=True):
                    result |= see(value) if key is None else {see(key): see(value)}
                return result
            case ast.Attribute(value=owner, attr=key):
                return self._of_kind(owner, dict)[key]
            case ast.Subscript(value=owner, slice=key) if not isinstance(key, ast.Slice):
                return self._of_kind(owner, dict | list | tuple)[see(key)]
            case ast.BinOp(left=left, op=op, right=right):
                return self._apply(op, see(left), see(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -see(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not see(operand)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._apply(op, see(left), see(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return see(body) if see(test) else see(orelse)
            case ast.ListComp(elt=part, generators=[ast.comprehension(target=ast.Name() as name)]):
                return self._repeat(part, name.id, node.generators[0])
            case ast.Call():
                return self._call(node)
        raise ValueError

    def _spread(self, parts: list[ast.expr]) -> list[Any]:
        values: list[Any] = []
        for part in parts:
            values += (
                self._value(part.value) if isinstance(part, ast.Starred) else [self._value(part)]
            )
        return values

    def _repeat(self, part: ast.expr, name: str, loop: ast.comprehension) -> list[Any]:
        values, before = [], dict(self.names)
        for item in self._items(loop.iter):
            self.names[name] = item
            if all(self._value(test) for test in loop.ifs):
                values.append(self._value(part))
        self.names = before
        return values

    def _items(self, node: ast.expr) -> list[Any]:
        items = list(self._value(node))
        if len(items) > MAX_LENGTH:
            raise ValueError
        return items

    def _call(self, node: ast.Call) -> Any:
        args, options = self._spread(node.args), {}
        for pair in node.keywords:
            value = self._value(pair.value)
            options |= value if pair.arg is None else {pair.arg: value}
        match node.func:
            case ast.Name(id=name) if name in FUNCTIONS and name not in self.names:
                return FUNCTIONS[name](*args, **options)
            case ast.Attribute(value=owner, attr=name):
                value = self._value(owner)
                if name in METHODS.get(type(value), ()):
                    return getattr(value, name)(*args, **options)
        raise ValueError


def _plain(node: Any) -> Any:
    """Turn mmengine's dicts, whose attributes are keys, into plain ones."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return type(node)(map(_plain, node)) if isinstance(node, list | tuple) else node


def _assigned(node: ast.stmt) -> list[str]:
    """Return the names that a statement gives values, at any depth."""
    kinds = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For)
    nodes = ast.walk(node) if isinstance(node, kinds) else ()
    return [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _short(node: ast.AST) -> str:
    text = ' '.join(ast.unparse(node).split())
    return text if len(text) <= 100 else f'{text[:97]}...'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('show-config', __doc__)
    parser.add_argument('config', help='config file, or the name of a shipped recipe')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a config; return 1 where something of it was not worked out."""
    args = parse_args(argv)
    with exit_on_user_error():
        text = ConfigText(find_config(args.config))
        for name, value in text.names.items():
            print(f'{name} = {pformat(_plain(value), sort_dicts=False, width=100)}')
        if text.problems:
            print('\nnot worked out, and not run:', *text.problems, sep='\n  ', file=sys.stderr)
    return int(bool(text.problems))
