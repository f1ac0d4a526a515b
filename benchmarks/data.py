"""The time that a worker spends on an image, by pipeline, decoder and size of the file.

    python benchmarks/data.py
    python benchmarks/data.py --images data/coco200/train2017
    python benchmarks/data.py --table decoders

One thread, views of the ImageNet recipe. Without --images the photos are variations of
scikit-learn's two, about 500x375 pixels and 100 kB, as ImageNet's are; large photos are these two
at 2000x1500. docs/performance.md explains the rows. Goal: 2 + 8 crops by ours in at most 1/12 of
the time of the published pipeline with the exact blur.
"""

import io
import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
from data_peers import mmpretrain_pipeline, torchvision_pipeline
from harness import CONFIGS, make_rows, measure, parse_args, report, set_up
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import init_default_scope
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.io import ImageReadMode, decode_jpeg

from mmpatchmix.cli.benchmark import write_sample_photos
from mmpatchmix.datasets import LoadMultiCrop
from mmpatchmix.datasets.pack_shards import pack_shards
from mmpatchmix.models.augment import on_device, view_augment
from mmpatchmix.registry import MODELS, TRANSFORMS


def find_images(folder: Path, num_images: int) -> list[Path]:
    """Find as many JPEGs of a folder, evenly spread over their names."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg'))
    num_images = min(num_images, len(paths))
    return [paths[index * len(paths) // num_images] for index in range(num_images)]


def run_all(function: Callable, items: Sequence) -> None:
    """Call a function with each item."""
    for item in items:
        function(item)


def find_crops(cfg: Config, num_local: int) -> list[dict]:
    """Return size, scale, number and augmentation of the recipe's views."""
    load = cfg.train_dataloader.dataset.pipeline[0]
    crops = []
    for view, settings in cfg.model.data_preprocessor.augment.items():
        kind, num = ('local', num_local) if view == 'local_views' else ('global', 1)
        if num:
            size, scale = load[f'{kind}_size'], load[f'{kind}_scale']
            crops.append(dict(settings, size=size, scale=scale, num=num))
    return crops


def build_workers(cfg: Config, num_local: int) -> dict[str, Callable[[Path], object]]:
    """Return pipelines, functions of a path, by name."""
    crops = find_crops(cfg, num_local)
    load, pack = cfg.train_dataloader.dataset.pipeline

    def ours(**changes) -> Callable[[Path], dict]:
        steps = [{**load, 'num_local': num_local, **changes}, pack]
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        return lambda path: pipeline({'img_path': str(path)})

    return {
        'decoding alone': lambda path: cv2.imread(str(path)),
        'ours': ours(),
        'ours, whole': ours(reduced_decoding=False),
        'published': torchvision_pipeline(crops, pillow_blur=True),
        'published, exact blur': torchvision_pipeline(crops, pillow_blur=False),
        'mmpretrain, pillow': mmpretrain_pipeline(crops, 'pillow'),
        'mmpretrain, cv2': mmpretrain_pipeline(crops, 'cv2'),
    }


def build_preprocessors(cfg: Config, batch: dict) -> dict[str, Callable[[], object]]:
    """Return functions that run the data preprocessor on a collated batch, by name."""
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    plain = MODELS.build({**cfg.model.data_preprocessor, 'augment': None})

    def run_threaded() -> None:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        preprocessor(batch, training=True)
        torch.set_num_threads(num_threads)

    def run_batched() -> None:
        with mock.patch.object(view_augment, 'on_cpu', on_device):
            preprocessor(batch, training=True)

    return {
        'preprocessor': lambda: preprocessor(batch, training=True),
        'preprocessor, threads': run_threaded,
        'preprocessor, batched': run_batched,
        'preprocessor, plain': lambda: plain(batch, training=True),
    }


def compare_workers(usual: list[Path], large: list[Path], repeats: int) -> list[dict]:
    """Measure pipelines and preprocessors for usual and large photos."""
    cfg = Config.fromfile(CONFIGS / 'patchmix_vit-s_in1k.py')
    init_default_scope(cfg.default_scope)
    rows = []
    for photos, paths, num_local in (('usual', usual, 0), ('usual', usual, 8), ('large', large, 8)):
        workers = build_workers(cfg, num_local)
        batch = default_collate([workers['ours'](path) for path in paths])
        candidates = {name: partial(run_all, run, paths) for name, run in workers.items()}
        seconds = measure(candidates | build_preprocessors(cfg, batch), repeats)
        ms = {name: 1e3 * value / len(paths) for name, value in seconds.items()}
        ms['ours + preprocessor'] = ms['ours'] + ms['preprocessor']
        crops = f'2 + {num_local}' if num_local else '2'
        peers = [ms['published'], ms['published, exact blur']]
        rows += [(photos, crops, name, v, *(peer / v for peer in peers)) for name, v in ms.items()]
    columns = ('photos', 'crops', 'what', 'ms/image', 'published / this', 'exact blur / this')
    return make_rows(columns, rows)


def build_decoders() -> dict[str, Callable[[bytes], object]]:
    """Return functions of the bytes of a file, by name."""
    import simplejpeg  # of requirements/benchmarks.txt, which --help does not need

    def half(content: bytes) -> np.ndarray:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        return simplejpeg.decode_jpeg(content, min_height=height // 2, min_width=width // 2)

    def opencv(content: bytes, flag: int) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)

    return {
        'OpenCV': partial(opencv, flag=cv2.IMREAD_COLOR),
        'OpenCV, 1/2': partial(opencv, flag=cv2.IMREAD_REDUCED_COLOR_2),
        'simplejpeg': simplejpeg.decode_jpeg,
        'simplejpeg, 1/2': half,
        'torchvision': lambda content: decode_jpeg(
            torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB
        ),
        'Pillow': lambda content: np.asarray(Image.open(io.BytesIO(content)).convert('RGB')),
    }


def compare_decoders(usual: list[Path], large: list[Path], repeats: int) -> list[dict]:
    """Measure decoders, and a worker's whole work, on usual, large and packed photos."""
    rows, load = [], LoadMultiCrop(global_size=224)

    def load_crops(path: Path) -> dict:
        return load({'img_path': str(path)})

    with tempfile.TemporaryDirectory() as folder:
        pack_shards(str(large[0].parent), f'{folder}/shards', size=512, quality=90)
        for path in Path(folder).glob('shards/*.tar'):
            with tarfile.open(path) as shard:
                shard.extractall(folder, filter='data')
        stored = sorted(Path(folder).rglob('*.jpg'))
        for photos, paths in (('usual', usual), ('large', large), ('stored', stored)):
            files = [path.read_bytes() for path in paths]
            decoders = build_decoders().items()
            candidates = {name: partial(run_all, run, files) for name, run in decoders}
            candidates['ours, 2 crops'] = partial(run_all, load_crops, paths)
            seconds = measure(candidates, repeats)
            num, size = len(files), sum(map(len, files)) / len(files) / 1000
            for name, value in seconds.items():
                ratio = value / seconds['OpenCV']
                rows.append((photos, size, name, 1000 * value / num, num / value, ratio))
    return make_rows(('photos', 'kB', 'decoder', 'ms/image', 'images/s', 'of OpenCV'), rows)


def describe(paths: list[Path]) -> str:
    """Return the mean width, height and size of files."""
    sizes = [(*Image.open(path).size, path.stat().st_size / 1e3) for path in paths]
    return '{:.0f}x{:.0f}, {:.0f} kB'.format(*np.mean(sizes, axis=0))


def main() -> None:
    args = parse_args(__doc__, table=('workers', 'decoders'), images='', num_images=24)
    set_up()
    torch.set_num_threads(args.threads or 1)
    cv2.setNumThreads(0)
    name, compare = {
        'workers': ('data: time of a worker', compare_workers),
        'decoders': ('decoders', compare_decoders),
    }[args.table]
    with tempfile.TemporaryDirectory() as folder:
        if not args.images:
            write_sample_photos(Path(folder, 'photos'), args.num_images)
        usual = find_images(Path(args.images or folder), args.num_images)
        large = [Path(folder, 'large', f'{number}.jpg') for number in range(2)]
        large[0].parent.mkdir()
        for path, array in zip(large, load_sample_images().images, strict=True):
            image = Image.fromarray(array).resize((2000, 1500), Image.Resampling.BICUBIC)
            image.save(path, quality=90)
        sizes = {'usual photos': describe(usual), 'large photos': describe(large)}
        rows = compare(usual, large, args.repeats)
    source = args.images or "variations of scikit-learn's"
    report(name, rows, images=source, **sizes, repeats=args.repeats)


if __name__ == '__main__':
    main()
