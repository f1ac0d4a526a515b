"""What a run is, written down where it starts: the report of any later day reads it."""

import json
import os
import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from mmpatchmix import __version__
from mmpatchmix.checkpoints.sealing import write_text
from mmpatchmix.visualization.run_record import ABOUT

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'timm', 'numpy')
# Under which the tools leave their description of the run in the message hub.
DESCRIBED = 'described'
# Keys that tell where a run was, not what it was.
PLACES = ('work_dir', 'launcher', 'experiment_name')


def write_start(runner: Runner) -> None:
    """Write down what starts, beside its log."""
    _write(runner, describe_start(runner))


def write_end(runner: Runner) -> None:
    """Add when the run ended."""
    path = Path(runner.log_dir) / ABOUT
    about = json.loads(path.read_text(encoding='utf-8'))
    _write(runner, about | {'ended': _now()})


def describe_start(runner: Runner) -> dict[str, Any]:
    """Describe a run that starts: config, recipe, length, data, machine."""
    # Here, not above: the command line imports what is above.
    from mmpatchmix.cli.describe_machine import describe_machine

    cfg, loop = runner.cfg, runner.train_loop
    values = flatten(cfg.to_dict())
    recipe, differences = compare_with_recipe(cfg.text or '', values)
    machine = describe_machine()
    machine.pop('date'), machine.pop('torch')
    machine |= {'ranks': get_world_size(), 'system': platform.platform()}
    return {
        'started': _now(),
        'command': ' '.join(sys.argv),
        'config_name': Path(cfg.filename).name if cfg.filename else None,
        'recipe': recipe,
        'differences': differences,
        'values': values,
        'max_epochs': loop.max_epochs,
        'max_iters': loop.max_iters,
        'described': runner.message_hub.get_info(DESCRIBED, {}),
        'machine': machine,
        'versions': {'mmpatchmix': __version__, 'python': platform.python_version()} | _versions(),
    }


def compare_with_recipe(
    text: str, values: dict[str, str]
) -> tuple[str | None, list[tuple[str, str, str]]]:
    """Find the shipped recipe that a config is or inherits from, and what was changed of it.

    Args:
        text: Of the config, as mmengine keeps it: each file's name before what is in it.
        values: Of the config, from :func:`flatten`.

    Returns:
        tuple: Name of the recipe, None where there is none; and key, shipped value and own
        value of each difference, empty for what is not there.
    """
    from mmpatchmix.cli.find_config import list_recipes

    names = {path.resolve(): name for name, path in list_recipes().items()}
    lines = [line for line in text.splitlines() if line.endswith('.py') and os.path.isfile(line)]
    # What a config inherits from comes before it.
    files = [Path(line).resolve() for line in reversed(lines)]
    file = next((file for file in files if file in names), None)
    if file is None:
        return None, []
    shipped = flatten(Config.fromfile(file).to_dict())
    keys = [*shipped, *(key for key in values if key not in shipped)]
    return names[file], [
        (key, shipped.get(key, ''), values.get(key, ''))
        for key in keys
        if shipped.get(key) != values.get(key)
    ]


def flatten(node: Any, prefix: str = '') -> dict[str, str]:
    """Return the values below a node by their dotted keys, as Python writes them."""
    if isinstance(node, dict) and node:
        parts = node.items()
    elif isinstance(node, list | tuple) and any(isinstance(part, dict) for part in node):
        parts = enumerate(node)
    else:
        return {prefix: repr(list(node) if isinstance(node, tuple) else node)}
    flat: dict[str, str] = {}
    for key, value in parts:
        if key not in PLACES:
            flat |= flatten(value, f'{prefix}.{key}' if prefix else str(key))
    return flat


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        for distribution in (f'onedl-{name}', 'onedl-mmdetection' if name == 'mmdet' else name):
            try:
                found.setdefault(name, version(distribution))
            except PackageNotFoundError:
                continue
    return found


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec='seconds')


def _write(runner: Runner, about: dict[str, Any]) -> None:
    write_text(Path(runner.log_dir) / ABOUT, json.dumps(about, indent=1) + '\n')
