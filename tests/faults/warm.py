"""What forks of `chaos.py` find done: imports, enlarged digits, the report's template."""

from typing import Any

import mmdet.datasets  # noqa: F401
from jinja2 import Environment, PackageLoader

import tests.quick  # noqa: F401  keeps the digits
from mmpatchmix.datasets import Digits
from tests.faults import chaos  # noqa: F401

for split in ('train', 'test'):
    Digits(split)

_compile, _compiled = Environment.compile, {}


def compile_once(self: Environment, source: str, *args: Any, **kwargs: Any) -> Any:
    """Return the code of a template, compiled once."""
    if source not in _compiled:
        _compiled[source] = _compile(self, source, *args, **kwargs)
    return _compiled[source]


Environment.compile = compile_once
options = dict(autoescape=True, trim_blocks=True, lstrip_blocks=True)  # those of the report
loader = PackageLoader('mmpatchmix', 'report')
Environment(loader=loader, **options).get_template('report.html.jinja')
