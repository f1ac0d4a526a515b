"""What the checks before training take for a million images: a folder, a list, a COCO file.

    python benchmarks/preflight.py [NUM_IMAGES] [FOLDER]

Writes empty files below FOLDER and removes them. Prints CPU seconds of reading alone, as any
program would, and of ours: the folder and the list are read and checked, the images of the list
compared with a list of held-out ones, the annotations of the COCO file checked.
"""

import csv
import json
import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from harness import make_parser

from mmpatchmix.cli.check_run import _check_held_out
from mmpatchmix.datasets import ImageFolder
from mmpatchmix.datasets.coco_files import check_entries

NUM_FOLDERS = 1000


def measure(name: str, floor, ours) -> None:
    """Print the CPU seconds of two functions."""
    seconds = []
    for function in (floor, ours):
        began = time.process_time()
        function()
        seconds.append(time.process_time() - began)
    print(f'{name:<10} read {seconds[0]:6.2f} s   ours {seconds[1]:6.2f} s', flush=True)


def make_coco(num: int) -> str:
    """Return the text of a COCO file with ``num`` annotations, 7 per image."""
    numbers = np.random.default_rng(0).integers(1, 300, (num, 20)).tolist()
    images = [
        dict(id=n, file_name=f'{n:012d}.jpg', width=640, height=480) for n in range(num // 7 + 1)
    ]
    annotations = [
        dict(
            id=n,
            image_id=n // 7,
            category_id=n % 80,
            iscrowd=0,
            area=row[0],
            bbox=row[:4],
            segmentation=[row],
        )
        for n, row in enumerate(numbers)
    ]
    categories = [dict(id=n, name=str(n)) for n in range(80)]
    return json.dumps(dict(images=images, annotations=annotations, categories=categories))


def read(path: Path, **options) -> ImageFolder:
    """Return the data set of a folder or list, read and checked."""
    dataset = ImageFolder(str(path), **options)
    dataset.full_init()
    return dataset


def list_folder(root: str) -> list[str]:
    """Return all paths, sorted, as torchvision's ImageFolder lists them."""
    return sorted(os.path.join(at, name) for at, _, names in os.walk(root) for name in names)


def main(num: int, parent: str | None) -> None:
    """Write the inputs and measure."""
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        root, text, few = (Path(folder, name) for name in ('images', 'train.csv', 'val.csv'))
        names = [f'class_{n % NUM_FOLDERS:04d}/image_{n:08d}.jpg' for n in range(num)]
        for n in range(NUM_FOLDERS):
            (root / f'class_{n:04d}').mkdir(parents=True)
        for name in names:
            os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))
        lines = [f'images/{name},{name[:10]}\n' for name in names]
        text.write_text('path,label\n' + ''.join(lines))
        (root / names[0].replace('image_', 'other_')).touch()
        few.write_text(''.join(lines[::50]).replace('image_', 'other_'))
        measure('folder', lambda: list_folder(str(root)), lambda: read(root, split='train'))
        measure('list', lambda: [*csv.reader(text.read_text().split('\n'))], lambda: read(text))
        train, val = read(text), read(few)
        runner = SimpleNamespace(
            train_dataloader=SimpleNamespace(dataset=train),
            val_loop=SimpleNamespace(dataloader=SimpleNamespace(dataset=val)),
        )
        measure('held out', lambda: None, lambda: _check_held_out(runner))
        coco, data = make_coco(num), {}
        measure(
            'coco',
            lambda: data.update(json.loads(coco)),
            lambda: check_entries(data, '', True, False),
        )


if __name__ == '__main__':
    parser = make_parser(__doc__)
    parser.add_argument('num', nargs='?', type=int, default=10**6, help='of images')
    parser.add_argument('parent', nargs='?', help='folder for the files')
    args = parser.parse_args()
    main(args.num, args.parent)
