"""The cost of opening a data set of many images: seconds, memory and disk.

    python benchmarks/index.py
    python benchmarks/index.py --num-images 100000000

The images do not exist. Their list is generated: an index file of shards with 5,000 images each,
and names like ImageNet's in place of a walk through a folder. Each row runs in a process of its
own.

- shards, index file there: opening mmpatchmix.ShardedImages;
- shards, looked through: images per second of a core that the first start finds, in tar files of
  5,000 images of 2 kB in the page cache, with a class each;
- folder: opening mmpatchmix.ImageFolder, without the time of the disk;
- order: the first index of a shuffled epoch of one rank of eight.

Seconds are wall-clock and CPU seconds. Peak is the growth of the process; held stays allocated and
is shared by workers.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from harness import measure_apart, parse_args, report

from mmpatchmix.datasets import ImageFolder, ShardedImages, shard_index
from mmpatchmix.datasets.decode_image import EXTENSIONS
from mmpatchmix.datasets.pack_shards import Packed, write_shard
from mmpatchmix.engine.exact_order import ExactSampler

PER_SHARD = 5000
NUM_SCANNED = 20  # shards


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


def open_shards(folder: str, num_images: int) -> int:
    return ShardedImages(folder, split='train').data_list.nbytes


def open_folder(folder: str, num_images: int) -> int:
    names = (f'n{i % 1000:08d}/n{i % 1000:08d}_{i:08d}.JPEG' for i in range(num_images))
    classes = [f'n{i:08d}' for i in range(1000)]
    with mock.patch('mmpatchmix.datasets.image_folder.walk', lambda root: names):
        dataset = ImageFolder(folder, classes=classes, split='train')
    return dataset.data_list.nbytes


def draw_order(folder: str, num_images: int) -> int:
    sampler = ExactSampler(range(num_images), seed=0)
    sampler.rank, sampler.world_size = 3, 8
    sampler.num_samples, sampler.total_size = -(-num_images // 8), -(-num_images // 8) * 8
    next(iter(sampler))
    return 0


ROWS = {'shards, index file there': open_shards, 'folder': open_folder, 'order': draw_order}


def read_peak() -> int:
    """Return the peak memory of this program, without that of the process before exec."""
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


def measure_here(name: str, folder: str, num_images: int) -> dict:
    """Return a row of the table."""
    before, began, cpu_began = read_peak(), time.perf_counter(), time.process_time()
    held = ROWS[name](folder, num_images)
    on_disk = sum(path.stat().st_size for path in Path(folder).glob('*.npz')) / num_images
    return {
        'what': name,
        'seconds': time.perf_counter() - began,
        'of a core': time.process_time() - cpu_began,
        'peak, MiB': (read_peak() - before) / 2**20,
        'held, bytes/image': held / num_images or None,
        'on disk, bytes/image': on_disk if 'shards' in name else None,
        'images/s of a core': None,
    }


def scan_rate(folder: Path) -> float:
    """Return images per CPU second that are found in new shards."""
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
        print(json.dumps(measure_here(*json.loads(args.row), args.num_images)))
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as scanned:
        make_index(Path(folder), args.num_images)
        options = ['--num-images', args.num_images, '--row']
        rows = [measure_apart(*options, json.dumps([name, folder])) for name in ROWS]
        rows.append(dict.fromkeys(rows[0]) | {'what': 'shards, looked through'})
        rows[-1]['images/s of a core'] = scan_rate(Path(scanned))
    report('index: opening many images', rows, num_images=args.num_images, per_shard=PER_SHARD)


if __name__ == '__main__':
    main()
