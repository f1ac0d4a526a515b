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

from mmpatchmix.cli.verb import garbage_ignored, walk_dicts
from mmpatchmix.files import find_config

# Optimizer wrappers whose precision --amp and --no-amp can change.
FLOAT32, BF16 = 'OptimWrapper', 'mmpatchmix.BF16OptimWrapper'
WRAPPERS = (FLOAT32, BF16, 'AmpOptimWrapper')
# Data sets that --data-root chooses between.
FOLDER, SHARDS = 'mmpatchmix.ImageFolder', 'mmpatchmix.ShardedImages'
SHARD_ENDINGS = {'.tar', '.npz', '.json', '.txt', '.partial'}  # in a folder of shards

SECRET = re.compile('KEY|TOKEN|SECRET|PASS|CREDENTIAL', re.IGNORECASE)  # names of variables
TRACKERS = ('mlflow', 'wandb')  # as their packages are called


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every verb that builds a Runner."""
    add = parser.add_argument
    add('config', help='config file, or the name of a shipped recipe: patchmix_vit-s_in1k')
    add('--work-dir', help='output folder (default: work_dirs/CONFIG; evaluate: by the checkpoint)')
    shards = "tar shards: their folder or names, 'shards/train-{000000..000009}.tar'"
    add('--data-root', help=f'images of all data sets: a folder, a list, or {shards}')
    add('--val-root', metavar='PATH', help='images for evaluation, if --data-root has none')
    add('--workers', type=int, metavar='N', help='data loading processes per rank; 0 for none')
    about = 'change config values, e.g. train_dataloader.batch_size=64'
    many = dict(nargs='+', action='extend', default=[])
    add('--cfg-options', metavar='KEY=VALUE', help=about, **many)
    launchers = ['none', 'pytorch', 'slurm', 'mpi']
    add('--launcher', choices=launchers, default='none', help='how the ranks were started')
    add_trust_checkpoint(parser)
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def add_trust_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint`` to a verb that reads checkpoints."""
    about = 'unpickle checkpoints without restrictions; such a file can run any code as you'
    parser.add_argument('--trust-checkpoint', action='store_true', help=about)


@garbage_ignored()
def load_config(args: argparse.Namespace, below: str = '') -> Any:
    """Return mmengine's ``Config``, checked, with the common arguments applied.

    Without ``--work-dir`` the work dir is a folder ``below`` that of the config.
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
    for _, node in walk_dicts(cfg):
        node.update({key: expand_user(value) for key, value in node.items()})
    check_config(cfg)
    if isinstance(cfg.get('param_scheduler'), dict):
        cfg.param_scheduler = [cfg.param_scheduler]
    if args.data_root:
        set_data_root(cfg, args.data_root)
    if args.val_root:
        set_val_root(cfg, args.val_root)
    if args.workers is not None:
        set_workers(cfg, args.workers)
    cfg.launcher = find_launcher(args.launcher)
    if cfg.launcher == 'slurm':  # mmengine sets it later, when the ranks meet
        os.environ.setdefault('RANK', os.environ.get('SLURM_PROCID', '0'))
    work_dir = cfg.get('work_dir') or Path('work_dirs', path.stem)
    cfg.work_dir = args.work_dir or str(Path(work_dir, below))
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def expand_user(value: Any) -> Any:
    """Replace ``~`` at the beginning of a text, or of those in a list, as in arguments."""
    if isinstance(value, list | tuple):
        return type(value)(map(expand_user, value))
    is_path = isinstance(value, str) and value.startswith('~/')
    return os.path.expanduser(value) if is_path else value


def find_launcher(launcher: str) -> str:
    """Return the launcher; ``pytorch`` in a process of torchrun without ``--launcher``."""
    num_ranks = os.environ.get('WORLD_SIZE', '1')
    if launcher != 'none' or num_ranks == '1':
        return launcher
    if {'RANK', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'} <= os.environ.keys():
        return 'pytorch'
    raise ValueError(f'WORLD_SIZE={num_ranks}, but no --launcher: use it or tools/dist_train.sh.')


def warn_about_secrets(cfg: Any) -> None:
    """Print which environment variables of a config look like secrets."""
    for name in filter(SECRET.search, cfg.env_variables):
        text = f'${name}, which the config reads, will be in the log and in every checkpoint.'
        print(text, file=sys.stderr)


def set_data_root(cfg: Any, data_root: str) -> None:
    """Apply ``--data-root`` to all data sets and annotation files; shards change the type."""
    from mmpatchmix.datasets.image_list import is_list

    nodes = [node for _, node in walk_dicts(cfg)]
    roots = [node for node in nodes if 'data_root' in node]
    if not any('type' in node for node in roots):  # a variable of that name is no data set
        raise ValueError('--data-root: no data set of this config has a data_root to set.')
    former = {str(node['data_root']).rstrip('/') + '/' for node in roots if node['data_root']}
    for node in roots:
        node['data_root'], kind = data_root, node.get('type')
        if kind in (FOLDER, SHARDS):
            prefix = node.get('data_prefix') or ''
            prefix = prefix if isinstance(prefix, str) else prefix['img_path']
            place = os.path.join(data_root, prefix)
            if prefix in ('train', 'val') and not os.path.isdir(place):  # other names, or a list
                node.update(data_prefix='', split=prefix)
                place = data_root
            node['type'] = SHARDS if holds_shards(place) else FOLDER
        elif kind and is_list(data_root):
            raise ValueError(
                f'--data-root {data_root} is a list of images, which {FOLDER} reads; this config '
                f'has a {kind}: give its folder, and the list as ann_file.'
            )
    for node in nodes:
        path = node.get('ann_file')
        for root in former if isinstance(path, str) else ():
            if path.startswith(root):
                node['ann_file'] = str(Path(data_root) / path.removeprefix(root))


def set_val_root(cfg: Any, val_root: str) -> None:
    """Apply ``--val-root``: evaluate on these images, and train on all of the others."""
    loaders = [cfg[name] for name in ('val_dataloader', 'test_dataloader') if cfg.get(name)]
    nodes = [node for _, node in walk_dicts(cfg) if node.get('type') in (FOLDER, SHARDS)]
    if not nodes or not loaders:
        raise ValueError(f'--val-root needs a config with a val_dataloader and data of {FOLDER}.')
    for node in nodes:
        node['split'] = None
    for loader in loaders:
        if 'data_prefix' in loader.dataset:
            loader.dataset.data_prefix = ''  # below the former, common root
        set_data_root(loader, val_root)


def holds_shards(path: str) -> bool:
    """Return whether a path names tar files, or a folder of tar files and their index files."""
    path = os.path.expanduser(path).rstrip('/')
    if not os.path.isdir(path):
        return path.endswith('.tar')
    names = (name for name in os.listdir(path) if not name.startswith('.'))
    endings = {os.path.splitext(name)[1].lower() for name in names}
    return '.tar' in endings and endings <= SHARD_ENDINGS


def set_workers(cfg: Any, num_workers: int) -> None:
    """Apply ``--workers`` to every data loader; mmengine would give new workers the same seeds."""
    for _, node in walk_dicts(cfg):
        if 'num_workers' in node:
            node.update(num_workers=num_workers, persistent_workers=num_workers > 0)
            if num_workers == 0:
                node.pop('prefetch_factor', None)  # torch refuses it without workers


def set_precision(cfg: Any, amp: bool | None) -> None:
    """Apply ``--amp`` (True: bfloat16 autocast) or ``--no-amp`` (False: float32)."""
    if amp is None:
        return
    wrapper = cfg.get('optim_wrapper') or dict(type='missing')
    kind = wrapper.get('type', FLOAT32)
    if kind not in WRAPPERS:
        raise ValueError(f'--amp and --no-amp change {WRAPPERS}; optim_wrapper is {kind}.')
    for key in ('enabled', 'loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)
    # BF16OptimWrapper stops at gradients that are NaN, in float32 too.
    wrapper.update(dict(type=BF16, enabled=amp) if amp or kind == BF16 else dict(type=FLOAT32))


def set_epochs(cfg: Any, epochs: int) -> None:
    """Apply ``--epochs``: change the length of a run and scale all its schedules."""
    if epochs < 1 or not (cfg.get('train_cfg') or {}).get('max_epochs'):
        raise ValueError(f'--epochs {epochs} needs at least one epoch and train_cfg.max_epochs.')
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
    """Apply ``--track``: add back ends, which follow their environment variables."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"--track needs {missing[0]}, which is not installed: pip install 'mmpatchmix[track]'"
        )
    if names and not (cfg.get('visualizer') or {}).get('vis_backends'):
        raise ValueError('--track needs a config with visualizer.vis_backends.')
    project, run = Path(cfg.filename).stem, Path(cfg.work_dir).name
    # mmengine's default is a new store of MLflow for every start of a run.
    store = os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{Path("mlflow.db").absolute()}'
    backends = dict(
        mlflow=dict(type='MLflowVisBackend', exp_name=project, run_name=run, tracking_uri=store),
        wandb=dict(type='mmpatchmix.WandbBackend', init_kwargs=dict(project=project, name=run)),
    )
    for name in names:
        cfg.visualizer.vis_backends.append(backends[name])


def set_timm_backbone(cfg: Any, name: str) -> None:
    """Apply ``--timm``: make the backbone a ViT of timm, with its patch size, mean and std."""
    from mmpatchmix.models import TimmViT

    model, vit = cfg.model, TimmViT(name)
    kept = ('in_channels', 'drop_path_rate', 'frozen_stages', 'with_cp', 'init_cfg')
    options = {key: model.backbone[key] for key in kept if key in model.backbone}
    model.backbone = dict(type='mmpatchmix.TimmViT', model=name, **options)
    model.neck.in_channels, model.data_preprocessor.patch_size = vit.embed_dims, vit.patch_size
    for key in ('mean', 'std'):
        model.data_preprocessor[key] = [255 * value for value in vit.model.pretrained_cfg[key]]


def set_initial_weights(cfg: Any, checkpoint: str, begun: str | None = None) -> None:
    """Apply ``--init``: start a recipe from a checkpoint, with its network; print the changes.

    To resume a run, its last checkpoint is read as ``begun``; then ``checkpoint`` need not exist.
    """
    from mmpretrain.models.backbones import VisionTransformer

    from mmpatchmix.checkpoints import read_backbone

    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if backbone.get('type') == 'mmpatchmix.TimmViT':
        backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
        return
    if backbone.get('type') != 'mmpatchmix.PatchMixViT' or 'neck' not in model:
        raise ValueError(
            '--init is for pre-training recipes (a mmpatchmix.PatchMixViT and a neck), not for '
            f'{model.get("type")}: use --cfg-options model.backbone.init_cfg.checkpoint=FILE.'
        )
    arch = backbone.arch
    arch = dict(VisionTransformer.arch_zoo[arch.lower()] if isinstance(arch, str) else arch)
    source = read_backbone(begun or checkpoint, default_heads=arch['num_heads'])
    spec = source.spec
    before = dict(patch_size=16, num_registers=0) | backbone.to_dict() | arch
    shape = dict(patch_size=spec.patch_size, num_registers=spec.num_registers)
    changes = [
        f'{key} {value} (the recipe: {before.get(key)})'
        for key, value in (shape | spec.arch).items()
        if value != before.get(key)
    ]
    if model.data_preprocessor.patch_size == before['patch_size']:  # of the mix
        model.data_preprocessor.patch_size = spec.patch_size
    backbone.update(arch=arch | spec.arch, **shape)
    backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint)
    model.neck.in_channels = spec.embed_dims
    if begun is None and int(os.environ.get('RANK', 0)) == 0:
        changes = changes and [f'the network becomes that of the file: {", ".join(changes)}']
        print(f'--init {checkpoint}: layout {source.layout.name!r}, images of {spec.img_size}')
        for line in (*source.report.assumed, *source.report.notes, *changes):
            print(f'  {line}')
