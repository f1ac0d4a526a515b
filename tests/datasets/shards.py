"""Tar shards for the tests, written by tarfile alone."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
from mmengine.fileio import get

from mmpatchmix.datasets import ShardedImages
from tests.datasets.folders import PIPELINE


def encode_image(number: int) -> bytes:
    """A PNG whose pixels are the number, so that what was read tells what it is."""
    image = np.full((20, 24, 3), number, np.uint8)
    return cv2.imencode('.png', image)[1].tobytes()


def write_tar(path: Path, members: dict[str, bytes], **settings) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', **settings) as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


def make_shards(root: Path, num_images: int, per_shard: int, labelled: bool = True) -> Path:
    for shard, start in enumerate(range(0, num_images, per_shard)):
        members = {}
        for number in range(start, min(start + per_shard, num_images)):
            members[f'{number:05d}.png'] = encode_image(number)
            if labelled:
                members[f'{number:05d}.cls'] = str(number % 3).encode()
        write_tar(root / f'train-{shard:06d}.tar', members)
    return root


def open_shards(root, **settings) -> ShardedImages:
    return ShardedImages(str(root), pipeline=PIPELINE, **settings)


def read_number(dataset, index: int) -> int:
    """Decode a sample; its pixels are its number."""
    content = get(dataset.get_data_info(index)['img_path'])
    return int(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[0, 0, 0])


def read_all(dataset) -> list[int]:
    return [read_number(dataset, index) for index in range(len(dataset))]
