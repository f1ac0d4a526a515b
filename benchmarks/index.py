"""What a data set of many images costs before the first one is read: seconds, memory, disk.

    python benchmarks/index.py
    python benchmarks/index.py --num-images 100000000

The images do not exist. Their list is made up: an index file of shards with 5,000 images each,
and names like ImageNet's in place of what walking a folder would find. Each row is a process of
its own.

- shards, index file there: opening mmpatchmix.ShardedImages;
- shards, looked through: images that the first start finds in a second of a core, in real tar
  files of 5,000 images of 2 kB with a class each, in the page cache;
- folder: opening mmpatchmix.ImageFolder, without the time of the disk;
- order: the first index of a shuffled epoch of one rank of eight.

Seconds are those of the clock and those of a core (a busy machine spares the latter). Peak is the
growth of the process, held is what stays and what workers share.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from harness import parse_args, report

from mmpatchmix.datasets import ImageFolder, ShardedImages, shard_index
from mmpatchmix.datasets.image_folder import EXTENSIONS
from mmpatchmix.datasets.pack_shards import Packed, write_shard
from mmpatchmix.engine.exact_order import ExactSampler

PER_SHARD = 5000
NUM_SCANNED = 20  # shards
MIB = 2**20


def make_index(folder: Path, num_images: int) -> None:
    """Write an index file of shards that are empty files."""
    rng = np.random.default_rng(0)
    samples = np.empty(num_images, shard_index.SAMPLE)
    samples['hash'] = rng.integers(0, 2**64, num_images, np.uint64)
    for name, top in (('offset', 2**30), ('size', 2**18), ('label', 1000)):
        samples[name] = rng.integers(0, top, num_images)
    samples['shard'] = np.arange(num_images) // PER_SHARD
    counts = np.bincount(samples['shard'])
    for number in range(len(counts)):
        (folder / f'train-{number:06d}.tar').touch()
    parts = np.split(samples, np.cumsum(counts)[:-1])

    def scan(path: str, endings: tuple) -> tuple[np.ndarray, dict]:
        return parts[int(Path(path).stem.removeprefix('train-'))], {}

    with mock.patch.object(shard_index, 'scan_shard', scan):
        ShardedImages(str(folder))


def open_shards(folder: Path, num_images: int) -> int:
    return ShardedImages(str(folder), split='train').data_list.nbytes


def open_folder(folder: Path, num_images: int) -> int:
    names = (f'n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG' for i in range(num_images))
    classes = [f'n{i:08d}' for i in range(1000)]
    with mock.patch('mmpatchmix.datasets.image_folder.walk', lambda root: names):
        dataset = ImageFolder(str(folder), classes=classes, split='train')
    return dataset.data_list.nbytes


def draw_order(folder: Path, num_images: int) -> int:
    sampler = ExactSampler(range(num_images), seed=0)
    sampler.rank, sampler.world_size = 3, 8
    sampler.num_samples, sampler.total_size = -(-num_images // 8), -(-num_images // 8) * 8
    next(iter(sampler))
    return 0


ROWS: dict[str, Callable[[Path, int], int]] = {
    'shards, index file there': open_shards,
    'folder': open_folder,
    'order': draw_order,
}


def peak() -> int:
    """Return the peak of this program; getrusage's begins with that of the process before exec."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


def measure_here(name: str, folder: Path, num_images: int) -> dict:
    before, began, cpu_began = peak(), time.perf_counter(), time.process_time()
    held = ROWS[name](folder, num_images)
    return {
        'seconds': time.perf_counter() - began,
        'cpu_seconds': time.process_time() - cpu_began,
        'peak': peak() - before,
        'held': held,
    }


def scan_rate(folder: Path) -> float:
    """Return images per second that are found in real shards, all of them new."""
    image = Packed('n00000000/n00000000_00000000.JPEG', 7, bytes(2000), '.jpg', '')
    images = [(number, image) for number in range(PER_SHARD)]
    paths = [folder / f'scan-{number}.tar' for number in range(NUM_SCANNED)]
    for path in paths:
        write_shard(path, images, None)
        path.read_bytes()
    began = time.process_time()
    samples, _ = shard_index.read_index([str(path) for path in paths], EXTENSIONS)
    return len(samples) / (time.process_time() - began)


def main() -> None:
    args = parse_args(__doc__, repeats=1, num_images=10_000_000, row='')
    os.environ.pop('PATCHMIX_CACHE', None)
    if args.row:
        name, folder = json.loads(args.row)
        print(json.dumps(measure_here(name, Path(folder), args.num_images)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, scanned = Path(scratch, 'shards'), Path(scratch, 'scanned')
        folder.mkdir()
        scanned.mkdir()
        make_index(folder, args.num_images)
        disk = sum(path.stat().st_size for path in folder.glob('*.npz'))
        for name in ROWS:  # each in a process of its own, whose peak nothing has raised before
            command = [sys.executable, __file__, '--num-images', str(args.num_images)]
            command += ['--row', json.dumps([name, str(folder)])]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            result = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {
                    'what': name,
                    'seconds': result['seconds'],
                    'of a core': result['cpu_seconds'],
                    'peak, MiB': result['peak'] / MIB,
                    'held, bytes/image': result['held'] / args.num_images or None,
                    'on disk, bytes/image': disk / args.num_images if 'shards' in name else None,
                    'images/s of a core': None,
                }
            )
        rows.append(dict.fromkeys(rows[0]) | {'what': 'shards, looked through'})
        rows[-1]['images/s of a core'] = scan_rate(scanned)
    report('index: opening many images', rows, num_images=args.num_images, per_shard=PER_SHARD)


if __name__ == '__main__':
    main()
