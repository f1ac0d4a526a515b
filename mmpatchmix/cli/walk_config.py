"""Walk over a config."""

from collections.abc import Iterator
from typing import Any


def walk_dicts(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield all dicts of a config at any depth, itself included.

    Args:
        node: mmengine's ``Config`` or any part of one.
        path: The key of ``node``.

    Yields:
        Dotted key, as ``--cfg-options`` takes it (``param_scheduler.0``), and dict.
    """
    if hasattr(node, 'items'):
        yield path, node
        items = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from walk_dicts(value, f'{path}.{key}' if path else str(key))
