"""Images in ImageNet's layout, and mmpretrain's scope."""

import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def default_scope():
    init_default_scope('mmpretrain')


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    """Folders train and val with two classes of four images."""
    root = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('n01', 'n02'):
            (root / split / name).mkdir(parents=True)
            for index in range(4):
                image = generator.integers(0, 256, (120, 140, 3), dtype=np.uint8)
                cv2.imwrite(str(root / split / name / f'{index}.jpg'), image)
    return root
