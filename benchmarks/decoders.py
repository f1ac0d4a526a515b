"""Which decoder of JPEGs is quickest, and what storing smaller images saves.

    python benchmarks/decoders.py
    python benchmarks/decoders.py --images data/coco200/train2017

From the bytes of a file to an array of RGB (BGR for OpenCV), on one thread:

- OpenCV, which ours takes; 1/2: at half the size, as ours does where no crop needs more;
- simplejpeg (libjpeg-turbo); 1/2: likewise; torchvision; Pillow;
- ours, 2 crops: what a worker does for an image: read the file, decode it and cut the two
  crops of 224 pixels of the recipe.

"usual" and "large" are the photos of data.py; "stored" is the large ones as
`mmpatchmix pack-shards --size 512 --quality 90` keeps them.
"""

import io
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from data import find_images, write_large_photos
from harness import measure, parse_args, report
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from mmpatchmix.cli.benchmark import write_sample_photos
from mmpatchmix.datasets import LoadMultiCrop
from mmpatchmix.datasets.pack_shards import pack_shards


def decoders() -> dict[str, Callable[[bytes], object]]:
    """Return functions of the bytes of a file, by name."""
    import simplejpeg  # of requirements/benchmarks.txt; --help needs none

    def half(content: bytes) -> np.ndarray:
        height, width, *_ = simplejpeg.decode_jpeg_header(content)
        return simplejpeg.decode_jpeg(content, min_height=height // 2, min_width=width // 2)

    def as_array(content: bytes) -> np.ndarray:
        return np.frombuffer(content, np.uint8)

    return {
        'OpenCV': lambda content: cv2.imdecode(as_array(content), cv2.IMREAD_COLOR),
        'OpenCV, 1/2': lambda c: cv2.imdecode(as_array(c), cv2.IMREAD_REDUCED_COLOR_2),
        'simplejpeg': simplejpeg.decode_jpeg,
        'simplejpeg, 1/2': half,
        'torchvision': lambda content: decode_jpeg(
            torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB
        ),
        'Pillow': lambda content: np.asarray(Image.open(io.BytesIO(content)).convert('RGB')),
    }


def store(images: Path, shards: Path) -> list[bytes]:
    """Pack images as a user would whose cores are too few; return the files."""
    pack_shards(str(images), str(shards), size=512, quality=90)
    contents = []
    for path in sorted(shards.glob('*.tar')):
        with tarfile.open(path) as shard:
            members = [member for member in shard if member.name.endswith('.jpg')]
            contents += [shard.extractfile(member).read() for member in members]
    return contents


def compare(photos: str, contents: Sequence[bytes], repeats: int) -> list[dict]:
    """Measure all decoders, and a worker's whole work, on some files."""
    candidates = {
        name: lambda run=run: [run(content) for content in contents]
        for name, run in decoders().items()
    }
    load = LoadMultiCrop(global_size=224)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f'{number}.jpg') for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        candidates['ours, 2 crops'] = lambda: [load({'img_path': str(path)}) for path in paths]
        seconds = measure(candidates, repeats)
    size = sum(map(len, contents)) / len(contents)
    return [
        {
            'photos': photos,
            'kB': size / 1000,
            'decoder': name,
            'ms/image': 1000 * value / len(contents),
            'images/s': len(contents) / value,
            'of OpenCV': value / seconds['OpenCV'],
        }
        for name, value in seconds.items()
    ]


def main() -> None:
    args = parse_args(__doc__, images='', num_images=24)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        if not args.images:
            write_sample_photos(Path(folder, 'photos'), args.num_images)
        paths = find_images(Path(args.images or folder), args.num_images)
        usual = [path.read_bytes() for path in paths]
        large = [path.read_bytes() for path in write_large_photos(Path(folder, 'large'))]
        stored = store(Path(folder, 'large'), Path(folder, 'shards'))
    rows = compare('usual', usual, args.repeats) + compare('large', large, args.repeats)
    rows += compare('stored', stored, args.repeats)
    report('decoders', rows, repeats=args.repeats)


if __name__ == '__main__':
    main()
