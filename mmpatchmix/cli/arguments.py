"""Arguments that verbs share, and what they make of a config.

Nothing heavy is imported here, so that ``--help`` answers at once.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmpatchmix.cli.verb import walk_dicts
from mmpatchmix.files import find_config

# Optimizer wrappers whose precision --amp and --no-amp can change.
FLOAT32, BF16 = 'OptimWrapper', 'mmpatchmix.BF16OptimWrapper'

WRAPPERS = (FLOAT32, BF16, 'AmpOptimWrapper')

# Data sets that --data-root chooses between.
FOLDER, SHARDS = 'mmpatchmix.ImageFolder', 'mmpatchmix.ShardedImages'

BESIDE_SHARDS = ('.tar', '.npz', '.json', '.txt', '.partial')

# In names of environment variables.
SECRET = re.compile('KEY|TOKEN|SECRET|PASS|CREDENTIAL', re.IGNORECASE)


def new_parser(verb: str, doc: str) -> argparse.ArgumentParser:
    """Make a parser that calls the program as it was called: by the verb or as a file."""
    called = Path(sys.argv[0])
    by_verb = called.stem in ('mmpatchmix', '__main__')
    return argparse.ArgumentParser(
        prog=f'mmpatchmix {verb}' if by_verb else '/'.join(called.parts[-2:]),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every verb that builds a Runner."""
    parser.add_argument(
        'config', help='config file, or the name of a shipped recipe: patchmix_vit-s_in1k'
    )
    parser.add_argument('--work-dir', help='where to write; work_dirs/CONFIG by default')
    parser.add_argument(
        '--data-root',
        help='images for training and evaluation alike: a folder, or tar shards: a folder of them '
        "or their names, 'shards/train-{000000..000009}.tar'",
    )
    parser.add_argument(
        '--val-root',
        metavar='PATH',
        help='images to judge by, where --data-root does not hold them: a second folder or list',
    )
    parser.add_argument(
        '--workers', type=int, metavar='N', help='processes per rank that load data; 0 for none'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help='change config values, e.g. train_dataloader.batch_size=64',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    add_trust_checkpoint(parser)
    add_verbose(parser)
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint`` to a verb that reads checkpoints."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold more than weights and training states; such a file can '
        'run any program as you',
    )


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, which every verb has."""
    parser.add_argument(
        '--verbose', action='store_true', help='print all that the log file has, and tracebacks'
    )


def load_config(args: argparse.Namespace) -> Any:
    """Read the config, check it, and apply the common arguments.

    Args:
        args: Read by a parser with the common arguments.

    Returns:
        mmengine's ``Config``.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: Naming keys that nothing reads, and values of the wrong kind.
    """
    from mmengine.config import Config

    from mmpatchmix.cli.config_checks import apply_options, check_config

    if args.trust_checkpoint:
        from mmpatchmix.compat.safe_loading import trust_checkpoints

        trust_checkpoints()
    path = find_config(args.config)
    cfg = Config.fromfile(path)
    point_out_secrets(cfg)
    apply_options(cfg, args.cfg_options)
    check_config(cfg)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    if args.val_root:
        set_val_root(cfg, args.val_root)
    if args.workers is not None:
        set_workers(cfg, args.workers)
    cfg.launcher = find_launcher(args.launcher)
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / path.stem)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def find_launcher(launcher: str) -> str:
    """Return the launcher: torchrun's where ``--launcher`` was forgotten.

    Raises:
        ValueError: If there are several processes and nothing says how they meet.
    """
    num_ranks = os.environ.get('WORLD_SIZE', '1')
    if launcher != 'none' or num_ranks == '1':
        return launcher
    if all(name in os.environ for name in ('RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')):
        return 'pytorch'
    raise ValueError(
        f'WORLD_SIZE={num_ranks}, but neither --launcher nor the variables of torchrun say how the '
        'processes meet: each would train alone into the same folder. Start them with '
        'tools/dist_train.sh, name the --launcher, or unset WORLD_SIZE.'
    )


def point_out_secrets(cfg: Any) -> None:
    """Say which values of the environment a config takes that are not meant for log files."""
    secrets = [name for name in cfg.env_variables if SECRET.search(name)]
    if secrets:
        print(
            f'the config takes the value of ${", $".join(secrets)} from the environment: it will '
            'be in the log and in every checkpoint. Give secrets to the service that needs them.',
            file=sys.stderr,
        )


def set_data_root(cfg: Any, data_root: str) -> None:
    """Apply ``--data-root``: point every data set below a config node to one folder.

    Annotation files that evaluators name below the former folder move along. Where the new one
    holds tar shards, ``ImageFolder`` becomes ``ShardedImages``, and the other way round.

    Raises:
        ValueError: If no data set has a folder, or one that reads no list is given a list.
    """
    nodes = [node for _, node in walk_dicts(cfg)]
    former = set()
    for node in nodes:
        if 'data_root' in node:
            if node['data_root']:
                former.add(str(node['data_root']).rstrip('/') + '/')
            node['data_root'] = data_root
            # A variable of that name, as upstream's configs have it, is no data set.
            kind = node.get('type')
            if kind and kind not in (FOLDER, SHARDS) and _is_list(data_root):
                raise ValueError(
                    f'--data-root {data_root} is a list of images. {FOLDER} reads lists, as in '
                    f'configs/patchmix_vit-s_folder.py; this config has a {kind}, '
                    'which wants a folder here and a list as ann_file.'
                )
            if kind in (FOLDER, SHARDS):
                prefix = node.get('data_prefix') or ''
                prefix = prefix if isinstance(prefix, str) else prefix['img_path']
                is_sharded = holds_shards(os.path.join(data_root, prefix))
                node['type'] = SHARDS if is_sharded else FOLDER
    if not any('data_root' in node and 'type' in node for node in nodes):
        raise ValueError(
            '--data-root: no data set of this config has a data_root to set. Take '
            'configs/patchmix_vit-s_folder.py, or give its data sets one.'
        )
    for node in nodes:
        path = node.get('ann_file')
        for root in former if isinstance(path, str) else ():
            if path.startswith(root):
                node['ann_file'] = str(Path(data_root) / path.removeprefix(root))


def _is_list(path: str) -> bool:
    from mmpatchmix.datasets.image_list import is_list

    return is_list(path)


def set_val_root(cfg: Any, val_root: str) -> None:
    """Apply ``--val-root``: judge by other images, all of them, and train on all of the others.

    Raises:
        ValueError: If the config does not train on a folder, a list or shards, or judges nothing.
    """
    loaders = [cfg.get(name) for name in ('val_dataloader', 'test_dataloader')]
    nodes = [node for _, node in walk_dicts(cfg) if node.get('type') in (FOLDER, SHARDS)]
    if not nodes or not any(loaders):
        raise ValueError(
            f'--val-root needs a config that trains on images of {FOLDER} and judges '
            '(val_dataloader), such as configs/patchmix_vit-s_folder.py.'
        )
    for node in nodes:
        node['split'] = None
    for loader in filter(None, loaders):
        if 'data_prefix' in loader.dataset:
            loader.dataset.data_prefix = ''  # of the folder that held both
        set_data_root(loader, val_root)


def holds_shards(path: str) -> bool:
    """Tell whether a path names tar files, or a folder of nothing else but what is beside them."""
    path = os.path.expanduser(path).rstrip('/')
    if not os.path.isdir(path):
        return path.endswith('.tar')
    found = False
    with os.scandir(path) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if not entry.name.startswith('.') and ending not in BESIDE_SHARDS:
                return False
            found |= ending == '.tar'
    return found


def set_workers(cfg: Any, num_workers: int) -> None:
    """Apply ``--workers`` to every data loader below a config node.

    Workers are kept over epochs: mmengine gives new ones the seeds of the old.

    Raises:
        ValueError: If the number is negative.
    """
    if num_workers < 0:
        raise ValueError(f'--workers {num_workers} must be at least 0: in the process itself.')
    for _, node in walk_dicts(cfg):
        if 'num_workers' in node:
            node.update(num_workers=num_workers, persistent_workers=num_workers > 0)
            if num_workers == 0:
                node.pop('prefetch_factor', None)  # torch refuses it where there are none


def set_precision(cfg: Any, amp: bool | None) -> None:
    """Apply ``--amp`` (bfloat16 autocast) or ``--no-amp`` (float32).

    Args:
        cfg: The config; changed in place.
        amp: None leaves it to the config.

    Raises:
        ValueError: If there is no optimizer wrapper, or it has a precision of its own.
    """
    if amp is None:
        return
    wrapper = cfg.get('optim_wrapper') or {}
    kind = wrapper.get('type', FLOAT32)
    if not wrapper or kind not in WRAPPERS:
        raise ValueError(
            f'--amp and --no-amp: optim_wrapper is {kind if wrapper else "missing"}; they change '
            f'{", ".join(WRAPPERS)}.'
        )
    for key in ('enabled', 'loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    if amp or kind == BF16:  # in float32 too it stops at gradients that are no numbers
        wrapper.update(type=BF16, enabled=amp)
    else:
        wrapper.type = FLOAT32


def set_epochs(cfg: Any, epochs: int) -> None:
    """Apply ``--epochs``: change the length of a run and stretch all its schedules alike.

    Args:
        cfg: Config with an epoch-based ``train_cfg``; changed in place.
        epochs: The new length, at least 1.

    Raises:
        ValueError: If ``epochs`` is below 1 or the run does not count in epochs.
    """
    if epochs < 1:
        raise ValueError(f'--epochs {epochs}: a run has at least one epoch.')
    if not (cfg.get('train_cfg') or {}).get('max_epochs'):
        raise ValueError('--epochs needs a config whose train_cfg has max_epochs.')
    factor = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for scheduler in cfg.get('param_scheduler') or []:
        if not scheduler.get('by_epoch', True):
            continue
        # Schedules per iteration may turn within an epoch, the others may not.
        digits = 6 if scheduler.get('convert_to_iter_based') else None
        for name in ('begin', 'end', 'T_max', 'step_size'):
            if scheduler.get(name):
                scheduler[name] = round(scheduler[name] * factor, digits)
        if scheduler.get('milestones'):
            scheduler['milestones'] = [round(m * factor) for m in scheduler['milestones']]


TRACKERS = ('mlflow', 'wandb', 'aim')  # as their packages are called


def set_trackers(cfg: Any, names: Sequence[str]) -> None:
    """Add the back ends of mmengine for some trackers to the visualizer of a config.

    Where they write is up to them and their environment variables: without any, MLflow into
    ``mlflow.db`` and ``mlruns`` of the present folder, as it does by itself, and Aim into ``.aim``.

    Args:
        cfg: The config, with ``work_dir`` and ``visualizer``; changed in place.
        names: Of :data:`TRACKERS`.

    Raises:
        ModuleNotFoundError: If the package of one is missing.
        ValueError: If the config has no visualizer.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f'--track {name} needs the package {name}, which is not installed: '
                f'pip install {name}'
            )
    if names and not (cfg.get('visualizer') or {}).get('vis_backends'):
        raise ValueError('--track needs a config with visualizer.vis_backends.')
    project, run = Path(cfg.filename).stem, Path(cfg.work_dir).name
    for name in names:
        cfg.visualizer.vis_backends.append(_backend(name, project, run))


def _backend(name: str, project: str, run: str) -> dict[str, Any]:
    if name == 'mlflow':  # by itself it would open a store of its own for every start of a run
        store = f'sqlite:///{Path("mlflow.db").absolute()}'
        store = os.environ.get('MLFLOW_TRACKING_URI') or store
        return dict(type='MLflowVisBackend', exp_name=project, run_name=run, tracking_uri=store)
    if name == 'wandb':
        return dict(type='WandbVisBackend', init_kwargs=dict(project=project, name=run))
    return dict(type='AimVisBackend', init_kwargs=dict(experiment=project))


def set_initial_weights(cfg: Any, checkpoint: str, begun: str | None = None) -> None:
    """Let a recipe start from a checkpoint; the network becomes the file's, and it is said.

    Width, depth, heads and patch size come with the weights. What the recipe is about stays:
    images, their size, crops, mixing, schedules.

    Args:
        cfg: The config; changed in place.
        checkpoint: See :func:`mmpatchmix.checkpoints.read_backbone`.
        begun: A checkpoint of the run itself, which is resumed: it tells the network, too, and
            the first one need not exist any more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold a plain ViT, or the config is no pre-training recipe.
    """
    from mmpretrain.models.backbones import VisionTransformer

    from mmpatchmix.checkpoints import read_backbone

    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if backbone.get('type') != 'mmpatchmix.PatchMixViT':
        raise ValueError(
            '--init starts pre-training recipes (model.backbone of type mmpatchmix.PatchMixViT); '
            f'this one is of type {backbone.get("type")}. For linear probes, fine-tuning and '
            'detection: --cfg-options model.backbone.checkpoint=FILE.'
        )
    arch = backbone.arch
    arch = dict(VisionTransformer.arch_zoo[arch.lower()] if isinstance(arch, str) else arch)
    source = read_backbone(begun or checkpoint, default_heads=arch['num_heads'])
    spec, before = source.spec, backbone.get('patch_size', 16)
    changes = [
        f'{key} {value} (the recipe: {arch.get(key)})'
        for key, value in spec.arch.items()
        if value != arch.get(key)
    ]
    if spec.patch_size != before:
        changes.append(f'patch_size {spec.patch_size} (the recipe: {before})')
        if model.data_preprocessor.patch_size == before:  # of the mix
            model.data_preprocessor.patch_size = spec.patch_size
    registers = backbone.pop('num_registers', 0)
    if spec.num_registers != registers:
        changes.append(f'num_registers {spec.num_registers} (the recipe: {registers})')
    if spec.num_registers:
        backbone.num_registers = spec.num_registers
    backbone.update(
        arch=arch | spec.arch,
        patch_size=spec.patch_size,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
    model.neck.in_channels = spec.embed_dims
    if begun is None and int(os.environ.get('RANK', 0)) == 0:
        print(f'--init {checkpoint}: layout {source.layout.name!r}, images of {spec.img_size}')
        for line in (*source.report.assumed, *source.report.notes):
            print(f'  {line}')
        if changes:
            print(f'  the network is that of the file: {", ".join(changes)}')
