"""Arguments that verbs share, and the config values they set.

Imports nothing heavy at module level, so that ``--help`` answers at once.
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

# Endings of other files in a folder of shards.
BESIDE_SHARDS = ('.tar', '.npz', '.json', '.txt', '.partial')

# In names of environment variables.
SECRET = re.compile('KEY|TOKEN|SECRET|PASS|CREDENTIAL', re.IGNORECASE)

TRACKERS = ('mlflow', 'wandb')  # as their packages are called


def new_parser(verb: str, doc: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, which describes itself by the docstring of its module."""
    style = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f'mmpatchmix {verb}', description=doc, formatter_class=style)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every verb that builds a Runner."""
    add = parser.add_argument
    add('config', help='config file, or the name of a shipped recipe: patchmix_vit-s_in1k')
    add('--work-dir', help='output folder (default: work_dirs/CONFIG)')
    shards = "tar shards: their folder or names, 'shards/train-{000000..000009}.tar'"
    add('--data-root', help=f'images of all data sets: a folder, a list, or {shards}')
    add('--val-root', metavar='PATH', help='images for evaluation, if --data-root has none')
    add('--workers', type=int, metavar='N', help='data loading processes per rank; 0 for none')
    about = 'change config values, e.g. train_dataloader.batch_size=64'
    options = dict(nargs='+', action='extend', default=[], metavar='KEY=VALUE', help=about)
    add('--cfg-options', **options)
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    add('--launcher', choices=launchers, default='none', help='how the ranks were started')
    add_trust_checkpoint(parser)
    add_verbose(parser)
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint`` to a verb that reads checkpoints."""
    about = 'unpickle checkpoints without restrictions; such a file can run any code as you'
    parser.add_argument('--trust-checkpoint', action='store_true', help=about)


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, which every verb has."""
    about = 'print all records of the log file, and tracebacks'
    parser.add_argument('--verbose', action='store_true', help=about)


def load_config(args: argparse.Namespace) -> Any:
    """Return mmengine's ``Config``, checked, with the common arguments applied.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: Naming unknown keys, and values of the wrong type.
    """
    from mmengine.config import Config

    from mmpatchmix.cli.config_checks import apply_options, check_config

    if args.trust_checkpoint:
        from mmpatchmix.compat.safe_loading import trust_checkpoints

        trust_checkpoints()
    path = find_config(args.config)
    cfg = Config.fromfile(path)
    warn_about_secrets(cfg)
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
    """Return the launcher; ``pytorch`` in a process of torchrun without ``--launcher``.

    Raises:
        ValueError: If there are several processes and no address to connect them.
    """
    num_ranks = os.environ.get('WORLD_SIZE', '1')
    if launcher != 'none' or num_ranks == '1':
        return launcher
    if {'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys():
        return 'pytorch'
    raise ValueError(
        f'WORLD_SIZE={num_ranks}, but neither --launcher nor the variables of torchrun are set: '
        'the ranks cannot connect. Use tools/dist_train.sh, --launcher, or unset WORLD_SIZE.'
    )


def warn_about_secrets(cfg: Any) -> None:
    """Print which environment variables of a config look like secrets."""
    secrets = [name for name in cfg.env_variables if SECRET.search(name)]
    if secrets:
        text = f'the config reads ${", $".join(secrets)} from the environment'
        print(f'{text}: the value will be in the log and in every checkpoint.', file=sys.stderr)


def set_data_root(cfg: Any, data_root: str) -> None:
    """Apply ``--data-root`` to every data set below a config node, and to their annotation files.

    ``ImageFolder`` becomes ``ShardedImages`` where the root holds tar shards, and vice versa.

    Raises:
        ValueError: If no data set has a root, or the root is a list and a data set takes none.
    """
    from mmpatchmix.datasets.image_list import is_list

    nodes = [node for _, node in walk_dicts(cfg)]
    roots = [node for node in nodes if 'data_root' in node]
    if not any('type' in node for node in roots):  # a variable of that name is no data set
        raise ValueError(
            '--data-root: no data set of this config has a data_root to set, as those of '
            'configs/patchmix_vit-s_folder.py have.'
        )
    former = {str(node['data_root']).rstrip('/') + '/' for node in roots if node['data_root']}
    for node in roots:
        node['data_root'], kind = data_root, node.get('type')
        if kind in (FOLDER, SHARDS):
            prefix = node.get('data_prefix') or ''
            prefix = prefix if isinstance(prefix, str) else prefix['img_path']
            is_sharded = holds_shards(os.path.join(data_root, prefix))
            node['type'] = SHARDS if is_sharded else FOLDER
        elif kind and is_list(data_root):
            raise ValueError(
                f'--data-root {data_root} is a list of images, which {FOLDER} reads; this config '
                f'has a {kind}, which takes a folder here and a list as ann_file.'
            )
    for node in nodes:
        path = node.get('ann_file')
        for root in former if isinstance(path, str) else ():
            if path.startswith(root):
                node['ann_file'] = str(Path(data_root) / path.removeprefix(root))


def set_val_root(cfg: Any, val_root: str) -> None:
    """Apply ``--val-root``: evaluate on these images, and train on all of the others.

    Raises:
        ValueError: If the config reads no folder, list or shards, or has no evaluation.
    """
    loaders = [cfg.get(name) for name in ('val_dataloader', 'test_dataloader')]
    nodes = [node for _, node in walk_dicts(cfg) if node.get('type') in (FOLDER, SHARDS)]
    if not nodes or not any(loaders):
        raise ValueError(
            f'--val-root needs a config that trains on images of {FOLDER} and evaluates '
            '(val_dataloader), such as configs/patchmix_vit-s_folder.py.'
        )
    for node in nodes:
        node['split'] = None
    for loader in filter(None, loaders):
        if 'data_prefix' in loader.dataset:
            loader.dataset.data_prefix = ''  # below the former, common root
        set_data_root(loader, val_root)


def holds_shards(path: str) -> bool:
    """Return whether a path names tar files, or a folder of tar files and their index files."""
    path = os.path.expanduser(path).rstrip('/')
    if not os.path.isdir(path):
        return path.endswith('.tar')
    names = [name for name in os.listdir(path) if not name.startswith('.')]
    endings = {os.path.splitext(name)[1].lower() for name in names}
    return '.tar' in endings and endings.issubset(BESIDE_SHARDS)


def set_workers(cfg: Any, num_workers: int) -> None:
    """Apply ``--workers`` to every data loader below a config node.

    Workers persist over epochs: mmengine would give new ones the same seeds.
    """
    for _, node in walk_dicts(cfg):
        if 'num_workers' in node:
            node.update(num_workers=num_workers, persistent_workers=num_workers > 0)
            if num_workers == 0:
                node.pop('prefetch_factor', None)  # torch refuses it without workers


def set_precision(cfg: Any, amp: bool | None) -> None:
    """Apply ``--amp`` (True: bfloat16 autocast) or ``--no-amp`` (False: float32).

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
    if amp or kind == BF16:  # in float32, too, it stops at gradients that are NaN
        wrapper.update(type=BF16, enabled=amp)
    else:
        wrapper.type = FLOAT32


def set_epochs(cfg: Any, epochs: int) -> None:
    """Apply ``--epochs``: change the length of a run and scale all its schedules.

    Raises:
        ValueError: If ``epochs`` is below 1 or the run does not count in epochs.
    """
    if epochs < 1:
        raise ValueError(f'--epochs {epochs} must be at least 1.')
    if not (cfg.get('train_cfg') or {}).get('max_epochs'):
        raise ValueError('--epochs needs a config whose train_cfg has max_epochs.')
    factor = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    for scheduler in cfg.get('param_scheduler') or []:
        if not scheduler.get('by_epoch', True):
            continue
        # Schedules per iteration may begin and end within an epoch.
        digits = 6 if scheduler.get('convert_to_iter_based') else None
        for name in ('begin', 'end', 'T_max', 'step_size'):
            if scheduler.get(name):
                scheduler[name] = round(scheduler[name] * factor, digits)
        if scheduler.get('milestones'):
            scheduler['milestones'] = [round(m * factor) for m in scheduler['milestones']]


def set_trackers(cfg: Any, names: Sequence[str]) -> None:
    """Apply ``--track``: add mmengine's back ends for some of :data:`TRACKERS`.

    Their environment variables apply. Without any, MLflow writes into ``mlflow.db`` and ``mlruns``
    of the current folder.

    Raises:
        ModuleNotFoundError: If a package is missing.
        ValueError: If the config has no visualizer.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f'--track {name} needs the package {name}, which is not installed: '
                "pip install 'mmpatchmix[track]'"
            )
    if names and not (cfg.get('visualizer') or {}).get('vis_backends'):
        raise ValueError('--track needs a config with visualizer.vis_backends.')
    project, run = Path(cfg.filename).stem, Path(cfg.work_dir).name
    if 'mlflow' in names:  # mmengine's default is a new store for every start of a run
        store = os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{Path("mlflow.db").absolute()}'
        backend = dict(type='MLflowVisBackend', exp_name=project, run_name=run, tracking_uri=store)
        cfg.visualizer.vis_backends.append(backend)
    if 'wandb' in names:
        backend = dict(type='WandbVisBackend', init_kwargs=dict(project=project, name=run))
        cfg.visualizer.vis_backends.append(backend)


def set_initial_weights(cfg: Any, checkpoint: str, begun: str | None = None) -> None:
    """Apply ``--init``: start a recipe from a checkpoint, with its network; print the changes.

    Args:
        cfg: The config; changed in place.
        checkpoint: See :func:`mmpatchmix.checkpoints.read_backbone`.
        begun: The last checkpoint of a run to resume; then ``checkpoint`` need not exist.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold a plain ViT, or the config is no pre-training recipe.
    """
    from mmpretrain.models.backbones import VisionTransformer

    from mmpatchmix.checkpoints import read_backbone

    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if backbone.get('type') != 'mmpatchmix.PatchMixViT' or 'neck' not in model:
        raise ValueError(
            '--init is for pre-training recipes (a mmpatchmix.PatchMixViT and a neck), not for '
            f'{model.get("type")}: use --cfg-options model.backbone.init_cfg.checkpoint=FILE.'
        )
    arch = backbone.arch
    arch = dict(VisionTransformer.arch_zoo[arch.lower()] if isinstance(arch, str) else arch)
    source = read_backbone(begun or checkpoint, default_heads=arch['num_heads'])
    spec = source.spec
    before = {'patch_size': 16, 'num_registers': 0, **backbone, **arch}
    after = {'patch_size': spec.patch_size, 'num_registers': spec.num_registers, **spec.arch}
    changes = [
        f'{key} {value} (the recipe: {before.get(key)})'
        for key, value in after.items()
        if value != before.get(key)
    ]
    if model.data_preprocessor.patch_size == before['patch_size']:  # of the mix
        model.data_preprocessor.patch_size = spec.patch_size
    backbone.update(
        arch=arch | spec.arch,
        patch_size=spec.patch_size,
        num_registers=spec.num_registers,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
    model.neck.in_channels = spec.embed_dims
    if begun is None and int(os.environ.get('RANK', 0)) == 0:
        print(f'--init {checkpoint}: layout {source.layout.name!r}, images of {spec.img_size}')
        for line in (*source.report.assumed, *source.report.notes):
            print(f'  {line}')
        if changes:
            print(f'  the network becomes that of the file: {", ".join(changes)}')
