"""What a worker spends on an image, from the file to what is collated.

    python benchmarks/data.py
    python benchmarks/data.py --images data/coco200/train2017

One thread, views of the ImageNet recipe: 2 crops of 224 pixels, and 8 more of 96. Without
--images the photos are variations of scikit-learn's two, about 500x375 pixels and 100 kB, as
ImageNet's are; large photos are these two at 2000x1500.

- decoding alone: what every pipeline pays, with OpenCV;
- ours: mmpatchmix.LoadMultiCrop and PackViews; whole: without reduced decoding;
- published: the published pipeline's way, torchvision's transforms of Pillow images, all
  augmentation, to normalised tensors, with Pillow's blur (three box filters); exact blur: with
  torchvision's Gaussian blur instead (kernels of 23 and 9);
- mmpretrain: its transforms, all augmentation, with either backend;
- preprocessor: what ours leaves to the main process (PatchMixDataPreprocessor: augment,
  normalise, mix) on this CPU, image by image; threads: in as many threads as there are cores;
  batched: by the operations that an accelerator would run; plain: without augmentation.

"ours + preprocessor" is all that a machine without an accelerator spends on the data.
Goal: 2 + 8 crops by ours in at most 1/12 of the time with the exact blur.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import torch
from data_peers import mmpretrain_pipeline, torchvision_pipeline
from harness import keep_memory_as_training_does, measure, parse_args, report
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import init_default_scope
from PIL import Image
from sklearn.datasets import load_sample_images

from mmpatchmix.cli.benchmark import write_sample_photos
from mmpatchmix.registry import MODELS, TRANSFORMS

CONFIG = Path(__file__).parents[1] / 'configs/patchmix_vit-s_in1k.py'
ENDINGS = ('.jpg', '.jpeg')
LARGE = (2000, 1500)


def find_images(folder: Path, num_images: int) -> list[Path]:
    """Find as many JPEGs of a folder, evenly spread over their names."""
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS)
    if not paths:
        raise ValueError(f'--images {folder}: there is no JPEG below this folder')
    num_images = min(num_images, len(paths))
    return [paths[index * len(paths) // num_images] for index in range(num_images)]


def write_large_photos(folder: Path) -> list[Path]:
    """Write scikit-learn's two photos, enlarged."""
    folder.mkdir()
    paths = [folder / f'{number}.jpg' for number in range(2)]
    for path, array in zip(paths, load_sample_images().images, strict=True):
        Image.fromarray(array).resize(LARGE, Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def our_pipeline(cfg: Config, num_local: int, **changes) -> Callable[[Path], dict]:
    """Build the recipe's training pipeline, with changes of its crops."""
    load, pack = cfg.train_dataloader.dataset.pipeline
    steps = [{**load, 'num_local': num_local, **changes}, pack]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    return lambda path: pipeline({'img_path': str(path)})


def find_crops(cfg: Config, num_local: int) -> list[dict]:
    """Return size, scale, number and augmentation of the recipe's views."""
    load = cfg.train_dataloader.dataset.pipeline[0]
    crops = []
    for view, settings in cfg.model.data_preprocessor.augment.items():
        kind = 'local' if view == 'local_views' else 'global'
        num = num_local if kind == 'local' else 1
        if num:
            settings = {key: value for key, value in settings.items() if key != 'type'}
            size, scale = load[f'{kind}_size'], load[f'{kind}_scale']
            crops.append(dict(size=size, scale=scale, num=num, **settings))
    return crops


def worker_candidates(cfg: Config, num_local: int) -> dict[str, Callable[[Path], object]]:
    """Build functions of a path, by name."""
    crops = find_crops(cfg, num_local)
    return {
        'decoding alone': lambda path: cv2.imread(str(path)),
        'ours': our_pipeline(cfg, num_local),
        'ours, whole': our_pipeline(cfg, num_local, reduced_decoding=False),
        'published': torchvision_pipeline(crops, pillow_blur=True),
        'published, exact blur': torchvision_pipeline(crops, pillow_blur=False),
        'mmpretrain, pillow': mmpretrain_pipeline(crops, 'pillow'),
        'mmpretrain, cv2': mmpretrain_pipeline(crops, 'cv2'),
    }


def preprocessor_candidates(cfg: Config, batch: dict) -> dict[str, Callable[[], object]]:
    """Build functions that run the data preprocessor on a collated batch, by name."""
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    plain = MODELS.build({**cfg.model.data_preprocessor, 'augment': None})

    def run_threaded() -> None:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        preprocessor(batch, training=True)
        torch.set_num_threads(num_threads)

    def run_batched() -> None:
        with mock.patch('mmpatchmix.models.data_preprocessor.goes_to_cpu', lambda images: False):
            preprocessor(batch, training=True)

    return {
        'preprocessor': lambda: preprocessor(batch, training=True),
        'preprocessor, threads': run_threaded,
        'preprocessor, batched': run_batched,
        'preprocessor, plain': lambda: plain(batch, training=True),
    }


def compare(
    cfg: Config, photos: str, paths: list[Path], num_local: int, repeats: int
) -> list[dict]:
    """Measure the rows of the table for one set of photos and one set of crops."""
    workers = worker_candidates(cfg, num_local)
    batch = default_collate([workers['ours'](path) for path in paths])
    candidates = {
        name: lambda run=run: [run(path) for path in paths] for name, run in workers.items()
    }
    seconds = measure(candidates | preprocessor_candidates(cfg, batch), repeats)
    ms = {name: 1e3 * value / len(paths) for name, value in seconds.items()}
    ms['ours + preprocessor'] = ms['ours'] + ms['preprocessor']
    return [
        {
            'photos': photos,
            'crops': f'2 + {num_local}' if num_local else '2',
            'what': name,
            'ms/image': value,
            'published / this': ms['published'] / value,
            'exact blur / this': ms['published, exact blur'] / value,
        }
        for name, value in ms.items()
    ]


def describe(paths: list[Path]) -> str:
    """Say the mean width, height and size of files."""
    images = [Image.open(path).size for path in paths]
    width, height = (sum(sides) / len(paths) for sides in zip(*images, strict=True))
    kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
    return f'{width:.0f}x{height:.0f}, {kilobytes:.0f} kB'


def main() -> None:
    args = parse_args(__doc__, images='', num_images=24)
    keep_memory_as_training_does()
    torch.set_num_threads(args.threads or 1)
    cv2.setNumThreads(0)
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    init_default_scope(cfg.default_scope)
    with tempfile.TemporaryDirectory() as folder:
        if not args.images:
            write_sample_photos(Path(folder, 'photos'), args.num_images)
        paths = find_images(Path(args.images or folder), args.num_images)
        large = write_large_photos(Path(folder, 'large'))
        rows = compare(cfg, 'usual', paths, 0, args.repeats)
        rows += compare(cfg, 'usual', paths, 8, args.repeats)
        rows += compare(cfg, 'large', large, 8, args.repeats)
        sizes = {'usual photos': describe(paths), 'large photos': describe(large)}
    source = args.images or "variations of scikit-learn's"
    report('data: time of a worker', rows, images=source, **sizes, repeats=args.repeats)


if __name__ == '__main__':
    main()
