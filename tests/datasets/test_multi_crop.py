"""Crops and boxes against torchvision; loading against the two steps it replaces."""

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms import InterpolationMode, v2

from mmpatchmix.datasets import ImageFolder, LoadMultiCrop, MultiCrop
from mmpatchmix.datasets.multi_crop import (
    choose_reduction,
    draw_box,
    read_jpeg_header,
    reduce_box,
)


def make_image(height: int = 120, width: int = 160) -> np.ndarray:
    """Smooth shapes, fine texture and noise, (H, W, 3) uint8."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = np.where(rng.random((height, width, 1)) < 0.3, noise, ramp).astype(np.uint8)
    cv2.circle(image, (width // 2, height // 2), height // 4, (255, 0, 40), -1)
    return image


def torchvision_crops(source, num_local=0, ratio=(3 / 4, 4 / 3)):
    """Two global crops and the local ones, drawn one after another like MultiCrop's."""
    bicubic = {'interpolation': InterpolationMode.BICUBIC, 'antialias': True, 'ratio': ratio}
    crop = v2.RandomResizedCrop(64, scale=(0.35, 1.0), **bicubic)
    crop_local = v2.RandomResizedCrop(32, scale=(0.05, 0.35), **bicubic)
    return [crop(source), crop(source), *(crop_local(source) for _ in range(num_local))]


def our_crops(image, num_local=0, ratio=(3 / 4, 4 / 3)):
    results = MultiCrop(64, (0.35, 1.0), 32, (0.05, 0.35), num_local, ratio)({'img': image})
    return [results['view_1'], results['view_2'], *results.get('local_views', ())]


@pytest.mark.parametrize('shape', [(120, 160), (400, 40), (20, 24), (1, 1), (1, 90), (64, 64)])
@pytest.mark.parametrize('ratio', [(3 / 4, 4 / 3), (0.2, 6.0), (1.0, 1.0)])
def test_crops_and_random_numbers_equal_torchvisions_bit_for_bit(shape, ratio):
    image = make_image(*shape)
    # Another memory layout on purpose: torchvision's usual (C, H, W).
    source = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    for seed in range(5):
        torch.manual_seed(seed)
        crops, after = our_crops(image, 3, ratio), torch.rand(())
        torch.manual_seed(seed)
        for ours, theirs in zip(crops, torchvision_crops(source, 3, ratio), strict=True):
            assert torch.equal(ours, theirs)
        assert after == torch.rand(())


def test_whole_image_of_the_size_of_the_crop_is_copied():
    whole = dict(global_scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for shape, side in {(40, 64, 3): (40, 64), (33, 33, 5): 33}.items():
        image = np.random.default_rng(0).random(shape, np.float32) * 255
        views = MultiCrop(side, **whole)({'img': image})
        for name in ('view_1', 'view_2'):
            assert torch.equal(views[name], torch.from_numpy(image).permute(2, 0, 1))
            assert views[name].data_ptr() != torch.from_numpy(image).data_ptr()
    # Of other proportions: the largest part in the middle.
    image = make_image(32, 48)
    middle = torch.from_numpy(image[:, 8:40]).permute(2, 0, 1)
    assert torch.equal(MultiCrop(32, **whole)({'img': image})['view_1'], middle)


def test_wrong_images_and_arguments_are_refused():
    for message, img in {
        r'shape \(H, W, C\), got uint8 of shape \(8, 8\)': np.zeros((8, 8), np.uint8),
        'needs a uint8 or float32 image .*, got float64': np.zeros((8, 8, 3)),
        'got a Image from b.png': Image.new('RGB', (8, 8)),
    }.items():
        with pytest.raises(ValueError, match=message):
            MultiCrop().transform({'img': img, 'img_path': 'b.png'})
    wrong = dict(global_size=(224, 0), local_size=-1, global_scale=(0.5, 1.2), num_local=-1)
    for name, value in (wrong | dict(ratio=(0.0, 1.0))).items():
        with pytest.raises(ValueError, match=f'LoadMultiCrop: {name}'):
            LoadMultiCrop(**{name: value})


def test_the_largest_reduction_is_chosen_and_reduced_boxes_stay_inside():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        height, width = (int(side) for side in rng.integers(1, 3000, 2))
        size = int(rng.integers(1, 300))
        torch.manual_seed(int(rng.integers(2**31)))
        box, other = (draw_box(height, width, (0.05, 1.0), (3 / 4, 4 / 3)) for _ in range(2))
        reduction = choose_reduction([box, other], [(size, size), (size // 2, size)])
        seen.add(reduction)
        needs = [(box.height, size), (box.width, size), (other.height, size // 2)]
        needs.append((other.width, size))
        assert reduction == max(
            (r for r in (2, 4, 8) if all(side / r >= least for side, least in needs)), default=1
        )
        small = reduce_box(box, reduction)
        assert small.top >= 0 and small.left >= 0
        assert small.top + small.height <= -(-height // reduction)
        assert small.left + small.width <= -(-width // reduction)
        if reduction == 1:
            assert small == box
            continue
        assert min(small.height, small.width) >= size
        # No edge moves by more than half a pixel of the smaller image.
        for begin, length, place, new in zip(box[:2], box[2:], small[:2], small[2:], strict=True):
            assert abs(place - begin / reduction) <= 0.5
            assert abs(place + new - (begin + length) / reduction) <= 0.5
    assert seen == {1, 2, 4, 8}


CROPS = dict(global_size=64, local_size=32, num_local=2)


@pytest.fixture(scope='module')
def photos() -> list[Image.Image]:
    return [Image.fromarray(array) for array in load_sample_images().images]  # 640 x 427, RGB


def load(path, seed=0, **options):
    torch.manual_seed(seed)
    return LoadMultiCrop(**{**CROPS, **options}).transform({'img_path': str(path)})


def load_in_two_steps(path, seed=0, backend='cv2', **options):
    torch.manual_seed(seed)
    results = LoadImageFromFile(imdecode_backend=backend).transform({'img_path': str(path)})
    return MultiCrop(**{**CROPS, **options}).transform(results)


def assert_equal_crops(ours, theirs):
    for name in ('view_1', 'view_2', 'local_views'):
        assert torch.equal(ours[name], theirs[name])
    assert ours['ori_shape'] == theirs['ori_shape']


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
def test_whole_images_give_the_same_bits_and_random_numbers(photos, tmp_path, mode, options):
    path = tmp_path / 'photo.jpg'
    photos[0].convert(mode).save(path)
    ours, after = load(path, **options), torch.rand(())
    assert_equal_crops(ours, load_in_two_steps(path, global_size=options.get('global_size', 64)))
    assert after == torch.rand(())


@pytest.mark.parametrize('name', ['a.png', 'a.bmp', 'a.webp', 'a.jpg'])
def test_other_formats_and_backends_decode_whole(photos, tmp_path, name):
    path = tmp_path / name
    photos[1].save(path)
    backend = 'pillow' if name == 'a.jpg' else 'cv2'
    ours = load(path, imdecode_backend=backend)
    assert_equal_crops(ours, load_in_two_steps(path, backend=backend))
    assert (read_jpeg_header(path.read_bytes()) is None) == (name != 'a.jpg')


@pytest.mark.parametrize(('size', 'global_size'), [((639, 421), 64), ((1283, 857), 32)], ids=str)
def test_reduced_crops_are_close_to_whole_ones(photos, tmp_path, monkeypatch, size, global_size):
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
        for seed in range(4):
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
def test_rotated_and_mirrored_photos(photos, tmp_path, orientation, size):
    """Against OpenCV's rotation of the whole image, in two steps."""
    path = tmp_path / 'photo.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    photos[0].resize(size).save(path, exif=exif, quality=95)
    stored = (size[1], size[0])
    header = read_jpeg_header(path.read_bytes())
    assert header[:2] == (stored if orientation < 5 else stored[::-1])
    assert_equal_crops(load(path, global_size=300), load_in_two_steps(path, global_size=300))
    for seed in range(2):
        ours, whole = load(path, seed), load_in_two_steps(path, seed)
        assert ours['ori_shape'] == whole['ori_shape']
        # The edges of boxes are rounded here, so a looser bound; mirrored crops have 12 dB.
        assert psnr(ours['view_1'], whole['view_1']) > 25
        assert psnr(ours['view_1'], whole['view_1'].flip(-1)) < 14
        if orientation != 1 and size == (638, 421):
            assert_equal_crops(ours, whole)  # not reduced: it would be moved


def test_a_wrong_header_is_ignored(photos, tmp_path, monkeypatch):
    path = tmp_path / 'photo.jpg'
    photos[0].save(path)
    height, width, _ = read_jpeg_header(path.read_bytes())
    monkeypatch.setattr(
        'mmpatchmix.datasets.multi_crop.read_jpeg_header', lambda _: (width, height, False)
    )
    ours = load(path)
    # The boxes for the size of the header are drawn first, and not used.
    torch.manual_seed(0)
    transform = MultiCrop(**CROPS)
    transform.draw_boxes(width, height)
    theirs = transform.transform(LoadImageFromFile().transform({'img_path': str(path)}))
    assert_equal_crops(ours, theirs)


def test_bad_files_are_skipped_and_config_errors_are_raised(photos, tmp_path):
    photos[0].save(tmp_path / '0.jpg')
    whole = (tmp_path / '0.jpg').read_bytes()
    (tmp_path / '1.jpg').write_bytes(whole[: len(whole) // 2])  # header in order, data missing
    (tmp_path / '2.jpg').write_bytes(whole[:100])  # not even a header
    for global_size in (300, 32):
        step = dict(type='mmpatchmix.LoadMultiCrop', global_size=global_size)
        dataset = ImageFolder(str(tmp_path), pipeline=[step], max_unreadable=0.9)
        found = [dataset.prepare_data(index) for index in range(3)]
        assert [data is None for data in found] == [False, True, True]
        assert dataset.num_unreadable == 2
    step['imdecode_backend'] = 'opencv'
    dataset = ImageFolder(str(tmp_path), pipeline=[step])
    with pytest.raises(ValueError, match='backend: opencv is not supported'):
        dataset.prepare_data(0)
    assert dataset.num_unreadable == 0
