"""Loading and cropping in one step against the two steps it replaces."""

import io

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from sklearn.datasets import load_sample_images

from mmpatchmix.datasets import ImageFolder, LoadMultiCrop, MultiCrop
from mmpatchmix.datasets.crop_boxes import choose_reduction, reduce_box
from mmpatchmix.datasets.multi_crop import read_jpeg_header

CROPS = dict(global_size=64, local_size=32, num_local=2)


@pytest.fixture(scope='module')
def photos() -> list[Image.Image]:
    return [Image.fromarray(array) for array in load_sample_images().images]  # 640 x 427, RGB


def load(path, seed=0, load_type=LoadMultiCrop, **options):
    torch.manual_seed(seed)
    return load_type(**{**CROPS, **options}).transform({'img_path': str(path)})


def load_in_two_steps(path, seed=0, backend='cv2', **options):
    torch.manual_seed(seed)
    results = LoadImageFromFile(imdecode_backend=backend).transform({'img_path': str(path)})
    return MultiCrop(**{**CROPS, **options}).transform(results)


def assert_equal_crops(ours, theirs):
    for name in ('view_1', 'view_2', 'local_views'):
        assert torch.equal(ours[name], theirs[name])
    assert ours['ori_shape'] == theirs['ori_shape']


def save_oriented(image: Image.Image, path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)


def psnr(first: torch.Tensor, second: torch.Tensor) -> float:
    """In dB, of uint8 images."""
    error = (first.double() - second.double()).square().mean().item()
    return 10 * np.log10(255**2 / error) if error else float('inf')


def full_size_crops(path, boxes, reduction, sizes):
    """Cut these reduced boxes from the image decoded at its whole resolution."""
    image = Image.fromarray(cv2.imread(str(path)))
    crops = []
    for (top, left, height, width), size in zip(boxes, sizes, strict=True):
        box = [reduction * edge for edge in (left, top, left + width, top + height)]
        # The last pixel of the smaller image may stand for less than a whole one.
        box[2:] = min(box[2], image.width), min(box[3], image.height)
        crop = image.resize(size[::-1], Image.Resampling.BICUBIC, box=tuple(box))
        crops.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
    return crops


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('options', [dict(reduced_decoding=False), dict(global_size=300)], ids=str)
def test_whole_images_give_the_same_bits(photos, tmp_path, mode, options):
    path = tmp_path / 'photo.jpg'
    photos[0].convert(mode).save(path)
    for seed in range(3):
        two_steps = load_in_two_steps(path, seed, global_size=options.get('global_size', 64))
        assert_equal_crops(load(path, seed, **options), two_steps)


@pytest.mark.parametrize('suffix', ['png', 'bmp', 'webp'])
def test_other_formats_are_loaded_as_before(photos, tmp_path, suffix):
    path = tmp_path / f'photo.{suffix}'
    photos[1].save(path)
    assert_equal_crops(load(path), load_in_two_steps(path))
    assert read_jpeg_header(path.read_bytes()) is None


@pytest.mark.parametrize('shape', [(1, 1), (3, 2), (9, 7), (40, 2), (65, 64)])
def test_tiny_images(photos, tmp_path, shape):
    path = tmp_path / 'tiny.jpg'
    photos[0].resize(shape).save(path)
    assert_equal_crops(load(path), load_in_two_steps(path))


def test_another_backend_decodes_whole(photos, tmp_path):
    path = tmp_path / 'photo.jpg'
    photos[0].save(path)
    two_steps = load_in_two_steps(path, backend='pillow')
    assert_equal_crops(load(path, imdecode_backend='pillow'), two_steps)


@pytest.mark.parametrize('size', [(640, 424), (639, 421), (1283, 857)], ids=str)
@pytest.mark.parametrize('global_size', [64, 32])
def test_reduced_crops_look_like_whole_ones(photos, tmp_path, monkeypatch, size, global_size):
    """At least 30 dB: a root mean square of 8 grey levels of 255."""
    options = dict(global_size=global_size, local_size=16)
    reductions = []
    monkeypatch.setattr(
        'mmpatchmix.datasets.multi_crop.choose_reduction',
        lambda *given: reductions.append(choose_reduction(*given)) or reductions[-1],
    )
    for number, photo in enumerate(photos):
        path = tmp_path / f'{number}.jpg'
        photo.resize(size, Image.Resampling.BICUBIC).save(path, quality=92)
        for seed in range(8):
            ours = load(path, seed, **options)
            transform = MultiCrop(**{**CROPS, **options})
            torch.manual_seed(seed)
            boxes = transform.draw_boxes(size[1], size[0])
            boxes = [reduce_box(box, reductions[-1]) for box in boxes]
            whole = full_size_crops(path, boxes, reductions[-1], transform.crop_sizes)
            crops = [ours['view_1'], ours['view_2'], *ours['local_views']]
            assert ours['ori_shape'] == (size[1], size[0])
            for crop, expected in zip(crops, whole, strict=True):
                assert psnr(crop, expected) > 30
    assert max(reductions) > 1


@pytest.mark.parametrize('size', [(640, 424), (638, 421)], ids=['divisible', 'odd'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_and_mirrored_photos(photos, tmp_path, orientation, size):
    """Against OpenCV's own turning of the whole image, in two steps."""
    path = tmp_path / 'photo.jpg'
    save_oriented(photos[0].resize(size), path, orientation)
    stored = (size[1], size[0])
    header = read_jpeg_header(path.read_bytes())
    assert header[:2] == (stored if orientation < 5 else stored[::-1])
    assert_equal_crops(load(path, global_size=300), load_in_two_steps(path, global_size=300))
    for seed in range(3):
        ours, whole = load(path, seed), load_in_two_steps(path, seed)
        assert ours['ori_shape'] == whole['ori_shape']
        # The edges of boxes are rounded here, so a looser bound; mirrored crops have 12 dB.
        assert psnr(ours['view_1'], whole['view_1']) > 25
        assert psnr(ours['view_1'], whole['view_1'].flip(-1)) < 14
        if orientation != 1 and size == (638, 421):
            assert_equal_crops(ours, whole)  # not reduced: it would be moved


def test_random_numbers_are_those_of_the_two_steps(photos, tmp_path):
    path = tmp_path / 'photo.jpg'
    photos[0].save(path)
    load(path)
    after = torch.rand(())
    load_in_two_steps(path)
    assert after == torch.rand(())


def test_a_header_that_lies_is_not_believed(photos, tmp_path, monkeypatch):
    path = tmp_path / 'photo.jpg'
    photos[0].save(path)
    real = read_jpeg_header(path.read_bytes())
    lie = real._replace(height=real.width, width=real.height)
    monkeypatch.setattr('mmpatchmix.datasets.multi_crop.read_jpeg_header', lambda _: lie)
    ours = load(path)
    # Boxes of the size that the header told were drawn in vain; those after them count.
    torch.manual_seed(0)
    transform = MultiCrop(**CROPS)
    transform.draw_boxes(lie.height, lie.width)
    theirs = transform.transform(LoadImageFromFile().transform({'img_path': str(path)}))
    assert_equal_crops(ours, theirs)


def test_bad_files_are_skipped_and_mistakes_are_not(photos, tmp_path):
    buffer = io.BytesIO()
    photos[0].save(buffer, 'jpeg')
    whole = buffer.getvalue()
    (tmp_path / '0.jpg').write_bytes(whole)
    (tmp_path / '1.jpg').write_bytes(whole[: len(whole) // 2])  # header in order, data missing
    (tmp_path / '2.jpg').write_bytes(whole[:100])  # not even a header
    (tmp_path / '3.jpg').write_bytes(b'')
    for global_size in (300, 32):
        step = dict(type='mmpatchmix.LoadMultiCrop', global_size=global_size)
        dataset = ImageFolder(str(tmp_path), pipeline=[step], max_unreadable=0.9)
        found = [dataset.prepare_data(index) for index in range(4)]
        assert [data is None for data in found] == [False, True, True, True]
        assert dataset.num_unreadable == 3
    step['imdecode_backend'] = 'opencv'
    dataset = ImageFolder(str(tmp_path), pipeline=[step])
    with pytest.raises(ValueError, match='backend: opencv is not supported'):
        dataset.prepare_data(0)
    assert dataset.num_unreadable == 0


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match='LoadMultiCrop: global_size'):
        LoadMultiCrop(global_size=0)
    assert 'reduced_decoding=False' in repr(LoadMultiCrop(reduced_decoding=False))
