"""Compare what the ranks of a run are about to do; a difference is named before they start."""

import hashlib
import json
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import mmengine
import torch
from mmengine.device import get_device

import mmpatchmix
from mmpatchmix.compat.rendezvous import exchange

# A run may differ in these from machine to machine.
OWN = ('data_root', 'ann_file', 'data_prefix', 'num_workers', 'persistent_workers', 'work_dir')
OWN += ('prefetch_factor', 'pin_memory', 'log_level', 'experiment_name')
DATA_SECONDS = 600  # a large folder on a slow disk
NUM_NAMES = 1000


def compare_ranks(cfg: Any) -> None:
    """Let all ranks report host, device, versions and config; under ``--launcher pytorch`` only.

    Args:
        cfg: The config of this rank.

    Raises:
        ValueError: Naming what differs, with the value of each rank.
        TimeoutError: Naming the ranks that did not report in time.
    """
    if cfg.get('launcher') != 'pytorch' or 'RANK' not in os.environ:
        return
    values = dict(_leaves(cfg))
    facts = {
        'where': f'{socket.gethostname()}, process {os.getpid()}, {get_device()}',
        'python': platform.python_version(),
        'torch': torch.__version__,
        'mmengine': mmengine.__version__,
        'mmpatchmix': mmpatchmix.__version__,
        'device': get_device().split(':')[0],
        **values,
    }
    # Digests first: the facts of each rank, read by each rank, are gigabytes among a thousand.
    text = json.dumps({name: fact for name, fact in facts.items() if name != 'where'})
    reports = exchange('preflight', {'digest': hashlib.sha256(text.encode()).hexdigest()})
    if len({report['digest'] for report in reports}) > 1:
        _refuse_differences(exchange('what differs', facts))


def compare_data(dataset: Any) -> None:
    """Let all ranks report how many images they train on and, of up to 1,000, the names.

    Args:
        dataset: Of the train loader.

    Raises:
        ValueError: If they differ.
        TimeoutError: Naming the ranks that did not report in time.
    """
    if not torch.distributed.is_initialized() or 'MASTER_ADDR' not in os.environ:
        return
    if 'TORCHELASTIC_RUN_ID' not in os.environ:  # of other launchers
        return
    digest = hashlib.sha256()
    for index in range(0, len(dataset), max(1, len(dataset) // NUM_NAMES)):
        info: dict = {}
        with suppress(AttributeError, NotImplementedError):
            info = dataset.get_data_info(index)
        path = str(info.get('img_path', '')).replace(os.sep, '/')
        digest.update(f'{"/".join(path.split("/")[-2:])} {info.get("gt_label")}\n'.encode())
    facts = {
        'where': socket.gethostname(),
        'number of training images': len(dataset),
        'names of the training images (digest)': digest.hexdigest()[:12],
    }
    _refuse_differences(exchange('data', facts, DATA_SECONDS))


def _leaves(node: Any, path: str = '') -> Iterator[tuple[str, str]]:
    """Yield dotted keys and values of a config, without what ranks may have of their own."""
    if isinstance(node, list | tuple):
        node = dict(enumerate(node))
    if not hasattr(node, 'items'):
        yield path, repr(node)
        return
    for key, value in node.items():
        if key not in OWN:
            yield from _leaves(value, f'{path}.{key}' if path else str(key))


def _refuse_differences(reports: list[dict[str, Any]]) -> None:
    """Raise ``ValueError`` with every fact in which a rank differs from rank 0."""
    lines = []
    for name in dict.fromkeys(name for report in reports for name in report):
        values = [report.get(name, 'not set') for report in reports]
        if name == 'where' or len(set(map(json.dumps, values))) == 1:
            continue
        groups = {
            value: [r for r, other in enumerate(values) if other == value] for value in values
        }
        parts = [f'{value} on {_name_ranks(ranks, reports)}' for value, ranks in groups.items()]
        lines.append(f'{name}: {"; ".join(parts)}')
    if lines:
        raise ValueError(
            'the ranks are not about to do the same; start all of them with the same command, '
            'code and data:\n  ' + '\n  '.join(lines)
        )


def _name_ranks(ranks: list[int], reports: list[dict[str, Any]]) -> str:
    listed = ', '.join(map(str, ranks[:8])) + (f' and {len(ranks) - 8} more' if ranks[8:] else '')
    return f'rank {listed} ({reports[ranks[0]]["where"]})'
